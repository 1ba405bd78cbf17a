"""Daft: DataFrames scored by a batch method of a class.

::

    import daft
    from aiosmrt.batch import Scorer
    from aiosmrt.integrations.daft import score

    scorer = Scorer("churn", template=["{age}", "{calls}"], content_type="text/csv", output_type="float64")
    score(daft.read_parquet("rows/*.parquet"), scorer, total_concurrency=64).write_parquet("scores")
"""

# Engines are not installed where the types are checked, and pyright takes this module for the one that it imports.
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from aiosmrt.batch import OutputType, Scorer
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ParamValidationError
from aiosmrt.integrations._extras import extra
from aiosmrt.integrations._shares import shares

with extra("daft"):
    import daft
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

if TYPE_CHECKING:
    from daft import Series

__all__ = ["score"]

# Whatever the engine's is: the types are checked without it.
DataFrame = TypeVar("DataFrame")

_TYPES: Final[dict[OutputType, daft.DataType]] = {
    "string": daft.DataType.string(),
    "binary": daft.DataType.binary(),
    "bool": daft.DataType.bool(),
    "int64": daft.DataType.int64(),
    "float64": daft.DataType.float64(),
    "list<float64>": daft.DataType.list(daft.DataType.float64()),
}


def score(
    frame: DataFrame,
    scorer: Scorer,
    *,
    total_concurrency: int | None = None,
    workers: int | None = None,
    batch_rows: int = 256,
) -> DataFrame:
    """Score a DataFrame.

    Daft's native runner tries nothing twice: if one of its processes dies, the job fails, and must start over.

    Args:
        frame: a ``daft.DataFrame``.
        scorer: scores its batches.
        total_concurrency: most calls in flight of the whole job. If None, each process has the scorer's
            ``max_concurrency``.
        workers: processes that score, at most ``total_concurrency``, which is split evenly among them. If None, threads
            of the native runner's process do, which costs least; the Ray runner needs the number.
        batch_rows: most rows in a batch.

    Returns:
        The DataFrame with the scorer's columns added.

    Raises:
        ParamValidationError: a number is not an integer >= 1, or the Ray runner is not given ``workers``.
    """
    if not is_whole(batch_rows, 1):
        raise ParamValidationError([f"batch_rows must be an integer >= 1; got {shown(batch_rows)}"])
    if workers is None and total_concurrency is not None and daft.get_or_infer_runner_type() != "native":
        raise ParamValidationError(["total_concurrency needs workers on this runner, which has many processes"])
    # Threads of one process share its limit.
    processes, scorer = shares(scorer, 1 if workers is None else workers, total_concurrency)
    given = cast("Any", frame)
    names = given.column_names if scorer.columns is None else scorer.columns
    fields = {name: _TYPES[kind] for name, kind in scorer.output_fields.items()}

    class Scoring:
        def __init__(self, scorer: Scorer, names: list[str]) -> None:
            self._scorer = scorer
            self._names = names

        @daft.method.batch(return_dtype=daft.DataType.struct(fields), unnest=True, batch_size=batch_rows)  # type: ignore[untyped-decorator, unused-ignore]
        def score(self, *columns: Series) -> Any:
            return _scored(self._scorer, self._names, columns)

    method = daft.cls(
        Scoring,
        use_process=workers is not None,
        max_concurrency=None if workers is None else processes,
        name_override="aiosmrt",
    )(scorer, list(names)).score
    scored = given.select(*given.column_names, method(*(daft.col(name) for name in names)))
    return cast("DataFrame", scored)


def _scored(scorer: Scorer, names: list[str], columns: tuple[Series, ...]) -> Any:
    """The added columns of a batch, as an array of structs."""
    try:
        batch = pyarrow.table([column.to_arrow() for column in columns], names=names)
        scored = scorer(batch).select(list(scorer.output_fields))
        return scored.to_struct_array().combine_chunks()
    except BaseException:
        del columns
        batch = None
        raise
