"""One endpoint for those who think in Python objects: predict, invoke, stream, map, submit, session.

`aiosmrt.Client.endpoint` makes an `Endpoint`. It stands on the client's operations and adds to them what a body means:
a serializer before the call, a deserializer or a stream's view after it.
"""

from aiosmrt.endpoint.core import CallOptions, Endpoint, Inference
from aiosmrt.endpoint.fanout import Result, Results
from aiosmrt.endpoint.jobs import Job, JobHandle
from aiosmrt.endpoint.sessions import Session
from aiosmrt.endpoint.streaming import PredictionStream, View

__all__ = [
    "CallOptions",
    "Endpoint",
    "Inference",
    "Job",
    "JobHandle",
    "PredictionStream",
    "Result",
    "Results",
    "Session",
    "View",
]
