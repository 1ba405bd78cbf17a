"""A LitServe application for tests: a stream of words, each of which waits for the test.

A request names the ``words`` and the port of a ``gate``. The model connects there and reads a byte before each word;
when the gate closes, the stream ends. The word "crash" kills the whole container, like running out of memory.
"""

import asyncio
import os
import signal

import litserve


class GatedWords(litserve.LitAPI):
    def setup(self, device):
        pass

    async def decode_request(self, request):
        return request

    async def predict(self, request):
        gate, leaving = await asyncio.open_connection("127.0.0.1", request["gate"])
        try:
            for word in request["words"]:
                if not await gate.read(1):
                    return
                if word == "crash":
                    os.killpg(0, signal.SIGKILL)
                yield word
        finally:
            leaving.close()

    async def encode_response(self, words):
        async for word in words:
            yield word + " "


if __name__ == "__main__":
    api = GatedWords(stream=True, enable_async=True, api_path="/invocations")
    litserve.LitServer(api, accelerator="cpu", healthcheck_path="/ping").run(
        host="127.0.0.1", port=os.environ["SAGEMAKER_BIND_TO_PORT"], generate_client_file=False
    )
