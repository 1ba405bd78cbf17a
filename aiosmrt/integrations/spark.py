"""Spark: DataFrames scored by ``mapInArrow``.

::

    from pyspark.sql import SparkSession
    from aiosmrt.batch import Scorer
    from aiosmrt.integrations.spark import score

    spark = SparkSession.builder.getOrCreate()
    scorer = Scorer("churn", template=["{age}", "{calls}"], content_type="text/csv", output_type="float64")
    score(spark.read.parquet("rows"), scorer, total_concurrency=64).write.parquet("scores")
"""

# Engines are not installed where the types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from aiosmrt.batch import OutputType, Scorer
from aiosmrt.errors import ParamValidationError
from aiosmrt.integrations._extras import extra
from aiosmrt.integrations._shares import shares

with extra("spark"):
    from pyspark.errors import PySparkException
    from pyspark.sql import types

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

__all__ = ["score"]

# Whatever the engine's is: the types are checked without it.
DataFrame = TypeVar("DataFrame")

_TYPES: Final[dict[OutputType, types.DataType]] = {
    "string": types.StringType(),
    "binary": types.BinaryType(),
    "bool": types.BooleanType(),
    "int64": types.LongType(),
    "float64": types.DoubleType(),
    "list<float64>": types.ArrayType(types.DoubleType()),
}


class _ScoredBatches:
    """Scores the batches of a partition.

    Args:
        scorer: scores them.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def __call__(self, batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        return map(self._scorer, batches)


def score(
    frame: DataFrame, scorer: Scorer, *, total_concurrency: int | None = None, tasks: int | None = None
) -> DataFrame:
    """Score a DataFrame; each task scores a partition, in its own Python process.

    A task whose process dies is run again, and its partition is scored again: that many calls are paid for twice.
    Spark gives up after ``spark.task.maxFailures`` of them (4), on ``local[N]`` after the first: use ``local[N,4]``.

    Args:
        frame: a ``pyspark.sql.DataFrame``.
        scorer: scores its batches, which have ``spark.sql.execution.arrow.maxRecordsPerBatch`` rows.
        total_concurrency: most calls in flight in all tasks together, split evenly among them. If None, each task has
            the scorer's ``max_concurrency``.
        tasks: most tasks at the same time, at most ``total_concurrency``. So that there are never more, a DataFrame of
            more partitions is coalesced. Defaults to the session's default parallelism, which is the cluster's cores;
            without ``total_concurrency``, to no limit.

    Returns:
        The DataFrame with the scorer's columns added.

    Raises:
        ParamValidationError: a number is not an integer >= 1; ``tasks`` must be given (Spark Connect); or
            ``total_concurrency`` cannot be held, because ``spark.speculation`` runs tasks twice at the same time.
    """
    given = cast("Any", frame)
    if total_concurrency is not None:
        session = given.sparkSession
        if session.conf.get("spark.speculation", "false") == "true":
            raise ParamValidationError(
                ["total_concurrency cannot be held with spark.speculation, which runs tasks twice at the same time"]
            )
        if tasks is None:
            try:
                tasks = session.sparkContext.defaultParallelism
            except PySparkException:
                raise ParamValidationError(
                    ["tasks must be given: the default parallelism of this session is unknown"]
                ) from None
    if tasks is not None:
        tasks, scorer = shares(scorer, tasks, total_concurrency)
        given = given.coalesce(tasks)
    added = [types.StructField(name, _TYPES[kind]) for name, kind in scorer.output_fields.items()]
    schema = types.StructType([*given.schema.fields, *added])
    return cast("DataFrame", given.mapInArrow(_ScoredBatches(scorer), schema))
