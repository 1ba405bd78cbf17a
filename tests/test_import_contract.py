"""Which room imports what: the contracts in pyproject.toml, what they cannot express, and what an import loads.

import-linter sees a foreign package as one thing, so rules about its parts are checked here, on the syntax trees.
"""

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

# import-linter reads every module of the package.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aiosmrt"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]

CLOCKS = {"now", "utcnow", "today"}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    config = str(ROOT / "pyproject.toml")
    program = f"from importlinter.cli import lint_imports; raise SystemExit(lint_imports({config!r}, no_cache=True))"
    return subprocess.run([sys.executable, "-c", program], cwd=directory, capture_output=True, text=True)


def sources(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    for room in rooms or ("",):
        files = sorted((PACKAGE / room).rglob("*.py"))
        assert files, f"aiosmrt/{room} is empty"
        for file in files:
            yield str(file.relative_to(PACKAGE)), ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a module imports; for ``from a import b`` that is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_contracts_are_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


VIOLATIONS = {
    "layers": ("_wire/operations.py", "import aiosmrt._core.client_core"),
    "core": ("_core/body.py", "import aiosmrt._core.call"),
    "pure": ("_policy/retry.py", "import time"),
    "local": ("local/authentication.py", "import aiosmrt.client"),
    "aiohttp": ("_core/admission.py", "import aiohttp"),
    "botocore": ("_core/admission.py", "import botocore.session"),
    "http2": ("_core/admission.py", "import h2.connection"),
    "extras": ("_core/admission.py", "import click"),
    "integrations": ("_core/admission.py", "import fastapi"),
}


def test_each_contract_can_be_broken(tmp_path):
    assert set(VIOLATIONS) == {contract["id"] for contract in CONTRACTS}
    shutil.copytree(PACKAGE, tmp_path / "aiosmrt", ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in VIOLATIONS.values():
        with (tmp_path / "aiosmrt" / file).open("a", encoding="utf-8") as module:
            module.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"Contracts: 0 kept, {len(CONTRACTS)} broken." in done.stdout


def test_a_module_outside_the_contracts_is_reported(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "aiosmrt", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "aiosmrt" / "newcomer.py").write_text("")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "newcomer" in done.stdout


def test_only_aws_uses_more_of_botocore_than_its_exceptions():
    for file, tree in sources():
        if not file.startswith("_aws/") and file != "local/objectstorage.py":
            foreign = [name for name in imported(tree) if name.split(".")[0] in ("botocore", "aiobotocore", "boto3")]
            assert [name for name in foreign if not name.startswith("botocore.exceptions")] == [], file


def test_the_command_line_uses_no_client_of_aiohttp():
    for file, tree in sources("cli"):
        taken = {name for name in imported(tree) if name.split(".")[0] == "aiohttp"}
        assert taken <= {"aiohttp", "aiohttp.web"}, file
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "aiohttp"
        }
        assert used <= {"__version__", "web"}, file


def test_wire_and_policy_read_no_clock_through_datetime():
    for file, tree in sources("_wire", "_policy"):
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert [call for call in calls if isinstance(call, ast.Attribute) and call.attr in CLOCKS] == [], file


LOADED_LATER = [
    # of our own
    "aiosmrt._aws.s3",
    "aiosmrt.batch",
    "aiosmrt.endpoint",
    "aiosmrt.integrations",
    "aiosmrt.serializers",
    "aiosmrt._transport.aiohttp_session.transport",
    "aiosmrt.types",
    "aiosmrt._wire.eventstream",
    "aiosmrt._wire.decoders.base",
    "aiosmrt._wire.observer_headers",
    # found in the settings or looked up only when a client has to: 150 ms and 18 MiB
    "aiobotocore",
    "boto3",
    "botocore.auth",
    "botocore.configloader",
    "botocore.credentials",
    "botocore.endpoint_provider",
    "botocore.loaders",
    "botocore.session",
    "botocore.utils",
    "dateutil",
    "jmespath",
    "urllib3",
    # for clients without an endpoint URL
    "aiosmrt._aws.endpoint_rules",
    # for credentials that are neither given nor in the environment
    "aiosmrt._aws.lookup",
    # optional packages
    "aiosmrt.cli",
    "aiosmrt.local",
    # extras
    "click",
    "fastapi",
    "isal",
    "numpy",
    "opentelemetry",
    "pyarrow",
    "rich",
    "uvloop",
]


def loaded_by(statement: str) -> set[str]:
    """The modules of a fresh interpreter after a statement."""
    program = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import aiosmrt", "import aiosmrt; aiosmrt.Client('eu-central-1')"])
def test_importing_loads_nothing_that_may_never_be_needed(statement):
    loaded = loaded_by(statement)
    assert {"aiosmrt.client", "aiohttp"} <= loaded
    assert sorted(loaded.intersection(LOADED_LATER)) == []


def test_beside_aiohttp_importing_loads_the_exceptions_of_botocore_and_no_other_package():
    added = loaded_by("import aiosmrt") - loaded_by("import aiohttp")
    foreign = {name for name in added if name.split(".")[0] not in {"aiosmrt", *sys.stdlib_module_names}}
    exceptions = {"botocore", "botocore.exceptions"}
    assert {name for name in foreign if not name.startswith("botocore.vendored")} == exceptions


# Constants


def telling(value: ast.expr) -> object | None:
    """A constant's value, if no other has it by chance: a long text, a number that is not round, a table."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "frozenset" and value.args:
        value = value.args[0]
    if isinstance(value, ast.Dict | ast.Set | ast.Tuple | ast.List):
        is_table = any(isinstance(node, ast.Constant) for node in ast.walk(value))
        return ast.dump(value) if is_table else None
    match getattr(value, "value", None):
        case str() | bytes() as text if len(text) >= 10:
            return text
        case int() as number if number > 1000 and number & (number - 1) and number & (number + 1):
            return number
    return None


def constants() -> Iterator[tuple[object, str]]:
    """What is assigned to a name in capitals at the top of a module, and where."""
    for file, tree in sources():
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id.isupper() and (value := telling(node.value)) is not None:
                    yield value, f"{file}: {target.id}"


def test_a_constant_is_defined_once():
    places: dict[object, list[str]] = {}
    for value, place in constants():
        places.setdefault(value, []).append(place)
    assert len(places) > 100
    assert {value: found for value, found in places.items() if len(found) > 1} == {}
