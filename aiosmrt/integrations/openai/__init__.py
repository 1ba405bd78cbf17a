"""OpenAI clients on SageMaker endpoints: the SDK's requests become calls of an `aiosmrt.Client`.

Needs the extra ``openai``.

::

    async with aiosmrt.Client("eu-central-1") as client:
        llm = async_openai(client, models={"qwen": ("llm", "qwen-component")})
        answer = await llm.chat.completions.create(model="qwen", messages=[{"role": "user", "content": "Hello"}])

Every library that takes an `openai.AsyncOpenAI`, or the HTTP client of one, works on it: see docs/openai.md.
"""

from aiosmrt.integrations._extras import extra

with extra("openai"):
    from aiosmrt.integrations.openai._factory import BASE_URL, async_openai, http_client
    from aiosmrt.integrations.openai._requests import Deployment

__all__ = ["BASE_URL", "Deployment", "async_openai", "http_client"]
