"""What users write by mistake: each marked line, and no other, must be refused by mypy and by pyright."""

from aiosmrt import Client, Credentials, RetryPolicy
from aiosmrt.serializers import BYTES, TEXT


async def misspelt_parameter(client: Client) -> None:
    await client.invoke_endpoint(EndPointName="churn", Body=b"")  # rejected


async def snake_case_parameter(client: Client) -> None:
    await client.invoke_endpoint(EndpointName="churn", Body=b"", content_type="text/csv")  # rejected


async def wrong_kind_of_body(client: Client) -> None:
    await client.invoke_endpoint(EndpointName="churn", Body={"instances": [1]})  # rejected


async def body_as_a_list_of_rows(client: Client) -> None:
    await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=[b"1,2,3"])  # rejected


async def positional_argument(client: Client) -> None:
    await client.invoke_endpoint("churn", Body=b"")  # rejected


async def missing_endpoint_name(client: Client) -> None:
    await client.invoke_endpoint(Body=b"")  # rejected


async def member_of_another_operation(client: Client) -> None:
    await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"", TargetModel="a")  # rejected


async def text_for_a_number(client: Client) -> None:
    await client.invoke_endpoint_async(EndpointName="a", Body=b"", RequestTTLSeconds="60")  # rejected


async def unknown_key(client: Client) -> None:
    response = await client.invoke_endpoint(EndpointName="churn", Body=b"")
    print(response["Boddy"])  # rejected


async def unknown_key_of_metadata(client: Client) -> None:
    response = await client.invoke_endpoint(EndpointName="churn", Body=b"")
    print(response["ResponseMetadata"]["StatusCode"])  # rejected


async def unknown_key_of_an_event(client: Client) -> None:
    response = await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
    async for event in response["Body"]:
        print(event["PayloadPart"]["Byte"])  # rejected


async def forgotten_await(client: Client) -> None:
    response = client.invoke_endpoint(EndpointName="churn", Body=b"")
    print(response["Body"])  # rejected


async def forgotten_await_of_a_body(client: Client) -> None:
    response = await client.invoke_endpoint(EndpointName="churn", Body=b"")
    print(response["Body"].read().decode())  # rejected


async def blocking_loop_over_a_stream(client: Client) -> None:
    response = await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
    for _ in response["Body"]:  # rejected
        pass


async def reading_a_stream_like_a_body(client: Client) -> None:
    response = await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
    await response["Body"].read()  # rejected


def blocking_with() -> None:
    with Client("eu-central-1"):  # rejected
        pass


def misspelt_argument_of_the_client() -> None:
    Client(region="eu-central-1")  # rejected


def timeout_as_text() -> None:
    Client("eu-central-1", read_timeout="70")  # rejected


def second_positional_argument_of_the_client() -> None:
    Client("eu-central-1", "http://127.0.0.1:8080")  # rejected


def unknown_option(client: Client) -> None:
    client.with_options(region_name="eu-west-1")  # rejected


def wrong_kind_of_option(client: Client) -> None:
    client.with_options(deadline="2 s")  # rejected


def unknown_setting_of_a_retry_policy() -> None:
    RetryPolicy(max_retries=3)  # rejected


def changed_retry_policy(policy: RetryPolicy) -> None:
    policy.max_attempts = 5  # rejected


def observer_that_takes_nothing() -> None:
    def watch() -> None: ...

    Client("eu-central-1", observers=[watch])  # rejected


def half_of_the_credentials() -> None:
    Credentials("AKIDEXAMPLE")  # rejected


async def data_of_another_type(client: Client) -> None:
    await client.endpoint("text", serializer=TEXT, deserializer=BYTES).predict(b"hello")  # rejected


async def answer_of_another_type(client: Client) -> None:
    answer: str = await client.endpoint("text", serializer=TEXT, deserializer=BYTES).predict("hello")  # rejected
    print(answer)


async def misspelt_option(client: Client) -> None:
    await client.endpoint("text", serializer=TEXT, deserializer=TEXT).predict("hello", inferenceid="42")  # rejected


async def items_of_another_type(client: Client) -> None:
    client.endpoint("text", serializer=TEXT, deserializer=TEXT).map([1, 2, 3])  # rejected


async def items_that_are_combined_to_another_type(client: Client) -> None:
    client.endpoint("text", serializer=TEXT, deserializer=TEXT).map([1, 2], batch_size=2, combine=len)  # rejected


async def text_for_a_line_number(client: Client) -> None:
    async with client.endpoint("text", serializer=TEXT, deserializer=TEXT).stream("hello") as stream:
        async for line in stream.lines():
            print(line + 1)  # rejected


async def text_into_a_stream_of_bytes(client: Client) -> None:
    async with client.endpoint("speech", serializer=BYTES, deserializer=TEXT).duplex() as stream:
        await stream.send("hello")  # rejected


async def no_deserializer(client: Client) -> None:
    client.endpoint("text", serializer=TEXT, deserializer=None)  # rejected


async def content_type_for_a_serializer(client: Client) -> None:
    client.endpoint("text", serializer="text/csv", deserializer=TEXT)  # rejected


async def job_for_its_answer(client: Client) -> None:
    job = await client.endpoint("text", serializer=TEXT, deserializer=TEXT).submit("hello")
    print(job.value)  # rejected
