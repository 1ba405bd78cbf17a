"""The destination of a response body, and its state after a failure."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from aiosmrt.cli.outfile import Outfile

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


class Failed(Exception):
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def write(path: Path | str, *parts: bytes, atomic: bool, fail: bool = False) -> None:
    with Outfile(str(path), atomic=atomic) as file:
        for part in parts:
            file.write(part)
        if fail:
            raise Failed


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("before", [None, b"something longer that was there"])
def test_body_replaces_the_content(folder: Path, atomic: bool, before: bytes | None) -> None:
    target = folder / "out"
    if before is not None:
        target.write_bytes(before)
    write(target, b"body\x00", atomic=atomic)
    assert target.read_bytes() == b"body\x00"
    assert list(folder.iterdir()) == [target]


@pytest.mark.parametrize("atomic", [True, False])
def test_empty_body_truncates_the_file(folder: Path, atomic: bool) -> None:
    target = folder / "out"
    target.write_bytes(b"before")
    with Outfile(str(target), atomic=atomic) as file:
        file.start()
    assert target.read_bytes() == b""


def test_complete_body_replaces_the_file_atomically(folder: Path) -> None:
    target = folder / "out"
    target.write_bytes(b"before")
    with Outfile(str(target), atomic=True) as file:
        file.write(b"after")
        assert target.read_bytes() == b"before"
    assert target.read_bytes() == b"after"


def test_parts_are_visible_on_arrival(folder: Path) -> None:
    target = folder / "out"
    target.write_bytes(b"before")
    with Outfile(str(target), atomic=False) as file:
        assert target.read_bytes() == b"before"
        file.start()
        assert target.read_bytes() == b""
        file.write(b"one ")
        assert target.read_bytes() == b"one "
        file.write(b"two")
        assert target.read_bytes() == b"one two"


@pytest.mark.parametrize("atomic", [True, False])
def test_failure_before_the_body_changes_nothing(folder: Path, atomic: bool) -> None:
    with pytest.raises(Failed):
        write(folder / "out", atomic=atomic, fail=True)
    assert list(folder.iterdir()) == []
    (folder / "out").write_bytes(b"before")
    with pytest.raises(Failed):
        write(folder / "out", atomic=atomic, fail=True)
    assert (folder / "out").read_bytes() == b"before"
    assert list(folder.iterdir()) == [folder / "out"]


def test_failure_in_a_complete_body_keeps_the_old_file(folder: Path) -> None:
    (folder / "out").write_bytes(b"before")
    with pytest.raises(Failed):
        write(folder / "out", b"half", atomic=True, fail=True)
    assert (folder / "out").read_bytes() == b"before"
    assert list(folder.iterdir()) == [folder / "out"]


def test_failure_in_a_stream_keeps_the_received_parts(folder: Path) -> None:
    with pytest.raises(Failed):
        write(folder / "out", b"one ", b"two", atomic=False, fail=True)
    assert (folder / "out").read_bytes() == b"one two"


@pytest.mark.parametrize("atomic", [True, False])
def test_mode_and_links_are_preserved(folder: Path, atomic: bool) -> None:
    target, link = folder / "target", folder / "link"
    target.write_bytes(b"before")
    target.chmod(0o640)
    link.symlink_to(target)
    write(link, b"after", atomic=atomic)
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("atomic", [True, False])
def test_new_file_has_the_default_mode(folder: Path, atomic: bool) -> None:
    (folder / "usual").touch()
    write(folder / "out", b"body", atomic=atomic)
    assert (folder / "out").stat().st_mode == (folder / "usual").stat().st_mode


@pytest.mark.parametrize("atomic", [True, False])
def test_pipe_is_written_directly(folder: Path, atomic: bool) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write(pipe, b"one ", b"two", atomic=atomic)
    reader.join()
    assert read == [b"one two"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("atomic", [True, False])
def test_null_device_is_not_replaced(atomic: bool) -> None:
    write("/dev/null", b"body", atomic=atomic)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("atomic", [True, False])
def test_unwritable_path_fails_on_entering(folder: Path, atomic: bool) -> None:
    missing = folder / "missing" / "out"
    with pytest.raises(OSError, match="No such file") as caught:
        write(missing, atomic=atomic)
    assert caught.value.filename == str(missing)
    with pytest.raises(OSError, match="Is a directory"):
        write(folder, atomic=atomic)


@not_root
@pytest.mark.parametrize("atomic", [True, False])
def test_read_only_file_is_unchanged(folder: Path, atomic: bool) -> None:
    (folder / "out").write_bytes(b"before")
    (folder / "out").chmod(0o444)
    with pytest.raises(PermissionError):
        write(folder / "out", b"after", atomic=atomic)
    assert (folder / "out").read_bytes() == b"before"


@not_root
def test_writable_file_in_a_read_only_folder_is_written_in_place(folder: Path) -> None:
    (folder / "out").write_bytes(b"before")
    folder.chmod(0o555)
    try:
        write(folder / "out", b"after", atomic=True)
    finally:
        folder.chmod(0o755)
    assert (folder / "out").read_bytes() == b"after"
