"""Ray Data: datasets scored by a pool of actors.

::

    import ray
    from aiosmrt.batch import Scorer
    from aiosmrt.integrations.ray import score

    scorer = Scorer("churn", template=["{age}", "{calls}"], content_type="text/csv", output_type="float64")
    scored = score(ray.data.read_parquet("rows"), scorer, workers=4, total_concurrency=64)
    scored.write_parquet("scores")
"""

# Engines are not installed where the types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from aiosmrt.batch import Scorer
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ParamValidationError
from aiosmrt.integrations._extras import extra
from aiosmrt.integrations._shares import shares

with extra("ray"):
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

__all__ = ["ScoringActor", "resume_from", "score"]

# Whatever the engine's is: the types are checked without it.
Dataset = TypeVar("Dataset")
Batch = TypeVar("Batch")

# A block is written, and with it what it cost is kept, once it has this size.
_BLOCK_BYTES: Final = 64 * 1024


class ScoringActor:
    """What `score` hands to ``map_batches``, for datasets that need more of its arguments::

        dataset.map_batches(ScoringActor, fn_constructor_args=(scorer,), batch_format="pyarrow", ...)

    Args:
        scorer: scores the batches.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def __call__(self, batch: Batch) -> Batch:
        """Score a ``pyarrow.Table``."""
        try:
            return self._scorer(batch)
        except BaseException:
            del batch
            raise


def score(
    dataset: Dataset,
    scorer: Scorer,
    *,
    workers: int = 2,
    total_concurrency: int | None = None,
    batch_rows: int = 256,
    **remote_options: Any,
) -> Dataset:
    """Score a dataset with a pool of actors.

    An actor that dies is started again, and its batches are scored again.

    Args:
        dataset: a ``ray.data.Dataset``.
        scorer: scores its batches.
        workers: actors, each a process; at most ``total_concurrency``.
        total_concurrency: most calls in flight in all actors together, split evenly among them. If None, each has the
            scorer's ``max_concurrency``.
        batch_rows: rows in a batch. One that is lost with its actor is paid for twice; a small one leaves calls idle at
            its end.
        remote_options: further arguments of ``map_batches``, such as ``num_cpus`` for each actor.

    Returns:
        The dataset with the scorer's columns added.

    Raises:
        ParamValidationError: a number is not an integer >= 1.
    """
    if not is_whole(batch_rows, 1):
        raise ParamValidationError([f"batch_rows must be an integer >= 1; got {shown(batch_rows)}"])
    workers, scorer = shares(scorer, workers, total_concurrency)
    scored = cast("Any", dataset).map_batches(
        ScoringActor,
        fn_constructor_args=(scorer,),
        batch_format="pyarrow",
        batch_size=batch_rows,
        compute=ray.data.ActorPoolStrategy(size=workers),
        **remote_options,
    )
    return cast("Dataset", scored)


def resume_from(folder: str, id_column: str, *, block_bytes: int = _BLOCK_BYTES) -> None:
    """Have the datasets made from now on keep what was written, so that the same job resumes with the missing rows.

    The folder must be one that all nodes see. Ray removes what is in it when a job succeeds, and needs a CPU more than
    the actors and the reading take.

    Args:
        folder: where to keep which rows are written: a path or a URI.
        id_column: the column that identifies a row, in the input and in the output.
        block_bytes: size of the blocks that are written; what is not written yet is lost with the job. Defaults to
            65,536.
    """
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(id_column=id_column, checkpoint_path=folder)
    context.target_max_block_size = block_bytes
