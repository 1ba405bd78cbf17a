"""The public surface: which modules users may import, that each name is there and documented, and that all is typed."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import aiosmrt

ROOT = Path(__file__).parents[2]

# What users may import from; the documentation names no other module.
PUBLIC_MODULES = [
    "aiosmrt",
    "aiosmrt.batch",
    "aiosmrt.bench",
    "aiosmrt.cli",
    "aiosmrt.client",
    "aiosmrt.config",
    "aiosmrt.endpoint",
    "aiosmrt.errors",
    "aiosmrt.events",
    "aiosmrt.integrations.fastapi",
    "aiosmrt.integrations.openai",
    "aiosmrt.integrations.opentelemetry",
    "aiosmrt.local",
    "aiosmrt.serializers",
    "aiosmrt.testing",
    "aiosmrt.types",
]
# Public as well, and imported where their engines are installed: by tests/engines/.
ENGINES = [f"aiosmrt.integrations.{engine}" for engine in ("daft", "dask", "ray", "spark")]
# Packages whose modules are public one by one, and which define nothing themselves.
NAMESPACES = ["aiosmrt.integrations"]

each_module = pytest.mark.parametrize("name", PUBLIC_MODULES)


def modules_without_underscore(package: ModuleType) -> set[str]:
    return {
        f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    }


def test_a_new_module_is_listed_or_private() -> None:
    found = modules_without_underscore(aiosmrt)
    for namespace in NAMESPACES:
        found.remove(namespace)
        found |= modules_without_underscore(importlib.import_module(namespace))
    assert found | {"aiosmrt"} == {*PUBLIC_MODULES, *ENGINES}


@each_module
def test_a_module_names_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    # A star import raises for a name that is missing.
    namespace: dict[str, Any] = {}
    exec(f"from {name} import *", namespace)
    assert set(module.__all__) <= set(namespace)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_namespace_defines_nothing(namespace: str) -> None:
    module = importlib.import_module(namespace)
    assert module.__doc__
    defined = {name for name, value in vars(module).items() if not isinstance(value, ModuleType)}
    assert [name for name in defined if not name.startswith("_")] == []


def documented(name: str, thing: object) -> Iterator[tuple[str, bool]]:
    """A class or function and the class's public members, each with whether it has a docstring."""
    if not inspect.isclass(thing):
        yield name, bool(inspect.getdoc(thing))
        return
    # `inspect.getdoc` would find a base class's.
    yield name, bool(thing.__doc__)
    for member, value in vars(thing).items():
        if not member.startswith("_") and (isinstance(value, property) or inspect.isroutine(value)):
            # A method that overrides another one may leave the docstring to it.
            yield f"{name}.{member}", bool(inspect.getdoc(getattr(thing, member)))


@each_module
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    things = {public: getattr(module, public) for public in module.__all__}
    looked_at = dict(
        found
        for public, thing in things.items()
        if inspect.isclass(thing) or inspect.isroutine(thing)
        for found in documented(public, thing)
    )
    assert [public for public, has_docstring in looked_at.items() if not has_docstring] == []
    assert looked_at


@pytest.mark.timeout(600)
def test_every_public_name_has_a_known_type(tmp_path: Path) -> None:
    """As pyright sees the package where it is installed: from a directory without it."""
    # With --verifytypes, pyright asks the first Python on the PATH for its modules.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", "aiosmrt", "--ignoreexternal", "--outputjson"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    assert Path(report["packageRootDirectory"]) == ROOT / "aiosmrt"
    assert report["exportedSymbolCounts"]["withKnownType"] > 1000
    incomplete = [
        f"{symbol['name']}: {diagnostic['message']}"
        for symbol in report["symbols"]
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
        for diagnostic in symbol["diagnostics"]
    ]
    assert incomplete == [], "\n".join(incomplete)
    assert report["completenessScore"] == 1
    assert done.returncode == 0, done.stdout + done.stderr
