"""OpenAI's SDK on an endpoint: a streamed chat completion.

    pip install 'aiosmrt[openai]'
    python examples/openai_sdk.py my-endpoint

The endpoint's container speaks OpenAI's schema at /invocations, as vLLM, SGLang, LMI and TGI do.
"""

import asyncio
import sys

import aiosmrt
from aiosmrt.integrations.openai import async_openai


async def main(endpoint: str) -> None:
    async with aiosmrt.Client() as client, async_openai(client) as llm:
        question = "Why do you call models on SageMaker?"
        async with await llm.chat.completions.create(
            model=endpoint, messages=[{"role": "user", "content": question}], stream=True
        ) as stream:
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    print(chunk.choices[0].delta.content, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["llm"])))
