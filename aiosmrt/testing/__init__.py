"""For the tests of programs that use aiosmrt: a fake client that records calls, streams and errors without a server.

With pytest, installing aiosmrt also brings the fixture ``sagemaker_runtime``, which starts local runtimes.
"""

from aiosmrt.testing._errors import make_error
from aiosmrt.testing._fake import FakeClient, FakeResponse, RecordedCall
from aiosmrt.testing._streams import make_event_stream

__all__ = ["FakeClient", "FakeResponse", "RecordedCall", "make_error", "make_event_stream"]
