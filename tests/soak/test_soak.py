"""The soak, in short and with more faults."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors and memory are counted in /proc")
@pytest.mark.parametrize("transport", ["pooled", "session"])
def test_nothing_is_left(transport: str) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-m", "tests.soak.soak"),
            *("--calls", "1000", "--in-flight", "32", "--faults", "0.1", "--transport", transport),
        ],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.endswith("ok\n")
