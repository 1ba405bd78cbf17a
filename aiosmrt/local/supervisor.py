"""The small process that runs between this package and a server that it starts, so that the server outlives neither.

Run as a script (``python -I -S supervisor.py GRACE PARENT_PID COUNT PATH... COMMAND...``), never imported by the
package. It removes the COUNT paths at the end.

Theory of operation. The process that starts a server holds the write end of the supervisor's standard input and never
writes to it. End of file on standard input therefore means "stop", and it also means "the parent died", however it
died: one mechanism for both, without a signal handler in the parent. The other way is SIGTERM: kill at once.

Stopping follows the service's ``docker stop``: SIGTERM to the main process, SIGKILL after the grace period, and
everything that the main process leaves behind dies with it. A PID namespace would do the latter; without one, the
supervisor makes itself the subreaper of its descendants (Linux), so that those which daemonise or change their process
group are reparented to it and killed too. Elsewhere the main process's group is killed.

It ends the way the main process ended: with its exit code, or by the same signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ORPHAN_CHECK_INTERVAL = 1.0  # a fork of the parent may keep our standard input open
COMMAND_NOT_EXECUTABLE = 126  # the shell's exit codes
COMMAND_NOT_FOUND = 127
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def prctl(option: int, argument: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) == 0)


def start(command: list[str]) -> int:
    """Fork and execute the command in its own process group; return its process id."""
    supervisor = os.getpid()
    # Until the child has its own handlers, a signal to it would go to ours: it would be lost, and wake us instead.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid
    try:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(COMMAND_NOT_EXECUTABLE)
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606 - the parent's own command
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(COMMAND_NOT_FOUND if isinstance(error, FileNotFoundError) else COMMAND_NOT_EXECUTABLE)


def children() -> list[int]:
    """Return the process ids of our direct children (Linux), adopted orphans included."""
    own, found = str(os.getpid()), []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command name may hold spaces and parentheses; state and parent follow its last one.
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if fields[1] == own:
            found.append(int(entry.parent.name))
    return found


def signal_process(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_descendants(group: int, *, adopted: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # EPERM: macOS, when only zombies are left
        os.killpg(group, signal.SIGKILL)
    while adopted:
        for pid in children():
            signal_process(pid, signal.SIGKILL)
        try:
            # A process's children are ours before it can be waited for: the next round misses none.
            os.wait()
        except ChildProcessError:
            return


def supervise(grace: float, parent: int, command: list[str]) -> int:
    """Run the command until it ends or is stopped, then kill what it left behind; return its wait status."""
    adopted = prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    for number in HANDLED:
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    main = start(command)

    watched, kill_at = [0, wake_read], None
    while True:
        timeout = ORPHAN_CHECK_INTERVAL if kill_at is None else max(0.0, min(1.0, kill_at - time.monotonic()))
        ready = select.select(watched, [], [], timeout)[0]
        signals = os.read(wake_read, 512) if wake_read in ready else b""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == main:
                kill_descendants(main, adopted=adopted)
                return status
            if pid == 0:
                break
        if signals.strip(bytes([signal.SIGCHLD])):
            signal_process(main, signal.SIGKILL)
        if kill_at is None and (os.getppid() != parent or (0 in ready and not os.read(0, 512))):
            watched.remove(0)
            kill_at = time.monotonic() + grace
            signal_process(main, signal.SIGTERM)
        elif kill_at is not None and time.monotonic() >= kill_at:
            kill_at = float("inf")
            signal_process(main, signal.SIGKILL)


def remove(paths: list[str]) -> None:
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114 - these do not raise
            import shutil  # needed at the end of an object server only

            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - as above


def main() -> None:
    grace, parent, count, *rest = sys.argv[1:]
    paths, command = rest[: int(count)], rest[int(count) :]
    status = supervise(float(grace), int(parent), command)
    remove(paths)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the server may have dumped core; a second dump is useless
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
