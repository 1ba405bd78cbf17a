"""Strict type checkers on users' code: ``accepted.py`` is clean, in ``rejected.py`` every marked line is an error.

Both checkers run once per session, on both files, side by side.
"""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SAMPLES = (HERE / "accepted.py", HERE / "rejected.py")

# Whichever test is the first one waits for both checkers.
pytestmark = pytest.mark.timeout(600)

# (file name, line) -> messages
Verdict = dict[tuple[str, int], list[str]]


def mypy_verdict(output: str) -> Verdict:
    verdict: Verdict = {}
    for line in output.splitlines():
        report = json.loads(line)
        if report["severity"] == "error":
            verdict.setdefault((Path(report["file"]).name, report["line"]), []).append(report["message"])
    return verdict


def pyright_verdict(output: str) -> Verdict:
    document = json.loads(output)
    assert document["summary"]["filesAnalyzed"] == len(SAMPLES)
    verdict: Verdict = {}
    for report in document["generalDiagnostics"]:
        if report["severity"] == "error":
            place = (Path(report["file"]).name, report["range"]["start"]["line"] + 1)
            verdict.setdefault(place, []).append(report["message"])
    return verdict


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """Each checker's verdict, as a user gets it who has the package installed and asks for the strict mode."""
    scratch = tmp_path_factory.mktemp("typing")
    # pyright takes no absolute path into a project, and the mode can be chosen in a project only.
    for sample in SAMPLES:
        shutil.copy(sample, scratch)
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (scratch / "pyrightconfig.json").write_text(json.dumps(settings))
    names = [sample.name for sample in SAMPLES]
    commands = {
        "mypy": ["mypy", "--strict", "--config-file=", "--python-version=3.11", "--output=json", *names],
        "pyright": ["pyright", "--outputjson", "--pythonpath", sys.executable],
    }
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", *command], cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name, command in commands.items()
    }
    read = {"mypy": mypy_verdict, "pyright": pyright_verdict}
    verdicts = {}
    for name, process in running.items():
        output, complaints = process.communicate()
        assert process.returncode == 1, f"{name} did not get to its verdict:\n{output}\n{complaints}"
        verdicts[name] = read[name](output)
    return verdicts


def marked() -> dict[str, int]:
    """The function of each marked line in ``rejected.py``."""
    source = SAMPLES[1].read_text(encoding="utf-8")
    lines = [number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# rejected")]
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert len(lines) == len(functions)
    return dict(zip((function.name for function in functions), lines, strict=True))


checkers = pytest.mark.parametrize("checker", ["mypy", "pyright"])


@checkers
def test_what_users_write_is_accepted(verdicts, checker):
    faults = {place: messages for place, messages in verdicts[checker].items() if place[0] == "accepted.py"}
    assert faults == {}


@checkers
@pytest.mark.parametrize(("name", "line"), marked().items(), ids=marked())
def test_a_mistake_is_rejected(verdicts, checker, name, line):
    assert verdicts[checker].get(("rejected.py", line)), f"{checker} accepts {name}, rejected.py:{line}"


@checkers
def test_nothing_else_is_rejected(verdicts, checker):
    expected = {("rejected.py", line) for line in marked().values()}
    faults = {
        place: messages
        for place, messages in verdicts[checker].items()
        if place[0] == "rejected.py" and place not in expected
    }
    assert faults == {}
