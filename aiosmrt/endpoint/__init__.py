"""One endpoint with Python objects in and out: predict, invoke, stream, duplex, map, submit, session.

`aiosmrt.Client.endpoint` makes an `Endpoint`. It calls the client's operations, with a serializer before the call and a
deserializer or a stream's view after it.
"""

from aiosmrt.endpoint.duplex import DuplexStream
from aiosmrt.endpoint.endpoint import Endpoint
from aiosmrt.endpoint.fanout import Result, Results
from aiosmrt.endpoint.groups import split_answer
from aiosmrt.endpoint.inference import Inference
from aiosmrt.endpoint.jobs import Job, JobHandle
from aiosmrt.endpoint.options import CallOptions
from aiosmrt.endpoint.sessions import Session
from aiosmrt.endpoint.streaming import PredictionStream, View
from aiosmrt.serializers.frames import batches

__all__ = [
    "CallOptions",
    "DuplexStream",
    "Endpoint",
    "Inference",
    "Job",
    "JobHandle",
    "PredictionStream",
    "Result",
    "Results",
    "Session",
    "View",
    "batches",
    "split_answer",
]
