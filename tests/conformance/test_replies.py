"""Result and error dictionaries against those of botocore, for responses that are handed to both as they stand.

botocore gets them through `before-send`, the event by which its own Stubber answers without a network: all of its
parsing runs as it does for a real response.
"""

import io
import json
import re
from typing import Any, cast

import botocore
import hypothesis.strategies as st
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from botocore.session import get_session
from hypothesis import given

from aiosmrt._wire.eventstream import Decoder
from aiosmrt._wire.operations import BY_NAME, OPERATIONS
from aiosmrt._wire.replies import ReplyReader, failure, stream_failure
from tests.support.eventstream import encode
from tests.support.peers import CLIENT_ARGUMENTS


class Raw(io.BytesIO):
    """A urllib3 response as far as botocore reads it."""

    def stream(self, amt: int = 1024, **options: object) -> Any:
        while chunk := self.read(amt):
            yield chunk


class Botocore:
    """botocore's client, answering with a response that is put in."""

    def __init__(self) -> None:
        config = Config(retries={"total_max_attempts": 1, "mode": "standard"})
        self.client = get_session().create_client(
            "sagemaker-runtime", endpoint_url="http://127.0.0.1:1", config=config, **CLIENT_ARGUMENTS
        )
        self.client.meta.events.register("before-send.sagemaker-runtime.*", cast("Any", self._answer))
        self._response: tuple[int, dict[str, str], bytes] = (200, {}, b"")

    def _answer(self, request: Any, **event: object) -> AWSResponse:
        from botocore.compat import HTTPHeaders

        status, headers, body = self._response
        return AWSResponse(request.url, status, HTTPHeaders.from_dict(headers), Raw(body))

    def call(self, operation: str, status: int, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        """The result, or the error's `response`; what else botocore raises goes through."""
        self._response = (status, headers, body)
        method = getattr(self.client, BY_NAME[operation].method)
        params = {"EndpointName": "e", "Body": b""}
        if operation == "InvokeEndpointAsync":
            params = {"EndpointName": "e", "InputLocation": "s3://b/k"}
        try:
            result: dict[str, Any] = method(**params)
        except ClientError as error:
            return dict(error.response)
        return result


BOTOCORE = Botocore()


def comparable(response: dict[str, Any]) -> dict[str, Any]:
    """Without what only a client adds: the count of attempts and whether it gave up."""
    metadata = {
        k: v for k, v in response["ResponseMetadata"].items() if k not in ("RetryAttempts", "MaxAttemptsReached")
    }
    metadata["HTTPHeaders"] = dict(metadata["HTTPHeaders"])
    return {**response, "ResponseMetadata": metadata}


CODES = [
    "ValidationError",
    "ThrottlingException",
    "ModelError",
    "ModelNotReadyException",
    "InternalFailure",
    "ServiceUnavailable",
    "InternalDependencyException",
    "AccessDeniedException",
    "com.amazonaws.sagemaker#ModelError",
    "ModelError:http://internal.amazon.com/coral/com.amazon.coral.service/",
    "com.amazon#ValidationError:http://internal.amazon.com/coral/",
    "",
]
TEXT = st.text(max_size=20)
HEADER_TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "message": TEXT | st.none(),
        "Message": TEXT | st.none(),
        "code": st.sampled_from(CODES),
        "Code": st.sampled_from(CODES),
        "__type": st.sampled_from(CODES),
        "OriginalStatusCode": st.integers(0, 999) | st.none(),
        "OriginalMessage": TEXT | st.none(),
        "LogStreamArn": TEXT,
        "ErrorCode": TEXT,
        "Unknown": TEXT,
    },
)
BODIES = st.one_of(
    DOCUMENTS.map(lambda document: json.dumps(document).encode()),
    DOCUMENTS.map(lambda document: json.dumps(document, ensure_ascii=False).encode()),
    st.sampled_from(
        [
            b"",
            b"  ",
            b"<html><body><h1>503 Service Unavailable</h1></body></html>",
            b"<HTML></HTML>",
            b"<!DOCTYPE html><html></html>",
            b"  <html></html>",
            b"upstream connect error",
            b'{"message": "cut o',
        ]
    ),
    TEXT.map(lambda text: text.encode("utf-8", "replace")),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-amzn-errortype": st.sampled_from([code for code in CODES if code]),
        "x-amzn-requestid": HEADER_TEXT,
        "x-amz-request-id": HEADER_TEXT,
        "x-amz-id-2": HEADER_TEXT,
        "content-type": st.sampled_from(["application/json", "text/html"]),
        "x-amz-retry-after": st.just("1500"),
    },
)
STATUSES = st.sampled_from([400, 403, 404, 413, 424, 429, 500, 502, 503, 504, 530, 599, 301])


@given(STATUSES, HEADERS, BODIES)
def test_an_error_has_botocores_response(status: int, headers: dict[str, str], body: bytes) -> None:
    ours = failure(status, dict(headers), body, 1)
    try:
        theirs = BOTOCORE.call("InvokeEndpoint", status, headers, body)
    except (AttributeError, TypeError, KeyError):
        # botocore's parser fails on a body that is JSON and no object; an error answer must stay an error answer.
        assert not isinstance(json.loads(body), dict)
        assert isinstance(ours["Error"]["Code"], str)
        return
    if theirs["Error"]["Code"] != ours["Error"]["Code"]:
        # botocore 1.34 leaves a namespace or an address in the code, and so finds no modelled members.
        assert re.split("[#:]", theirs["Error"]["Code"])["#" in theirs["Error"]["Code"]] == ours["Error"]["Code"]
        assert tuple(map(int, botocore.__version__.split(".")[:2])) < (1, 35)
        assert comparable(ours)["Error"]["Message"] == theirs["Error"]["Message"]
        return
    # A request id helps with AWS's support; botocore drops it where it is S3's header or the body is a proxy's HTML.
    extra = ours["ResponseMetadata"].keys() - theirs["ResponseMetadata"].keys()
    assert extra <= {"RequestId", "HostId"}
    for key in extra:
        assert ours["ResponseMetadata"].pop(key) in (*headers.values(), "")
    assert comparable(ours) == comparable(theirs)


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b'"text"', b"\xff\xfe", b'{"message": 3}', b'{"code": {}}'])
def test_a_malformed_error_body_is_an_error_all_the_same(body: bytes) -> None:
    response = failure(400, {"x-amzn-errortype": "ValidationError"}, body, 2)
    assert response["Error"]["Code"] == "ValidationError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert response["ResponseMetadata"]["RetryAttempts"] == 1


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    operation = draw(st.sampled_from([op for op in OPERATIONS if not op.streams]))
    # Newer members are unknown to an older botocore, which leaves them out.
    shape = BOTOCORE.client.meta.service_model.operation_model(operation.name).output_shape
    assert shape is not None
    known = set(shape.members)
    names = [member.header.lower() for member in operation.results if member.header and member.name in known]
    headers = {name: draw(HEADER_TEXT) for name in draw(st.sets(st.sampled_from(names)))}
    return operation.name, {**headers, **draw(HEADERS)}


@given(answers(), st.none() | HEADER_TEXT)
def test_a_result_is_botocores_dictionary(answer: tuple[str, dict[str, str]], inference_id: str | None) -> None:
    name, headers = answer
    operation = BY_NAME[name]
    document: dict[str, Any] = {"InferenceId": inference_id, "Unknown": 1}
    body = json.dumps(document).encode() if name == "InvokeEndpointAsync" else b"payload"
    theirs = BOTOCORE.call(name, operation.status, headers, body)
    ours = ReplyReader(operation).result(operation.status, dict(headers), body, 1)
    assert ours["ResponseMetadata"]["RetryAttempts"] == theirs["ResponseMetadata"]["RetryAttempts"] == 0
    if "Body" in theirs:
        assert ours.pop("Body") is body
        assert theirs.pop("Body").read() == body
    assert comparable(ours) == comparable(theirs)


STREAM_FAILURES = st.one_of(
    st.tuples(
        st.just("exception"),
        st.sampled_from(["ModelStreamError", "InternalStreamFailure"]),
        DOCUMENTS.map(lambda document: json.dumps(document).encode()),
    ),
    st.tuples(st.just("error"), HEADER_TEXT, st.binary(max_size=20)),
)


@given(STREAM_FAILURES, TEXT)
def test_a_failure_inside_a_stream_has_botocores_response(failing: tuple[str, str, bytes], text: str) -> None:
    kind, name, payload = failing
    if kind == "exception":
        headers = {":message-type": kind, ":exception-type": name, ":content-type": "application/json"}
    else:
        headers = {":message-type": kind, ":error-code": name, ":error-message": text}
    frame = encode(headers, payload)
    result = BOTOCORE.call("InvokeEndpointWithResponseStream", 200, {}, frame)
    with pytest.raises(EventStreamError) as caught:
        list(result["Body"])
    ((decoded, body),) = Decoder().feed(frame)
    ours = stream_failure(kind, decoded.exception_type, decoded, body)
    if not caught.value.response["Error"]["Message"] and ours["Error"]["Message"]:
        # botocore reads an exception's message under Message alone.
        assert ours["Error"].pop("Message") == json.loads(payload)["message"]
        caught.value.response["Error"].pop("Message")
    # Beside Error botocore leaves out what a modelled exception carries: ModelStreamError's ErrorCode, for one.
    for member in [name for name in ours if name != "Error"]:
        assert ours.pop(member) == json.loads(payload)[member]
    assert ours == caught.value.response
