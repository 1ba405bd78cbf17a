"""A limit on calls, split among workers."""

from __future__ import annotations

from aiosmrt.batch import Scorer
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ParamValidationError

__all__ = ["shares"]


def shares(scorer: Scorer, workers: int, total_concurrency: int | None) -> tuple[int, Scorer]:
    """Return how many workers there may be, and the scorer that each of them gets.

    Args:
        scorer: a scorer with its own limit for each process.
        workers: the workers that are wanted.
        total_concurrency: most calls in flight of all workers together. If None, the scorer's limit stays.

    Raises:
        ParamValidationError: a number is not an integer >= 1.

    >>> workers, scorer = shares(Scorer("churn"), 4, 30)
    >>> workers, scorer.max_concurrency
    (4, 7)
    """
    faults = [
        f"{name} must be an integer >= 1; got {shown(value)}"
        for name, value in (("workers", workers), ("total_concurrency", total_concurrency))
        if not is_whole(value, 1) and not (name == "total_concurrency" and value is None)
    ]
    if faults:
        raise ParamValidationError(faults)
    if total_concurrency is None:
        return workers, scorer
    workers = min(workers, total_concurrency)
    return workers, scorer.limited(total_concurrency // workers)
