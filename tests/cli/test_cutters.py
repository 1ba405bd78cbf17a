"""How standard input becomes messages, whatever pieces it is read in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt.cli.cutters import AsItComes, Cutter, Frames, Lines, UnreadableInputError

PIECES = st.lists(
    st.one_of(st.binary(max_size=6), st.sampled_from([b"\n", b"\r", b"\r\n", "é".encode()[:1], "é".encode()[1:]]))
)


def cut(cutter: Cutter, pieces: list[bytes]) -> list[bytes | str]:
    return [message for piece in pieces for message in cutter.feed(piece)] + list(cutter.finish())


@given(PIECES)
def test_lines_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    lines = whole.split(b"\n")
    expected = [line.removesuffix(b"\r") for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    assert cut(Lines(is_text=False), pieces) == expected
    try:
        texts = [line.decode() for line in expected]
    except UnicodeDecodeError:
        with pytest.raises(UnreadableInputError):
            cut(Lines(is_text=True), pieces)
    else:
        assert cut(Lines(is_text=True), pieces) == texts


@given(PIECES)
def test_text_is_sent_in_whole_characters_and_a_fault_has_its_place(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    position = None
    try:
        text = whole.decode()
    except UnicodeDecodeError as error:
        position = error.start
    if position is not None:
        cutters: list[Cutter] = [Lines(is_text=True), AsItComes(is_text=True)]
        for cutter in cutters:
            with pytest.raises(UnreadableInputError, match=rf" at byte {position};"):
                cut(cutter, pieces)
    else:
        messages = cut(AsItComes(is_text=True), pieces)
        assert "".join(map(str, messages)) == text
        assert "" not in messages
    assert cut(AsItComes(is_text=False), pieces) == [piece for piece in pieces if piece]


@given(PIECES, st.integers(1, 9))
def test_frames_have_one_size(pieces: list[bytes], size: int) -> None:
    frames = [bytes(frame, "ascii") if isinstance(frame, str) else frame for frame in cut(Frames(size), pieces)]
    assert b"".join(frames) == b"".join(pieces)
    assert {len(frame) for frame in frames[:-1]} <= {size}
    assert all(0 < len(frame) <= size for frame in frames)
