"""A LitServe application for tests that speaks OpenAI's schema, at /invocations and at /v1/chat/completions.

It says the words of the last message back, one by one. With a tool, it calls the first one with that text as its
argument ``text``; asked for JSON, it says a document of that schema's properties. With ``max_tokens``, it stops there.
A message "wait" has it connect to the port in ``user`` and read a byte before each word; "fail" has it fail.
"""

import asyncio
import json
import os

import litserve
from fastapi import HTTPException
from litserve.specs.openai import OpenAISpec


class Words(litserve.LitAPI):
    def setup(self, device):
        pass

    async def decode_request(self, request):
        return request

    async def predict(self, request):
        text = last_text(request)
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 0, "total_tokens": 0}
        if text == "fail":
            raise HTTPException(400, "the model refuses to fail")
        if request.tools and request.messages[-1].role == "user":
            function = {"name": request.tools[0].function.name, "arguments": json.dumps({"text": text})}
            call = {"index": 0, "id": "call-1", "type": "function", "function": function}
            yield {"role": "assistant", "content": "", "tool_calls": [call], **usage}
            return
        if request.response_format is not None and request.response_format.type == "json_schema":
            schema = request.response_format.json_schema.schema_
            yield {"role": "assistant", "content": json.dumps(dict.fromkeys(schema["properties"], text)), **usage}
            return
        words = text.split()[: request.max_tokens or request.max_completion_tokens]
        gate = None
        if words[:1] == ["wait"]:
            gate, leaving = await asyncio.open_connection("127.0.0.1", int(request.user))
        try:
            for number, word in enumerate(words, 1):
                if gate is not None and not await gate.read(1):
                    return
                usage |= {"completion_tokens": number, "total_tokens": usage["prompt_tokens"] + number}
                yield {"role": "assistant", "content": word + " ", **usage}
        finally:
            if gate is not None:
                leaving.close()

    async def encode_response(self, messages):
        async for message in messages:
            yield message


def last_text(request):
    content = request.messages[-1].content
    return content if isinstance(content, str) else "".join(part.text for part in content)


if __name__ == "__main__":
    apis = []
    for path in ("/invocations", "/v1/chat/completions"):
        spec = OpenAISpec()
        spec.api_path = path
        apis.append(Words(spec=spec, enable_async=True, api_path=path))
    litserve.LitServer(apis, accelerator="cpu", healthcheck_path="/ping").run(
        host="127.0.0.1", port=os.environ["SAGEMAKER_BIND_TO_PORT"], generate_client_file=False
    )
