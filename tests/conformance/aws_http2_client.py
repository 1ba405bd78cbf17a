"""AWS's client of bidirectional streams; runs in its own environment, which has no aiosmrt.

Reads one JSON object from standard input: ``{"url", "region", "endpoint", "variant"?, "path"?, "query"?, "messages":
[{"text" or "base64", "state"?}]}``. Credentials and authorities come from the environment. Prints a JSON object: the
parts of the response and its variant, or the error's class and message.
"""

import asyncio
import base64
import json
import sys
from typing import Any

from aws_sdk_sagemaker_runtime_http2.client import AsyncSageMakerRuntimeHTTP2Client
from aws_sdk_sagemaker_runtime_http2.config import AsyncSageMakerRuntimeHTTP2Config
from aws_sdk_sagemaker_runtime_http2.models import (
    InvokeEndpointWithBidirectionalStreamInput,
    RequestPayloadPart,
    RequestStreamEventPayloadPart,
)
from smithy_http.aio.crt import AWSCRTHTTPClient


def event_of(message: dict[str, Any]) -> RequestStreamEventPayloadPart:
    if "text" in message:
        data, kind = message["text"].encode(), "UTF8"
    else:
        data, kind = base64.b64decode(message["base64"]), "BINARY"
    part = RequestPayloadPart(bytes_=data, data_type=kind, completion_state=message.get("state"))
    return RequestStreamEventPayloadPart(value=part)


async def converse(order: dict[str, Any]) -> dict[str, Any]:
    config = await AsyncSageMakerRuntimeHTTP2Config.resolve(
        endpoint_uri=order["url"], region=order["region"], transport=AWSCRTHTTPClient()
    )
    client = AsyncSageMakerRuntimeHTTP2Client(config=config)
    stream = await client.invoke_endpoint_with_bidirectional_stream(
        InvokeEndpointWithBidirectionalStreamInput(
            endpoint_name=order["endpoint"],
            target_variant=order.get("variant"),
            model_invocation_path=order.get("path"),
            model_query_string=order.get("query"),
        )
    )
    parts: list[Any] = []
    for message in order["messages"]:
        await stream.input_stream.send(event_of(message))
    output, events = await stream.await_output()
    await stream.input_stream.close()
    async for event in events:
        value: Any = event.value
        data = base64.b64encode(value.bytes_ or b"").decode()
        parts.append([data, value.data_type, value.completion_state])
    return {"parts": parts, "variant": output.invoked_production_variant}


async def main() -> None:
    order = json.loads(sys.stdin.read())
    try:
        answer = await asyncio.wait_for(converse(order), 30)
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer))


asyncio.run(main())
