"""A runtime without signatures rejects what a web page of another origin can send."""

import json

import pytest

from aiosmrt.local import Invocation, LocalRuntime, faults
from tests.support.runtime import ACCEPTED, Draft, RawAnswer, RawConnection, aiobotocore_client, echo, local_runtime

OPERATIONS = ("invocations", "invocations-response-stream", "async-invocations")


async def ask(url: str, draft: Draft) -> RawAnswer:
    async with RawConnection.to(url) as connection:
        return await connection.exchange(draft.encode())


def unsigned(model: object) -> LocalRuntime:
    return local_runtime({"echo": model}, verify_signatures=False, faults={"echo": faults.IdleClose().next(1)})


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("host", "headers", "reason"),
    [
        ("evil.example", [], "its Host is not a loopback name"),
        ("evil.example:{port}", [], "its Host is not a loopback name"),
        ("127.0.0.1.evil.example", [], "its Host is not a loopback name"),
        ("localhost.evil.example:{port}", [], "its Host is not a loopback name"),
        ("192.168.0.7:{port}", [], "its Host is not a loopback name"),
        ("user@127.0.0.1:{port}", [], "its Host is not a loopback name"),
        ("127.0.0.1:{port}", [("Origin", "https://evil.example")], "its Origin is another host"),
        ("127.0.0.1:{port}", [("Origin", "null")], "its Origin is another host"),
        ("127.0.0.1:{port}", [("Origin", "http://127.0.0.1")], "its Origin is another host"),
        ("127.0.0.1:{port}", [("Origin", "http://localhost:{port}")], "its Origin is another host"),
        ("127.0.0.1:{port}", [("Origin", "https://127.0.0.1:{port}")], "its Origin is another host"),
        ("127.0.0.1:{port}", [("Sec-Fetch-Site", "cross-site")], "it is cross-site"),
        ("127.0.0.1:{port}", [("Sec-Fetch-Site", "same-site")], "it is cross-site"),
    ],
)
async def test_other_origins(operation: str, host: str, headers: list[tuple[str, str]], reason: str) -> None:
    called: list[bytes] = []

    async def model(invocation: Invocation) -> bytes:
        called.append(invocation.body)
        return b""

    async with unsigned(model) as runtime:
        port = str(runtime.port)
        sent = [(name, value.replace("{port}", port)) for name, value in headers]
        draft = Draft(runtime.url, f"/endpoints/echo/{operation}", host=host.replace("{port}", port), headers=sent)
        answer = await ask(runtime.url, draft)
        (record,) = await runtime.wait_for_requests(1)
    assert (answer.status, answer.headers["x-amzn-errortype"]) == (403, "AccessDeniedException")
    assert json.loads(answer.body)["message"].startswith(f"The request was rejected because {reason}.")
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert called == []
    assert record.fault == ()


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "127.0.0.1", "localhost:{port}", "LOCALHOST", "[::1]:{port}"])
@pytest.mark.parametrize("origin", [False, True])
async def test_own_origin(host: str, origin: bool) -> None:
    async with unsigned(echo) as runtime:
        host = host.replace("{port}", str(runtime.port))
        headers = [("Origin", f"http://{host}"), ("Sec-Fetch-Site", "same-origin")] if origin else []
        assert (await ask(runtime.url, Draft(runtime.url, host=host, headers=headers))).status == 200


@pytest.mark.parametrize("path", ["/", "/ping", "/endpoints/echo", "/endpoints/echo/openai/v1/chat/completions"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_other_origins_learn_nothing_on_any_path(path: str, method: str) -> None:
    async with unsigned(echo) as runtime:
        for host, headers in (("evil.example", []), (None, [("Origin", "null")])):
            draft = Draft(runtime.url, path, method=method, host=host or f"localhost:{runtime.port}", headers=headers)
            assert (await ask(runtime.url, draft)).status == 403


async def test_absolute_form() -> None:
    async with unsigned(echo) as runtime:
        for authority, status in ((f"127.0.0.1:{runtime.port}", 200), ("evil.example", 403)):
            draft = Draft(runtime.url, f"http://{authority}/endpoints/echo/invocations")
            assert (await ask(runtime.url, draft)).status == status


async def test_several_or_no_host() -> None:
    async with unsigned(echo) as runtime, RawConnection.to(runtime.url) as connection:
        await connection.write(b"POST /endpoints/echo/invocations HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        assert (await connection.answer()).status == 403
        async with RawConnection.to(runtime.url) as another:
            draft = Draft(runtime.url, headers=[("Host", "evil.example")])
            assert (await another.exchange(draft.encode())).status in (400, 403)


async def test_preflight_requests_are_not_granted() -> None:
    async with unsigned(echo) as runtime:
        headers = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")]
        answer = await ask(runtime.url, Draft(runtime.url, method="OPTIONS", body=b"", headers=headers))
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_sdks_are_accepted() -> None:
    async with unsigned(echo) as runtime, aiobotocore_client(runtime.url.replace("127.0.0.1", "localhost")) as client:
        result = await client.invoke_endpoint(EndpointName="echo", Body=b"1")
        result["Body"].close()


async def test_signed_requests_are_accepted_from_elsewhere() -> None:
    """Such as through a proxy or a container's host name."""
    async with local_runtime({"echo": echo}) as runtime:
        headers = [("Origin", "https://example.com")]
        draft = Draft(runtime.url, host="host.docker.internal:8000", headers=headers)
        assert (await ask(runtime.url, draft)).status == 403
        assert (await ask(runtime.url, draft.sign(ACCEPTED))).status == 200
