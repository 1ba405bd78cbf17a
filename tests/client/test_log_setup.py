"""How a program sets up the logger ``aiosmrt``: by a variable of the environment, or by its own class of loggers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, aiosmrt
async def main():
    client = aiosmrt.Client("eu-central-1", endpoint_url="http://127.0.0.1:9", sign=False, patience=0)
    try:
        await client.invoke_endpoint(EndpointName="churn", Body=b"")
    except aiosmrt.TransportError:
        pass
    await client.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("value", "expected"), [("debug", True), ("DEBUG", True), ("info", False), ("", False), (None, False)]
)
def test_the_environment_sets_the_level(value: str | None, expected: bool) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "AIOSMRT_LOG"}
    if value is not None:
        environment["AIOSMRT_LOG"] = value
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("DEBUG] InvokeEndpoint churn: attempt 1 sends 0 bytes" in done.stderr) == expected
    assert expected or done.stderr == ""


def test_an_unknown_level_is_a_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "AIOSMRT_LOG": "loud"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "AIOSMRT_LOG must be debug or info; got 'loud'" in done.stderr


OWN_LOGGER = """
import logging, sys

class Logger(logging.Logger):
    on = False

    def isEnabledFor(self, level):
        return self.on and self.name == "aiosmrt"

logging.setLoggerClass(Logger)
logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
from aiosmrt._core.log import logs_debug

print(logs_debug())
Logger.on = True
print(logs_debug())
"""


def test_an_applications_own_logger_decides_itself() -> None:
    done = subprocess.run([sys.executable, "-c", OWN_LOGGER], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["False", "True"], "")
