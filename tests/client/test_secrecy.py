"""Credentials, payloads and custom attributes never reach a log, a representation or an error.

Everything is done with values that carry a marker, at the lowest log level, and everything that produces text is
searched for the markers afterwards: log records, representations, errors with all that hangs on them, events.
"""

import asyncio
import gc
import io
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client, RetryPolicy, errors
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from tests.support.peers import REGION
from tests.support.recording_server import Answer, RecordingServer, Response, respond, respond_in_turn

MARKERS = {
    "secret key": "MARKsecretkey",
    "session token": "MARKsessiontoken",
    "request payload": "MARKrequestpayload",
    "response payload": "MARKresponsepayload",
    "custom attributes": "MARKcustomattributes",
    "response attributes": "MARKresponseattributes",
}
SECRET, TOKEN, REQUEST, REPLY, ATTRIBUTES, REPLY_ATTRIBUTES = MARKERS.values()


class Said:
    """Every text that was produced, with its origin."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def add(self, where: str, *values: object) -> None:
        for value in values:
            self.texts.append((where, repr(value)))
            self.texts.append((where, str(value)))

    def add_error(self, where: str, error: BaseException) -> None:
        seen: set[int] = set()
        queue: list[BaseException | None] = [error]
        while queue:
            one = queue.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            queue += [one.__cause__, one.__context__]
            self.add(where, one, *one.args, getattr(one, "__notes__", ""))
            self.texts.append((where, "".join(traceback.format_exception(one))))
            for name, value in vars(one).items():
                self.add(f"{where}.{name}", value)
            if isinstance(one, errors.AiosmrtError):
                self.texts.append((where, repr(pickle.dumps(one))))

    def add_objects(self) -> None:
        """Add every object of ours that is alive."""
        ours = [thing for thing in gc.get_objects() if str(type(thing).__module__).startswith("aiosmrt.")]
        assert len(ours) > 20
        for thing in ours:
            # Wire records are plain tuples and are never shown anywhere; their classes show their names.
            if type(thing).__module__ not in ("aiosmrt._transport.base", "aiosmrt._wire.params"):
                self.add(f"{type(thing).__module__}.{type(thing).__name__}", thing)

    def leaks(self) -> list[str]:
        return sorted(
            {f"{what} in {where}" for where, text in self.texts for what, marker in MARKERS.items() if marker in text}
        )


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    caplog.set_level(logging.DEBUG)
    for name in ("aiosmrt", "aiohttp", "asyncio", "botocore", "aiobotocore"):
        caplog.set_level(logging.DEBUG, name)
    return Said()


@pytest.fixture
async def client(server: RecordingServer, said: Said) -> Any:
    async with Client(
        REGION,
        endpoint_url=server.url,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key=SECRET,
        aws_session_token=TOKEN,
        retry=RetryPolicy(max_attempts=2, base_delay=0.0, throttling_base_delay=0.0),
        observers=[lambda event: said.add(type(event).__name__, event)],
    ) as client:
        yield client


CALL: dict[str, Any] = {"EndpointName": "e", "Body": REQUEST.encode(), "CustomAttributes": ATTRIBUTES}
PART = encode_payload_part(REPLY.encode())
HEADERS = [("X-Amzn-SageMaker-Custom-Attributes", REPLY_ATTRIBUTES), ("Content-Type", "text/plain")]


def raw(content: bytes) -> Answer:
    return lambda request: Response(raw=content, cut=True)


async def silent(request: Any) -> Response:
    await asyncio.Event().wait()
    return Response()


ANSWERS: dict[str, Answer] = {
    "success": respond(200, REPLY.encode(), HEADERS),
    "cut": lambda request: Response(200, HEADERS, REPLY.encode(), declared_length=999, cut=True),
    "reset": lambda request: None,
    "reset-in-body": lambda request: Response(200, HEADERS, REPLY.encode(), declared_length=999, reset=True),
    "broken-header": raw(b"HTTP/1.1 200 OK\r\nBroken\x00Header: " + REPLY.encode() + b"\r\n\r\n"),
    "broken-length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + REPLY.encode() + b"\r\n\r\n"),
    "no-http": raw(REPLY.encode() * 100),
    "head-cut": raw(f"HTTP/1.1 200 OK\r\n{HEADERS[0][0]}: {HEADERS[0][1]}\r\nContent-".encode()),
    "broken-chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + REPLY.encode() + b"\r\n"),
    "silence": silent,
    "ValidationError": respond(400, b'{"Message": "no"}', [("x-amzn-errortype", "ValidationError"), *HEADERS]),
    "ThrottlingException": respond(400, b'{"message":null}', [("x-amzn-errortype", "ThrottlingException")]),
    "ModelError": respond(424, b'{"Message": "m", "OriginalStatusCode": 500}', [("x-amzn-errortype", "ModelError")]),
    "InternalFailure": respond(500, b"{}", [("x-amzn-errortype", "InternalFailure")]),
    "signature": respond(403, b'{"message": "bad"}', [("x-amzn-errortype", "InvalidSignatureException")]),
    "expired": respond(403, b'{"message": "old"}', [("x-amzn-errortype", "ExpiredTokenException")]),
    "html": respond(502, b"<html>bad gateway</html>"),
    "retried": respond_in_turn(Response(503, (), b"{}"), Response(200, HEADERS, REPLY.encode())),
    "stream": respond(200, PART, HEADERS),
    "stream-error": respond(200, PART + encode_exception("ModelStreamError", b'{"Message": "m"}'), HEADERS),
    "stream-cut": respond(200, PART + PART[:-7], HEADERS),
    "stream-bad-checksum": respond(200, PART[:-1] + b"\x00", HEADERS),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_calls_keep_their_secrets(
    client: Client, server: RecordingServer, said: Said, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    server.answer = ANSWERS[case]
    outcomes: list[str] = []
    caller = client.with_options(read_timeout=0.2) if case == "silence" else client
    for invoke in (caller.invoke_endpoint, caller.invoke_endpoint_async, caller.invoke_endpoint_with_response_stream):
        try:
            response: Any = await invoke(**CALL)
            said.add("statistics", client.statistics())
            body = response.get("Body")
            said.add("body", body)
            if hasattr(body, "read"):
                await body.read(3)
                said.add("body", body)
                await body.read()
            elif body is not None:
                async with body as stream:
                    async for _ in stream:
                        said.add("stream", stream)
                said.add("stream", body)
            outcomes.append("done")
        except errors.AiosmrtError as error:
            outcomes.append(type(error).__name__)
            error_response = getattr(error, "response", None)
            if error_response is not None:
                # botocore's dictionary holds all response headers, as it must; they are not secret.
                headers = error_response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
                headers.pop("x-amzn-sagemaker-custom-attributes", None)
            said.add_error(type(error).__name__, error)
    assert len(outcomes) == 3
    said.add("client", client, client.with_options(deadline=1.0), client.meta, client.statistics())
    for record in caplog.records:
        said.add(f"log {record.name}", record.getMessage(), record.args, record.exc_text)
    assert said.leaks() == []
    # The markers did travel, so there was something to leak.
    assert any(REQUEST.encode() in request.body for request in server.requests)
    assert all(request.header("X-Amz-Security-Token") == TOKEN for request in server.requests)


BAD_CALLS: dict[str, dict[str, Any]] = {
    "attributes-too-long": {**CALL, "CustomAttributes": ATTRIBUTES * 99},
    "attributes-of-two-lines": {**CALL, "CustomAttributes": f"{ATTRIBUTES}\r\nX-Evil: 1"},
    "attributes-not-ascii": {**CALL, "CustomAttributes": f"{ATTRIBUTES} ü"},
    "attributes-not-text": {**CALL, "CustomAttributes": [ATTRIBUTES]},
    "body-of-wrong-type": {**CALL, "Body": [REQUEST]},
    "body-text-file": {**CALL, "Body": io.StringIO(REQUEST)},
    "name-beside": {**CALL, "EndpointName": "-"},
}


@pytest.mark.parametrize("case", BAD_CALLS)
async def test_refused_parameters_keep_their_secrets(client: Client, said: Said, case: str) -> None:
    for call in (
        client.invoke_endpoint(**BAD_CALLS[case]),
        client.invoke_endpoint_async(**BAD_CALLS[case]),
        client.invoke_endpoint_with_response_stream(**BAD_CALLS[case]),
        client.make_request("InvokeEndpoint", BAD_CALLS[case]),
        client.generate_presigned_url("invoke_endpoint", BAD_CALLS[case]),
    ):
        with pytest.raises(errors.ParamValidationError) as caught:
            await call
        # pytest's own record of the call holds its arguments; our error's own text is checked.
        said.add("message", caught.value, caught.value.faults, caught.value.kwargs)
    assert said.leaks() == []


async def test_objects_keep_their_secrets(client: Client, server: RecordingServer, said: Said) -> None:
    """Every object of ours that is alive during a call and a stream."""
    server.answer = respond(200, PART * 3, HEADERS)
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        await anext(stream)
        said.add_objects()
    assert said.leaks() == []


async def test_a_proxys_password_is_kept(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingServer(respond(407, b"who are you?")) as proxy:
        for address in (proxy.host, "127.0.0.1:1"):
            for scheme in ("http", "https"):
                monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:{SECRET}@{address}")
                async with Client(
                    REGION,
                    endpoint_url=f"{scheme}://runtime.example",
                    aws_access_key_id="AKIDEXAMPLE",
                    aws_secret_access_key="fake",
                    retry=RetryPolicy(max_attempts=1),
                ) as client:
                    with pytest.raises(errors.AiosmrtError) as caught:
                        await client.invoke_endpoint(EndpointName="e", Body=b"")
                    said.add_error(f"{scheme} by {address}", caught.value)
                    said.add("client", client, client.meta)
                    said.add_objects()
        # The proxy alone received it.
        assert all(request.header("Proxy-Authorization") for request in proxy.requests)
        assert len(proxy.requests) == 2
    assert said.leaks() == []


@pytest.mark.parametrize(
    "configure",
    [
        lambda path, env: env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE") or env("AWS_SECRET_ACCESS_KEY", SECRET),
        lambda path, env: env("AWS_SECRET_ACCESS_KEY", SECRET),
        lambda path, env: path.write_text(f"[default]\naws_secret_access_key = {SECRET}\n"),
        lambda path, env: path.write_text(
            f"[default]\naws_access_key_id = AKIDEXAMPLE\n"
            f"aws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
        ),
        lambda path, env: path.write_text(f"aws_secret_access_key = {SECRET}\n[default\n"),
    ],
    ids=["environment", "half-environment", "half-profile", "profile", "broken-file"],
)
async def test_configuration_keeps_its_secrets(
    server: RecordingServer,
    said: Said,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    configure: Callable[[Path, Callable[[str, str], None]], object],
) -> None:
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    configure(path, monkeypatch.setenv)
    async with Client(REGION, endpoint_url=server.url) as client:
        try:
            await client.invoke_endpoint(**CALL)
        except errors.ConfigurationError as error:
            said.add_error(type(error).__name__, error)
        said.add("client", client, client.statistics())
    for record in caplog.records:
        said.add(f"log {record.name}", record.getMessage(), record.args, record.exc_text)
    assert said.leaks() == []
