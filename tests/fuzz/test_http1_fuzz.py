"""The HTTP/1.1 fuzzer, briefly: its length is a number of cases, so a run is the same run everywhere."""

import json
from dataclasses import replace

import pytest

from aiosmrt._transport.connection import Connection
from aiosmrt._wire.http1 import HeadParser, HTTPResponseError, ResponseHead
from tests.fuzz import http1 as fuzz


def test_parser_agrees_with_llhttp() -> None:
    report = fuzz.run(seed=9112, cases=8000, connections=False)
    assert report.finding is None, (report.finding, report.stream, report.cuts)
    # The damage has to reach every kind of check, or the run proves nothing.
    assert report.accepted > 2000
    assert report.incomplete > 20
    assert min(report.refusals.values()) > 2
    assert sorted(report.refusals) == [
        "1xx response announces a body or closes the connection",
        "CR or LF outside CRLF",
        "Content-Length is not a number",
        "Content-Length together with Transfer-Encoding",
        "Transfer-Encoding in HTTP/1.0",
        "Transfer-Encoding is not chunked",
        "chunk data not terminated by CRLF",
        "malformed chunk",
        "malformed chunk size",
        "malformed header field, or too many fields",
        "malformed status line",
        "malformed trailer field",
        "not an HTTP/1 response",
        "repeated Content-Length or Transfer-Encoding",
        "unexpected 101 Switching Protocols",
    ]


def test_connection_agrees_with_parser() -> None:
    report = fuzz.run(seed=9110, cases=4000)
    assert report.finding is None, (report.finding, report.stream, report.cuts)
    assert report.accepted > 1000


class _Lenient(HeadParser):
    """Takes spaces before a colon away."""

    def parse(self, head: bytes) -> ResponseHead:
        return super().parse(head.replace(b" :", b":"))


class _Strict(HeadParser):
    def parse(self, head: bytes) -> ResponseHead:
        if b"\t" in head:
            raise HTTPResponseError("a tab")
        return super().parse(head)


class _Hopeful(HeadParser):
    def parse(self, head: bytes) -> ResponseHead:
        return replace(super().parse(head), persistent=True)


class _Forgetful(HeadParser):
    """Loses the fields of each fiftieth head that it parses."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def parse(self, head: bytes) -> ResponseHead:
        self.count += 1
        found = super().parse(head)
        return replace(found, headers={}) if self.count % 50 == 0 else found


class _Crashing(HeadParser):
    def parse(self, head: bytes) -> ResponseHead:
        try:
            return super().parse(head)
        except HTTPResponseError as error:
            raise KeyError(str(error)) from error


@pytest.mark.parametrize(
    ("parser_type", "finding"),
    [
        (_Lenient, "llhttp: refused"),
        (_Strict, "not damaged, but refused: a tab"),
        (_Hopeful, "llhttp would not use the connection again"),
        (_Forgetful, "; whole: "),
        (_Crashing, "KeyError"),
    ],
)
def test_fuzzer_finds_faults_of_the_parser(parser_type: type[HeadParser], finding: str) -> None:
    report = fuzz.run(seed=1, cases=3000, parser_type=parser_type, connections=False)
    assert report.finding is not None
    assert finding in report.finding


@pytest.mark.parametrize(
    ("method", "finding"),
    [("fail", "open after"), ("discard", "open after"), ("_complete", "not answered")],
)
def test_fuzzer_finds_faults_of_the_connection(method: str, finding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, method, lambda self, *arguments: None)
    report = fuzz.run(seed=1, cases=3000)
    assert report.finding is not None
    assert finding in report.finding


def test_findings_are_made_short() -> None:
    report = fuzz.run(seed=1, cases=3000, parser_type=_Lenient, connections=False)
    assert b" :" in report.stream
    assert len(report.stream) < 60

    stream, cuts = fuzz.minimised(b"some bytes\r\n, others", [3, 7, 11], lambda s, c: b"\r\n" in s and bool(c))
    assert stream == b"\r\n"
    assert len(cuts) == 1


def test_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz.main(["--seconds", "0.05", "--seed", "3", "--parser-alone"]) == 0
    assert "accepted" in capsys.readouterr().out

    monkeypatch.setattr(fuzz, "read_with_llhttp", lambda stream: fuzz.Outcome(refusal="anything"))
    assert fuzz.main(["--seconds", "5", "--seed", "3", "--parser-alone"]) == 1
    reproducer = capsys.readouterr().out.split("--reproduce '")[1].rstrip("'\n")
    assert json.loads(reproducer)["stream"]
    with pytest.raises(fuzz.Disagreement):
        fuzz.main(["--reproduce", reproducer])
    monkeypatch.undo()
    assert fuzz.main(["--reproduce", reproducer]) == 0
