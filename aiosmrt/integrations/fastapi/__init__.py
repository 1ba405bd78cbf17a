"""FastAPI: one client per application, streams as server-sent events, errors as HTTP statuses.

Needs the extra ``fastapi``.

::

    app = FastAPI(lifespan=client_lifespan(region_name="eu-central-1"))
    install_exception_handlers(app)
    Llm = Annotated[Endpoint[Any, Any], Depends(endpoint("llm", serializer=JSON, deserializer=JSON))]

    @app.post("/answer")
    async def answer(question: Question, llm: Llm) -> SSEResponse:
        return sse_response(llm.stream({"inputs": question.text}), heartbeat=15.0)

    @app.post("/summary")
    async def summary(document: Document, llm: Llm, request: Request) -> Summary:
        return await cancel_on_disconnect(request, llm.predict({"inputs": document.text}))

Callers of the application see the class of an error and never its message, because messages quote models.
"""

from aiosmrt._wire.decoders.event import ServerSentEvent
from aiosmrt.integrations._extras import extra

with extra("fastapi"):
    from aiosmrt.integrations.fastapi._dependencies import (
        SageMakerClient,
        client_lifespan,
        endpoint,
        sagemaker_client,
    )
    from aiosmrt.integrations.fastapi._disconnect import ClientDisconnectedError, cancel_on_disconnect
    from aiosmrt.integrations.fastapi._errors import http_exception, install_exception_handlers
    from aiosmrt.integrations.fastapi._sse import SSEResponse, sse_response

__all__ = [
    "ClientDisconnectedError",
    "SSEResponse",
    "SageMakerClient",
    "ServerSentEvent",
    "cancel_on_disconnect",
    "client_lifespan",
    "endpoint",
    "http_exception",
    "install_exception_handlers",
    "sagemaker_client",
    "sse_response",
]
