"""What the local runtime's servers share, over HTTP/1.1 and over HTTP/2."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiosmrt.local.authentication import SignatureVerifier
from aiosmrt.local.fault_schedule import Effect, FaultScript, Stage
from aiosmrt.local.invocation import Invoker
from aiosmrt.local.requestlog import Progress, RequestLog

__all__ = ["Service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What answers calls.

    Args:
        invoker: serves the calls.
        verifier: verifies signatures. If None, every request is accepted that does not come from another origin.
        scripts: the faults of each endpoint by name; those under ``*`` apply to all.
        log: receives the records.
        progress: notified of changes.
        region: the region of the runtime.
        account_id: the account of the runtime.
        clock: returns the time in epoch seconds.
        chance: the source of random numbers.
    """

    invoker: Invoker
    verifier: SignatureVerifier | None
    scripts: Mapping[str, FaultScript]
    log: RequestLog
    progress: Progress
    region: str
    account_id: str
    clock: Callable[[], float]
    chance: random.Random

    def effects(self, endpoint: str, operation: str) -> dict[Stage, Effect]:
        """Draw the faults of a call."""
        acting: dict[Stage, Effect] = {}
        for name in (endpoint, "*"):
            if name in self.scripts:
                acting = self.scripts[name].effects(operation) | acting
        return acting
