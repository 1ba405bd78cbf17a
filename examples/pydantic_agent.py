"""An agent of pydantic-ai on an endpoint.

pip install 'aiosmrt[openai]' 'pydantic-ai-slim[openai]'
python examples/pydantic_agent.py my-endpoint
"""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import aiosmrt
from aiosmrt.integrations.openai import async_openai


async def main(endpoint: str) -> None:
    async with aiosmrt.Client() as client:
        model = OpenAIChatModel(endpoint, provider=OpenAIProvider(openai_client=async_openai(client)))
        result = await Agent(model).run("Why do you call models on SageMaker?")
        print(result.output)


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["llm"])))
