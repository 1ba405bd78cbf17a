"""The local runtime as a program: what ``aiosmrt serve`` runs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiosmrt.errors import ConfigurationError
from aiosmrt.local.configuration import load_settings
from aiosmrt.local.routing import EndpointSource
from aiosmrt.local.runtime import LocalRuntime

__all__ = ["serve"]


async def serve(
    endpoints: Mapping[str, EndpointSource] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    port: int | None = None,
    http2_port: int | None = None,
    region: str | None = None,
    verify_signatures: bool | None = None,
    announce: Callable[[str], object] = lambda line: print(line, flush=True),
) -> None:
    """Run a local runtime until SIGTERM or SIGINT, as ``aiosmrt serve`` does.

    Args:
        endpoints: what serves each endpoint, in addition to those of ``config``, which must not have the same names.
        config: a TOML file. Defaults to none.
        port: the TCP port, 0 for a free one. Defaults to that of ``config``, then 0.
        http2_port: the TCP port for bidirectional streams, 0 for a free one; needs the extra ``http2``. Defaults to
            that of ``config``, then none.
        region: the region of the runtime. Defaults to that of ``config``, then ``AWS_REGION``, then
            ``AWS_DEFAULT_REGION``, then us-east-1.
        verify_signatures: whether signatures are verified. Defaults to that of ``config``, then True.
        announce: called with the URL when requests are accepted, and with that of the HTTP/2 port if there is one.
            Defaults to printing them.

    Raises:
        ConfigurationError: no endpoint, or an invalid configuration.
        ContainerError: a container did not start.
        OSError: the port is in use.
    """
    settings: dict[str, Any] = {} if config is None else load_settings(Path(config))
    known = dict(settings.get("endpoints", {}))
    for name, source in (endpoints or {}).items():
        if name in known:
            raise ConfigurationError(f"endpoint {name} is configured both on the command line and in the file")
        known[name] = source
    if not known:
        raise ConfigurationError("no endpoint to serve; at least one is required")
    settings["endpoints"] = known
    settings.setdefault("region", os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1")
    given = {"port": port, "http2_port": http2_port, "region": region, "verify_signatures": verify_signatures}
    settings.update({name: value for name, value in given.items() if value is not None})
    runtime = LocalRuntime(**settings)

    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    stop = asyncio.Event()

    def end() -> None:
        if stop.is_set() and task is not None:
            task.cancel()  # the second signal skips the grace periods
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, end)
    try:
        await _run_until(stop, runtime, announce)
    except asyncio.CancelledError:
        if not stop.is_set() or task is None:
            raise
        task.uncancel()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _run_until(stop: asyncio.Event, runtime: LocalRuntime, announce: Callable[[str], object]) -> None:
    starting = asyncio.ensure_future(runtime.start())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            announce(runtime.url)
            if runtime.has_http2:
                announce(runtime.http2_url)
            await stopping
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.wait({starting, stopping})
        await runtime.close()
