"""Making a client: cheap, without I/O and without a loop, and strict about its arguments."""

import math
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from botocore import exceptions as boto

from aiosmrt import Client, RetryPolicy, errors
from tests.support.peers import CLIENT_ARGUMENTS


def run(program: str) -> str:
    """Run a program in a fresh interpreter; its warnings are errors."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_making_a_client_does_no_io() -> None:
    output = run(
        """
        import sys
        import aiosmrt
        from aiosmrt import Client, RetryPolicy

        touched = []
        io = ("open", "os.", "socket.", "subprocess.", "import", "ssl.")

        def hook(event, arguments):
            if event.startswith(io):
                touched.append((event, arguments))

        before = set(sys.modules)
        sys.addaudithook(hook)
        client = Client(
            "eu-central-1",
            profile_name="another",
            verify="/nowhere/authorities.pem",
            retry=RetryPolicy(max_attempts=7),
            max_concurrency=3,
            user_agent_extra="app/1",
            observers=[print],
        )
        view = client.with_options(deadline=1.0, max_concurrency=2)
        texts = repr(client), repr(view), repr(client.statistics()), client.exceptions.ModelError
        seen = list(touched)
        assert not seen, seen
        assert set(sys.modules) == before, set(sys.modules) - before
        print("done")
        """
    )
    assert output == "done\n"


def test_a_signed_call_loads_neither_credential_providers_nor_sessions() -> None:
    output = run(
        """
        import asyncio, sys
        from aiosmrt import Client

        async def answer(reader, writer):
            await reader.readuntil(b"\\r\\n\\r\\n")
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
            await writer.drain()
            writer.close()

        async def main():
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with Client(
                "eu-central-1", endpoint_url=url, aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="fake"
            ) as client:
                response = await client.invoke_endpoint(EndpointName="e", Body=b"")
                assert await response["Body"].read() == b"ok"
            server.close()
            await server.wait_closed()

        asyncio.run(main())
        heavy = {"botocore.credentials", "botocore.session", "aiobotocore", "botocore.client", "botocore.endpoint"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert output == "[]\n"


def test_a_client_is_made_without_a_loop() -> None:
    # No loop runs in this test, and none was ever made in its thread.
    client = Client("eu-central-1")
    assert repr(client) == "<aiosmrt.Client region_name='eu-central-1'>"
    assert client.statistics().calls == 0


async def test_a_client_made_outside_works_inside(server: Any) -> None:
    import asyncio

    def make() -> Client:
        return Client(endpoint_url=server.url, **CLIENT_ARGUMENTS)

    client = await asyncio.to_thread(make)
    async with client:
        assert (await client.invoke_endpoint(EndpointName="e", Body=b""))["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_the_api_version_is_locked() -> None:
    Client("eu-central-1", api_version="2017-05-13")
    with pytest.raises(errors.ApiVersionNotFoundError, match="2017-05-14") as caught:
        Client("eu-central-1", api_version="2017-05-14")
    assert isinstance(caught.value, boto.ApiVersionNotFoundError)
    assert isinstance(caught.value, errors.ConfigurationError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connect_timeout", 0),
        ("connect_timeout", -1.0),
        ("read_timeout", math.nan),
        ("read_timeout", "70"),
        ("deadline", True),
        ("deadline", 0.0),
        ("wait_for_capacity", 0),
        ("wait_for_capacity", True),
        ("max_concurrency", 0),
        ("max_concurrency", 1.5),
        ("max_concurrency", True),
        ("retry", 3),
        ("patience", -1.0),
        ("patience", "20"),
        ("max_waiting", -1),
        ("max_waiting", 1.5),
        ("max_response_bytes", -1),
        ("max_response_bytes", 1.5),
        ("max_response_bytes", True),
        ("retry", {"max_attempts": -1}),
        ("retry", {"total_max_attempts": 0}),
        ("retry", {"attempts": 3}),
        ("user_agent_extra", "two\r\nlines"),
        ("user_agent_extra", "größe"),
        ("observers", ["not callable"]),
    ],
)
def test_an_argument_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(errors.ParamValidationError) as caught:
        Client("eu-central-1", **{name: value})
    assert isinstance(caught.value, boto.ParamValidationError)
    # "retries" is what botocore calls the dictionary.
    assert name[:4] in str(caught.value)
    if name != "observers":
        with pytest.raises(errors.ParamValidationError):
            Client("eu-central-1").with_options(**{name: value})


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout", "deadline"])
def test_none_means_no_limit(name: str) -> None:
    limits: dict[str, Any] = {name: None}
    Client("eu-central-1", **limits)


@pytest.mark.parametrize("arguments", [{"aws_access_key_id": "AKIDEXAMPLE"}, {"aws_secret_access_key": "fake-secret"}])
def test_half_of_a_key_pair_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.PartialCredentialsError) as caught:
        Client("eu-central-1", **arguments)
    assert isinstance(caught.value, boto.PartialCredentialsError)
    assert "fake-secret" not in str(caught.value)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="max_concurency"):
        Client("eu-central-1", max_concurency=3)  # type: ignore[call-arg]


def test_a_retry_policy_is_checked() -> None:
    with pytest.raises(errors.ParamValidationError, match="max_attempts"):
        RetryPolicy(max_attempts=0)
    with pytest.raises(errors.ParamValidationError, match="base_delay"):
        RetryPolicy(base_delay=math.nan)


async def test_the_first_call_reports_a_missing_region() -> None:
    async with Client(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="fake") as client:
        with pytest.raises(errors.NoRegionError) as caught:
            await client.invoke_endpoint(EndpointName="e", Body=b"")
    assert isinstance(caught.value, boto.NoRegionError)


async def test_the_first_call_reports_missing_credentials(server: Any) -> None:
    async with Client("eu-central-1", endpoint_url=server.url) as client:
        with pytest.raises(errors.NoCredentialsError) as caught:
            await client.invoke_endpoint(EndpointName="e", Body=b"")
    assert isinstance(caught.value, boto.NoCredentialsError)
    assert server.requests == []


async def test_the_first_call_reports_an_unknown_profile() -> None:
    async with Client("eu-central-1", profile_name="missing") as client:
        with pytest.raises(errors.ProfileNotFoundError, match="missing") as caught:
            await client.invoke_endpoint(EndpointName="e", Body=b"")
    assert isinstance(caught.value, boto.ProfileNotFound)
