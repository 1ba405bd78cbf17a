"""What runs where: the client needs nothing that Windows lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WITHOUT_UNIX = Path(__file__).with_name("without_unix.py")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(WITHOUT_UNIX), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_client_works_without_what_windows_lacks(tmp_path: Path) -> None:
    # first_lines.py refuses a checkout beside its page.
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text())
    done = run(ROOT / ".ci" / "first_lines.py", page)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "README.md: its first lines made 2 calls\n"


def test_public_modules_import_without_what_windows_lacks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import aiosmrt, aiosmrt.batch, aiosmrt.config, aiosmrt.endpoint, aiosmrt.errors, aiosmrt.events\n"
        "import aiosmrt.local, aiosmrt.serializers, aiosmrt.testing, aiosmrt.types\n"
        "try:\n    import resource\nexcept ModuleNotFoundError:\n    print('hidden')\n"
    )
    done = run(script)
    assert (done.returncode, done.stdout) == (0, "hidden\n"), done.stderr


def test_classifiers_and_readme_name_the_same_platforms() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    systems = {line.rpartition(" :: ")[2] for line in project["classifiers"] if line.startswith("Operating System")}
    names = {"Linux": "Linux", "MacOS X": "macOS", "Windows": "Windows"}
    sentence = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("Platforms: "))
    assert {names[system] for system in systems} == {name for name in names.values() if name in sentence}
