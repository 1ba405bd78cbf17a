"""Refusals of S3 while waiting for a job: only one that may mean "not there yet" is waited out."""

from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.endpoint import Job, JobHandle
from aiosmrt.errors import JobFailedError, JobTimeoutError, ObjectStoreError
from aiosmrt.serializers import JSON
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.recording_server import RecordedRequest, RecordingServer, Response

WHO = "User: arn:aws:sts::123456789012:assumed-role/r/s is not authorized to perform:"
LIST = f'{WHO} s3:ListBucket on resource: "arn:aws:s3:::bucket" because no identity-based policy allows the action'
READ = f'{WHO} s3:GetObject on resource: "arn:aws:s3:::bucket/out" because no identity-based policy allows the action'
DECRYPT = f"{WHO} kms:Decrypt on the resource associated with this ciphertext"

# Status, code and message.
Refusal = tuple[int, str, str]
NOT_YET: list[Refusal] = [
    (403, "AccessDenied", "Access Denied"),
    (403, "AccessDenied", LIST),
    (403, "", ""),
    (404, "NoSuchKey", "The specified key does not exist."),
]
DEFINITE: list[Refusal] = [
    (403, "InvalidAccessKeyId", "The key id is not in our records."),
    (403, "SignatureDoesNotMatch", "The signature does not match."),
    (403, "RequestTimeTooSkewed", "The difference between the times is too large."),
    (403, "InvalidObjectState", "The operation is not valid for the object's storage class"),
    (403, "AccountProblem", "There is a problem with your account."),
    (403, "AllAccessDisabled", "All access to this object has been disabled."),
    (403, "AccessDenied", DECRYPT),
    (403, "AccessDenied", "The ciphertext refers to a customer master key that does not exist"),
    (403, "KMS.DisabledException", "The key is disabled."),
    (400, "ExpiredToken", "The provided token has expired."),
    (400, "KMS.NotFoundException", "Key does not exist"),
    (404, "NoSuchBucket", "The specified bucket does not exist"),
]
FORBIDDEN_TO_READ: Refusal = (403, "AccessDenied", READ)


class Storage:
    """An S3 that has or refuses the objects "out" and "fail"."""

    def __init__(self) -> None:
        self.objects: dict[str, Refusal | bytes] = {"out": NOT_YET[-1], "fail": NOT_YET[-1]}
        self.namespace = ""

    def __call__(self, request: RecordedRequest) -> Response:
        _, _, *key = request.path.split("/")
        if not key:
            # botocore asks after a 400 whether the bucket is in another region
            return Response(403)
        found = self.objects["/".join(key)]
        if isinstance(found, bytes):
            headers = [("Content-Type", "application/json"), ("Last-Modified", formatdate(usegmt=True))]
            return Response(200, headers, b"" if request.method == "HEAD" else found)
        status, code, message = found
        document = f"<Error{self.namespace}><Code>{code}</Code><Message>{message}</Message></Error>"
        body = f"<?xml version='1.0'?>{document}".encode()
        if not code:
            body = message.encode()
        response = Response(status, [("Content-Type", "application/xml")], body)
        if request.method == "HEAD":
            # The length is that of the body that GET has.
            response = replace(response, body=b"", declared_length=len(body))
        return response


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    return Storage()


@pytest.fixture
async def job(storage: Storage) -> AsyncIterator[Job[Any]]:
    async with RecordingServer(storage) as server:
        arguments = {**CLIENT_ARGUMENTS, "endpoint_url": server.url, "s3_endpoint_url": server.url}
        async with Client(**arguments) as client:
            endpoint = client.endpoint("documents", serializer=JSON, deserializer=JSON)
            yield endpoint.job(JobHandle("documents", "1", "s3://bucket/out", "s3://bucket/fail"))


def refusal_id(value: Any) -> str:
    return f"{value[0]} {value[1]} {value[2][-30:]}"


@pytest.mark.parametrize("refusal", DEFINITE, ids=refusal_id)
@pytest.mark.parametrize("where", ["out", "fail"])
async def test_a_definite_refusal_ends_the_waiting(job: Job[Any], storage: Storage, refusal: Refusal, where: str):
    storage.objects[where] = refusal
    for read in (job.result, job.done):
        with pytest.raises(ObjectStoreError) as error:
            await read()
        assert error.value.code == refusal[1]
        assert error.value.status == refusal[0]


@pytest.mark.parametrize("page", ["<html>Forbidden</html>", '{"message": "Forbidden"}', "Forbidden"])
@pytest.mark.parametrize("where", ["out", "fail"])
async def test_a_refusal_that_is_not_of_s3_ends_the_waiting(job: Job[Any], storage: Storage, page: str, where: str):
    """Such as a proxy's."""
    storage.objects[where] = (403, "", page)
    for read in (job.result, job.done):
        with pytest.raises(ObjectStoreError, match="with status 403, is not an error of S3") as error:
            await read()
        assert (error.value.code, error.value.status) == ("Unknown", 403)


@pytest.mark.parametrize("refusal", [*DEFINITE[:2], *NOT_YET[:2], NOT_YET[-1]], ids=refusal_id)
async def test_an_error_may_have_an_xml_namespace(job: Job[Any], storage: Storage, refusal: Refusal):
    storage.namespace = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    storage.objects["out"] = refusal
    if refusal in NOT_YET:
        assert not await job.done()
        with pytest.raises(JobTimeoutError):
            await job.result(timeout=0)
        return
    with pytest.raises(ObjectStoreError) as error:
        await job.result()
    assert (error.value.code, error.value.status) == (refusal[1], refusal[0])
    assert refusal[2] in str(error.value)


@pytest.mark.parametrize("refusal", NOT_YET, ids=refusal_id)
async def test_an_answer_that_is_not_there_yet_is_waited_for(job: Job[Any], storage: Storage, refusal: Refusal):
    storage.objects = {"out": refusal, "fail": refusal}
    assert not await job.done()
    with pytest.raises(JobTimeoutError) as error:
        await job.result(timeout=0)
    assert isinstance(error.value.__cause__, ObjectStoreError if refusal[0] == 403 else type(None))
    storage.objects["out"] = b"[1]"
    assert await job.done()
    assert await job.result() == [1]


async def test_an_answer_that_may_not_be_read_is_a_definite_refusal(job: Job[Any], storage: Storage):
    storage.objects["out"] = FORBIDDEN_TO_READ
    for read in (job.result, job.done):
        with pytest.raises(ObjectStoreError, match="s3:GetObject"):
            await read()


async def test_a_failure_that_may_not_be_read_does_not_hide_the_answer(job: Job[Any], storage: Storage):
    """A successful inference does not write one, so callers need not be allowed to read it."""
    storage.objects["fail"] = FORBIDDEN_TO_READ
    assert not await job.done()
    with pytest.raises(JobTimeoutError) as error:
        await job.result(timeout=0)
    assert isinstance(error.value.__cause__, ObjectStoreError)
    storage.objects["out"] = b"[1]"
    assert await job.done()
    assert await job.result() == [1]


@pytest.mark.parametrize("refusal", NOT_YET, ids=refusal_id)
async def test_a_failure_is_found_behind_a_refusal(job: Job[Any], storage: Storage, refusal: Refusal):
    storage.objects = {"out": refusal, "fail": b'{"error": "out of memory"}'}
    assert await job.done()
    with pytest.raises(JobFailedError):
        await job.result()


@pytest.mark.parametrize("name", ["kms", "ciphertext", "not authorized to perform: kms:Decrypt"])
async def test_the_name_of_an_object_is_not_a_reason(
    job: Job[Any], storage: Storage, name: str, monkeypatch: pytest.MonkeyPatch
):
    storage.objects[name.replace(" ", "%20").replace(":", "%3A")] = storage.objects[name] = NOT_YET[0]
    job.handle = job.handle._replace(output_location=f"s3://bucket/{name}")
    with pytest.raises(JobTimeoutError):
        await job.result(timeout=0)
    assert not await job.done()
