"""Stream a response value by value: a digit for each row of standard input.

printf '0,0,5,13,…\\n' | AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8000 python examples/stream.py
"""

import asyncio
import sys

import aiosmrt
from aiosmrt.serializers import BYTES, JSON


async def main() -> None:
    async with aiosmrt.Client() as client:
        endpoint = client.endpoint("digits", serializer=BYTES, deserializer=JSON, content_type="text/csv")
        async with endpoint.stream(sys.stdin.buffer.read(), accept="application/jsonlines") as stream:
            async for value in stream.json():
                print(value["label"], flush=True)


asyncio.run(main())
