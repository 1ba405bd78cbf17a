"""Dask: DataFrames scored by ``map_partitions``, with a semaphore of the cluster.

::

    import dask.dataframe
    from distributed import Client
    from aiosmrt.batch import Scorer
    from aiosmrt.integrations.dask import score

    with Client("tcp://scheduler:8786"):
        scorer = Scorer("churn", template=["{age}", "{calls}"], content_type="text/csv", output_type="float64")
        scored = score(dask.dataframe.read_parquet("rows"), scorer, total_concurrency=64)
        scored.to_parquet("scores")
"""

# Engines are not installed where the types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TypeVar, cast

from aiosmrt.batch import Scorer
from aiosmrt.batch.scorer import arrow_type
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ClientStateError, ParamValidationError
from aiosmrt.integrations._extras import extra

with extra("dask"):
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]
    from dask.dataframe.utils import make_meta
    from distributed import Semaphore, get_client

__all__ = ["score"]

# Whatever the engine's is: the types are checked without it.
DataFrame = TypeVar("DataFrame")


def score(frame: DataFrame, scorer: Scorer, *, total_concurrency: int | None = None) -> DataFrame:
    """Score a DataFrame, a task for each partition.

    A task whose worker dies is run again, and its partition is scored again: that many calls are paid for twice.

    Args:
        frame: a ``dask.dataframe.DataFrame``.
        scorer: scores its partitions.
        total_concurrency: most calls in flight in all workers together, held by a semaphore of the cluster: a lease for
            each task, as many calls for each lease as the cluster's threads at this moment can share. Needs a client of
            `distributed`. The leases of a worker that dies lapse after
            ``distributed.scheduler.locks.lease-timeout`` (30 s); until then, the others have fewer. If None, each
            process has the scorer's ``max_concurrency``.

    Returns:
        The DataFrame with the scorer's columns added.

    Raises:
        ParamValidationError: ``total_concurrency`` is not an integer >= 1.
        ClientStateError: ``total_concurrency`` is given without a client of `distributed`.
    """
    concurrency, leases = scorer.max_concurrency, None
    if total_concurrency is not None:
        if not is_whole(total_concurrency, 1):
            raise ParamValidationError([f"total_concurrency must be an integer >= 1; got {shown(total_concurrency)}"])
        try:
            client = get_client()
        except ValueError:
            raise ClientStateError("total_concurrency needs a client of distributed, which has the semaphore") from None
        threads = max(1, sum(client.nthreads().values()))
        concurrency = max(1, min(concurrency, total_concurrency // threads))
        leases = Semaphore(max_leases=total_concurrency // concurrency)
    meta = _scored(make_meta(frame), scorer, concurrency, None)
    scored = cast("Any", frame).map_partitions(_scored, scorer, concurrency, leases, meta=meta)
    return cast("DataFrame", scored)


def _scored(partition: pd.DataFrame, scorer: Scorer, concurrency: int, leases: Semaphore | None) -> pd.DataFrame:
    """Score a partition, while holding a lease if there are any."""
    try:
        with nullcontext() if leases is None else leases:
            scored = scorer.score(partition, concurrency=concurrency)
        # Dask takes columns of objects for text.
        fields = scorer.output_fields.items()
        opaque = {name: pd.ArrowDtype(arrow_type(kind)) for name, kind in fields if kind in ("binary", "list<float64>")}
        return scored.astype(opaque)
    except BaseException:
        del partition
        raise
