"""LiteLLM on an endpoint, by its OpenAI provider in place of its SageMaker one.

pip install 'aiosmrt[openai]' litellm
python examples/litellm_chat.py my-endpoint
"""

import asyncio
import sys

import litellm

import aiosmrt
from aiosmrt.integrations.openai import async_openai


async def main(endpoint: str) -> None:
    async with aiosmrt.Client() as client:
        answer = await litellm.acompletion(
            model=f"openai/{endpoint}",
            messages=[{"role": "user", "content": "Why do you call models on SageMaker?"}],
            client=async_openai(client),
        )
        print(answer.choices[0].message.content)


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["llm"])))
