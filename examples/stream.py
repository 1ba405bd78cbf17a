"""A streamed answer, line by line as it comes: a digit for each row that is read from standard input.

printf '0,0,5,13,…\\n' | AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8000 python examples/stream.py
"""

import asyncio
import json
import sys

import aiosmrt


async def main() -> None:
    async with aiosmrt.Client() as client:
        response = await client.invoke_endpoint_with_response_stream(
            EndpointName="digits",
            Body=sys.stdin.buffer.read(),
            ContentType="text/csv",
            Accept="application/jsonlines",
        )
        rest = b""
        async with response["Body"] as stream:
            async for event in stream:
                # Parts are cut where the network likes, not where lines end.
                *lines, rest = (rest + event["PayloadPart"]["Bytes"]).split(b"\n")
                for line in lines:
                    print(json.loads(line)["label"], flush=True)


asyncio.run(main())
