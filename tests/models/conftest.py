"""Shared by the tests of third-party model servers: their Python, clients, and a check that no process is left.

A server takes seconds to start and serves a whole module, so these tests and fixtures run on the module's event loop.
"""

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.availability import unavailable
from tests.support.peers import CREDENTIALS, REGION, isolate_aws

MARK = "AIOSMRT_TEST_MARK"


@pytest.fixture(scope="module")
def models_python() -> Path:
    """The interpreter with the model servers, AIOSMRT_TEST_MODELS."""
    found = os.environ.get("AIOSMRT_TEST_MODELS")
    if found is None or shutil.which(found) is None:
        unavailable(
            "the model servers are not installed; run make test-models, or set AIOSMRT_TEST_MODELS to their Python"
        )
    return Path(found)


@pytest.fixture(scope="module")
def server_processes(
    models_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], list[int]]]:
    """Lists the processes that the module's tests have started, from /proc; at the end there must be none left.

    Until then this process's environment, which they inherit, has the servers' programs first on PATH, made-up AWS
    credentials, and a mark that identifies them.
    """
    mark = str(uuid.uuid4())
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        isolate_aws(patch, home)
        for name, value in {
            MARK: mark,
            "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key,
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key,
            "AWS_REGION": REGION,
            "HOME": str(home),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": os.pathsep.join([str(models_python.parent), str(Path(sys.executable).parent), os.environ["PATH"]]),
        }.items():
            patch.setenv(name, value)
        yield lambda: marked_processes(mark)
    assert marked_processes(mark) == []


def marked_processes(mark: str) -> list[int]:
    """Process ids by a variable in their initial environment (Linux)."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended, or is not ours
        if wanted in variables:
            found.append(int(entry.parent.name))
    return found
