"""What observers learn of a call: models, tokens and seconds, out of the answer. Without observers, nothing is read."""

from __future__ import annotations

from typing import Any, Final

from aiosmrt._core.observe import emit
from aiosmrt._wire.decoders.sse import SSEDecoder
from aiosmrt.client import Client
from aiosmrt.errors import DeserializationError, ModelStreamError
from aiosmrt.events import GenerationEnded
from aiosmrt.integrations.openai._json import loads
from aiosmrt.integrations.openai._requests import Generation

__all__ = ["Meter", "meter_of"]

# What OpenTelemetry calls the operations.
_KINDS: Final = {"chat/completions": "chat", "completions": "text_completion", "embeddings": "embeddings"}

_MAX_TOKENS: Final = 1 << 63


def meter_of(client: Client, generation: Generation) -> Meter | None:
    """A meter for a call that begins now; None without observers."""
    return Meter(client, generation) if client._view.observers else None


class Meter:
    """Reads an answer for observers, and tells them at its end.

    Args:
        client: makes the call.
        generation: the call.
    """

    def __init__(self, client: Client, generation: Generation) -> None:
        self._client = client
        self._kind = _KINDS.get(generation.path, generation.path)
        self._endpoint_name: str = generation.params["EndpointName"]
        self._model = _text(generation.model)
        self._began = client._core.clock()
        self._events: SSEDecoder | None = SSEDecoder()
        self._response_model: str | None = None
        self._input_tokens: int | None = None
        self._output_tokens: int | None = None
        # an error that the container reports in its stream
        self._failure: str | None = None
        self._complete = False
        self._over = False

    def __repr__(self) -> str:
        return f"<Meter {self._kind} endpoint={self._endpoint_name}>"

    def answered(self, body: bytes) -> None:
        """Read a whole answer, which ends the call."""
        if not self._read(body) and self._kind in _KINDS.values():
            self._failure = DeserializationError.__name__
        del body
        self.ended(None)

    def streamed(self, data: bytes) -> None:
        """Read some bytes of server-sent events."""
        if self._events is None:
            return
        try:
            events = self._events.feed(data)
        except DeserializationError:
            self._events = None
            return
        for event in events:
            text = event.data
            if text == "[DONE]":
                self._complete = True
            elif '"usage"' in text or '"error"' in text or self._response_model is None:
                self._read(text)

    def ended(self, error: str | None) -> None:
        """Tell observers, once; not of a call that ended before the client knew where to send it.

        Args:
            error: the class of the error that ended the call; None on success. ``"CancelledError"`` stands for a caller
                that has left.
        """
        if self._over:
            return
        self._over = True
        if self._failure is not None:
            error = self._failure
        elif self._complete:
            error = None  # a client that has read the last event need not read on
        core = self._client._core
        if not core.is_prepared:
            # Nothing was sent, and to find the URL out now would block the loop or raise.
            return
        event = GenerationEnded(
            self._kind,
            self._endpoint_name,
            core.endpoint.url,
            self._model,
            self._response_model,
            self._input_tokens,
            self._output_tokens,
            core.clock() - self._began,
            error,
        )
        emit(self._client._view.observers, event)

    def _read(self, text: bytes | str) -> bool:
        """Read a JSON object; return whether it is one."""
        try:
            document: Any = loads(text)
        except (ValueError, RecursionError):
            return False
        finally:
            del text
        if not isinstance(document, dict):
            return False
        if isinstance(model := document.get("model"), str) and model:
            self._response_model = _text(model)
        if document.get("error"):
            self._failure = ModelStreamError.__name__
        if isinstance(usage := document.get("usage"), dict):
            self._input_tokens = _count(usage, "prompt_tokens", "input_tokens")
            self._output_tokens = _count(usage, "completion_tokens", "output_tokens")
        return True


def _text(name: str) -> str:
    """A name without half surrogate pairs, with which a metrics exporter would drop the whole batch.

    >>> _text("llm-\\ud83d")
    'llm-?'
    """
    return name.encode(errors="replace").decode()


def _count(usage: dict[str, Any], *names: str) -> int | None:
    """The first of these members that is a number of tokens, and not more than 64 bits of them.

    >>> _count({"input_tokens": 3}, "prompt_tokens", "input_tokens"), _count({"prompt_tokens": "3"}, "prompt_tokens")
    (3, None)
    """
    counts = (n for n in map(usage.get, names) if isinstance(n, int) and not isinstance(n, bool))
    return next((n for n in counts if 0 <= n < _MAX_TOKENS), None)
