"""LangChain's ChatOpenAI on an endpoint.

pip install 'aiosmrt[openai]' langchain-openai
python examples/langchain_chat.py my-endpoint
"""

import asyncio
import sys

from langchain_openai import ChatOpenAI

import aiosmrt
from aiosmrt.integrations.openai import http_client


async def main(endpoint: str) -> None:
    async with aiosmrt.Client() as client:
        # Only the methods that begin with "a" go through the client.
        llm = ChatOpenAI(model=endpoint, api_key="unused", http_async_client=http_client(client))
        async for piece in llm.astream("Why do you call models on SageMaker?"):
            print(piece.content, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["llm"])))
