"""Load tests of an endpoint: how many calls it takes, and how long they take then.

`arrivals` says when calls begin, `steps` judges what was measured, `load` makes the calls. The first two are pure. The
``aiosmrt bench`` command runs it from a shell.

There are two models. In the *closed* one a fixed number of callers each wait for an answer before they call again, as
workers of a batch job do. A slow service is then asked less, so the waits of callers who would have come in between are
missing from the figures (coordinated omission). In the *open* one calls come at a rate whatever the service does, as
users do, and each latency counts from the moment at which its call was meant to begin.
"""

from aiosmrt.bench.load import LoadTest, Plan, sender, unaided
from aiosmrt.bench.steps import LoadReport, Step

__all__ = ["LoadReport", "LoadTest", "Plan", "Step", "sender", "unaided"]
