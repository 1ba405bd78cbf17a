"""The event-stream fuzzer, briefly: its length is a number of cases, so a run is the same run everywhere."""

import json

import pytest

from aiosmrt._wire.eventstream import Decoder, Message
from aiosmrt.errors import EventStreamFormatError
from tests.fuzz import eventstream as fuzz


def test_decoder_agrees_with_the_specification_and_with_botocore() -> None:
    report = fuzz.run(seed=20171129, cases=3000)
    assert report.finding is None, (report.finding, report.stream.hex(), report.cuts)
    # The damage has to reach every kind of check, or the run proves nothing.
    assert report.accepted > 300
    assert report.faults is not None
    assert min(report.faults.values()) > 100
    assert sorted(report.faults) == [
        "ChecksumMismatchError",
        "FrameLengthError",
        "HeaderFormatError",
        "TruncatedStreamError",
    ]


class _Forgiving(Decoder):
    def finish(self) -> None:
        pass


class _Forgetful(Decoder):
    def feed(self, chunk: bytes | bytearray | memoryview) -> list[Message]:
        messages = super().feed(chunk)
        failure = self.failure
        if failure is not None:
            raise failure
        return messages


class _Crashing(Decoder):
    def feed(self, chunk: bytes | bytearray | memoryview) -> list[Message]:
        try:
            return super().feed(chunk)
        except EventStreamFormatError as error:
            raise KeyError(str(error)) from error


@pytest.mark.parametrize(
    ("decoder_type", "finding"),
    [(_Forgiving, "the specification"), (_Forgetful, "ours: 0 messages"), (_Crashing, "KeyError")],
)
def test_fuzzer_finds_faults(decoder_type: type[Decoder], finding: str) -> None:
    report = fuzz.run(seed=1, cases=500, decoder_type=decoder_type)
    assert report.finding is not None
    assert finding in report.finding
    with pytest.raises((fuzz.Disagreement, KeyError)):
        fuzz.check(report.stream, report.cuts, decoder_type)


def test_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz.main(["--seconds", "0.05", "--seed", "3"]) == 0
    assert "accepted" in capsys.readouterr().out

    monkeypatch.setattr(fuzz, "decode_with_botocore", lambda stream: fuzz.Outcome([], "ParserError"))
    assert fuzz.main(["--seconds", "5", "--seed", "3"]) == 1
    reproducer = capsys.readouterr().out.split("--reproduce '")[1].rstrip("'\n")
    assert json.loads(reproducer)["stream"]
    with pytest.raises(fuzz.Disagreement):
        fuzz.main(["--reproduce", reproducer])
    monkeypatch.undo()
    assert fuzz.main(["--reproduce", reproducer]) == 0
