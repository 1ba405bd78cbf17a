"""What a look-up of credentials starts ends with it: a prompt on the terminal, a credential process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosmrt import Client
from aiosmrt._aws.lookup import LookUp
from tests.aws.fake_services import ROLE_ARN, CredentialServices
from tests.support.config_files import ConfigFiles
from tests.support.recording_server import RecordingServer

if sys.platform == "win32":
    pytest.skip("needs a terminal as POSIX has it", allow_module_level=True)

import select
import termios

PROGRAM = """
import asyncio, fcntl, signal, sys, termios
# As in the foreground. A shell makes programs that it starts with & ignore it, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # standard input becomes the terminal of this session
import aiosmrt

async def main():
    async with aiosmrt.Client(endpoint_url=sys.argv[1]{arguments}) as client:
        call = asyncio.create_task(client.invoke_endpoint(EndpointName="churn", Body=b"1"))
        {wait}
    {after}

{run}
"""
RUN = "asyncio.run(main())"
# It asks by itself.
BOTOCORE_OBJECT = ", credentials=__import__('botocore.session').session.Session().get_credentials()"
SECONDS = 60.0


def program(wait: str = "await call", after: str = "pass", *, arguments: str = "", run: str = RUN) -> str:
    return PROGRAM.format(wait=wait, after=after, arguments=arguments, run=run)


class Terminal:
    """A program in its own terminal."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.output = b""
        self._file, self._slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )

    def read_until(self, text: bytes) -> None:
        end = time.monotonic() + SECONDS
        while text not in self.output:
            assert time.monotonic() < end, self.output
            self.read()

    def read(self) -> None:
        if select.select([self._file], [], [], 0.1)[0]:
            self.output += os.read(self._file, 4096)

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def write(self, data: bytes) -> None:
        os.write(self._file, data)

    def wait(self) -> int:
        end = time.monotonic() + SECONDS
        while (code := self.process.poll()) is None:
            assert time.monotonic() < end, self.output
            self.read()
        while select.select([self._file], [], [], 0)[0]:
            self.read()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._file)
        os.close(self._slave)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@pytest.fixture(autouse=True)
def mfa_profile(config_files: ConfigFiles, monkeypatch: pytest.MonkeyPatch, services: CredentialServices) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
    monkeypatch.setenv("AWS_PROFILE", "mfa")
    config_files(
        f"[profile mfa]\nregion = eu-west-1\nrole_arn = {ROLE_ARN}\nsource_profile = base\n"
        "mfa_serial = arn:aws:iam::123456789012:mfa/someone\n",
        "[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = base-secret\n",
    )


@pytest.mark.parametrize(
    "started",
    [
        program(),
        # Nothing is cancelled.
        program(run="asyncio.new_event_loop().run_until_complete(main())"),
        program(arguments=BOTOCORE_OBJECT),
        pytest.param(
            program(run="asyncio.Runner(loop_factory=eager).run(main())").replace(
                "async def main",
                "def eager():\n"
                "    loop = asyncio.new_event_loop()\n"
                "    loop.set_task_factory(asyncio.eager_task_factory)\n"
                "    return loop\n\n"
                "async def main",
            ),
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"),
        ),
    ],
    ids=["asyncio.run", "run_until_complete", "a botocore object", "eager tasks"],
)
async def test_the_first_ctrl_c_at_the_prompt_ends_the_program_and_leaves_the_terminal_in_order(
    terminals: list[Terminal], started: str
) -> None:
    terminal = Terminal(started, "http://127.0.0.1:9")
    terminals.append(terminal)
    await asyncio.to_thread(terminal.read_until, b"Enter MFA code for arn:aws:iam::123456789012:mfa/someone: ")
    while terminal.echoes:
        await asyncio.sleep(0.01)
    terminal.write(b"\x03")
    assert await asyncio.to_thread(terminal.wait) != 0
    assert b"KeyboardInterrupt" in terminal.output
    assert b"Fatal" not in terminal.output
    assert terminal.echoes


@pytest.mark.parametrize("arguments", ["", BOTOCORE_OBJECT], ids=["chain", "a botocore object"])
async def test_a_client_closed_at_the_prompt_leaves_the_terminal_in_order(
    terminals: list[Terminal], tmp_path: Path, arguments: str
) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    wait = "await asyncio.to_thread(open, sys.argv[2])"
    after = "print('closed', flush=True); await asyncio.sleep(600)"
    terminal = Terminal(program(wait, after, arguments=arguments), "http://127.0.0.1:9", str(go_on))
    terminals.append(terminal)
    await asyncio.to_thread(terminal.read_until, b"Enter MFA code")
    while terminal.echoes:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(go_on.write_text, "")
    await asyncio.to_thread(terminal.read_until, b"closed")
    assert terminal.echoes


async def test_no_thread_stays_at_the_prompt_of_a_client_that_was_closed(
    terminals: list[Terminal], tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    after = (
        "import threading\n"
        "    for thread in threading.enumerate():\n"
        "        if thread.daemon: thread.join(20)\n"
        "    print('left', sum(thread.daemon for thread in threading.enumerate()), flush=True)"
    )
    terminal = Terminal(program("await asyncio.to_thread(open, sys.argv[2])", after), "http://127.0.0.1:9", str(go_on))
    terminals.append(terminal)
    await asyncio.to_thread(terminal.read_until, b"Enter MFA code")
    await asyncio.to_thread(go_on.write_text, "")
    await asyncio.to_thread(terminal.read_until, b"left ")
    await asyncio.to_thread(terminal.wait)
    assert b"left 0" in terminal.output


async def test_a_code_is_passed_on(terminals: list[Terminal], services: CredentialServices) -> None:
    async with RecordingServer() as server:
        terminal = Terminal(program(after="print('done')"), server.url)
        terminals.append(terminal)
        await asyncio.to_thread(terminal.read_until, b"Enter MFA code")
        while terminal.echoes:
            await asyncio.sleep(0.01)
        terminal.write(b"987654\n")
        assert await asyncio.to_thread(terminal.wait) == 0
        assert b"done" in terminal.output
        assert b"987654" not in terminal.output
        assert terminal.echoes
        assert services.requests[-1][2]["TokenCode"] == "987654"
        assert len(server.requests) == 1


def test_an_abandoned_look_up_asks_and_starts_nothing() -> None:
    look_up = LookUp()
    look_up.abandon()
    with pytest.raises(RuntimeError, match="abandoned"):
        look_up.ask("Enter MFA code: ")
    with pytest.raises(RuntimeError, match="abandoned"):
        look_up.start_process([sys.executable, "-c", ""])


def test_abandoning_kills_the_process_and_may_be_repeated() -> None:
    look_up = LookUp()
    process = look_up.start_process([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.PIPE)
    waiting = threading.Thread(target=process.communicate)
    waiting.start()
    look_up.abandon()
    waiting.join(SECONDS)
    assert process.returncode not in (None, 0)
    look_up.abandon()


async def test_closing_a_client_does_not_wait_for_an_object_that_blocks() -> None:
    entered, release, left = threading.Event(), threading.Event(), threading.Event()

    class Blocking:
        def get_frozen_credentials(self) -> None:
            entered.set()
            release.wait(SECONDS)
            left.set()

    try:
        async with Client("eu-west-1", endpoint_url="http://127.0.0.1:9", credentials=Blocking()) as client:
            call = asyncio.create_task(client.invoke_endpoint(EndpointName="churn", Body=b"1"))
            assert await asyncio.to_thread(entered.wait, SECONDS)
            call.cancel()
            await asyncio.wait((call,))
        assert not left.is_set()
    finally:
        release.set()
