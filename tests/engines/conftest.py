"""Shared by the tests of the engines: their Python, and jobs that run on it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.availability import unavailable
from tests.support.engines import PROGRAMS, Outcome, run_engine


@pytest.fixture(scope="session")
def engines_python() -> Path:
    """The interpreter with the engines, AIOSMRT_TEST_ENGINES."""
    found = os.environ.get("AIOSMRT_TEST_ENGINES")
    if found is None or shutil.which(found) is None:
        unavailable("the engines are not installed; run make test-engines, or set AIOSMRT_TEST_ENGINES to their Python")
    return Path(found)


@pytest.fixture(scope="module")
def run_job(engines_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Runs a program of tests/engines/programs against a service, and kills a worker of it."""

    def run(program: str, *, kill_after: int | None = None, processes: bool = False) -> Outcome:
        folder = tmp_path_factory.mktemp(program)
        if processes:
            (folder / "processes").touch()
        return asyncio.run(run_engine(engines_python, PROGRAMS / f"{program}_program.py", folder, kill_after))

    return run
