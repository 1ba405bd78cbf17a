"""Models that speak OpenAI's schema, for the local runtime, and what they say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from aiosmrt.local import Invocation

MESSAGES: list[Any] = [{"role": "user", "content": "To be?"}]
WORDS = ["To ", "be, ", "or ", "not"]
DONE = b"data: [DONE]\n\n"


def completion(content: str | None = "To be, or not", **message: Any) -> dict[str, Any]:
    """A whole answer."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "qwen",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": "tool_calls" if message else "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


def chunk(content: str | None, *, usage: bool = False) -> bytes:
    """The JSON of one piece of a streamed answer."""
    document: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "qwen",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}],
    }
    if usage:
        document |= {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    return json.dumps(document, ensure_ascii=False).encode()


def event(content: str | None, *, usage: bool = False) -> bytes:
    """One piece as a server-sent event."""
    return b"data: " + chunk(content, usage=usage) + b"\n\n"


async def speaker(invocation: Invocation) -> Any:
    """Answers as vLLM does at /invocations: by the members of the body."""
    asked = json.loads(invocation.body)
    if asked.get("stream"):
        return said(), {"Content-Type": "text/event-stream"}
    if "input" in asked:
        embedding = {"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        answer = {"object": "list", "model": "qwen", "data": [embedding], "usage": usage}
    elif "prompt" in asked:
        choice = {"index": 0, "text": "or not", "finish_reason": "stop", "logprobs": None}
        answer = {"id": "c", "object": "text_completion", "created": 1, "model": "qwen", "choices": [choice]}
    else:
        answer = completion()
    return json.dumps(answer), {"Content-Type": "application/json"}


async def said() -> AsyncIterator[bytes]:
    """All words, as server-sent events."""
    for word in WORDS:
        yield event(word)
    yield event(None, usage=True)
    yield DONE
