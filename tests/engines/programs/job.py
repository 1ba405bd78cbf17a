"""What the jobs of all engines have in common: their arguments, and what they score."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

from aiosmrt.batch import Scorer

PAGE = Path(__file__).parents[3] / "docs" / "engines.md"

# The types of output that no other row of a job has.
TYPES = ("binary", "bool", "list<float64>")

# A machine may be slow, and the model waits for all workers.
_PATIENT = {"read_timeout": 600.0}


class Job(NamedTuple):
    """The arguments of a program, and its clock.

    Args:
        rows: how many rows to score.
        total: most calls in flight of all workers together.
        folder: where to write.
        begun: when the program was started.
        answers: JSON that the model ``parsed`` answers with, by type.
    """

    rows: int
    total: int
    folder: Path
    begun: float
    answers: dict[str, str]

    @property
    def out(self) -> str:
        """Where to write the scored rows."""
        return str(self.folder / "out")

    @property
    def resumed(self) -> str:
        """Where a job writes that fails, and is run again."""
        return str(self.folder / "resumed")

    @property
    def typed(self) -> str:
        """Where to write a row with an answer of each type."""
        return str(self.folder / "typed")

    def tell(self, ready: float) -> None:
        """Report how long starting the engine and scoring took, in seconds."""
        print(json.dumps({"start": ready - self.begun, "seconds": time.monotonic() - ready}), flush=True)


def started() -> Job:
    """The job of this program."""
    rows, total, folder, answers = sys.argv[1:]
    return Job(int(rows), int(total), Path(folder), time.monotonic(), json.loads(answers))


def run_example(engine: str, **names: object) -> None:
    """Run the example of docs/engines.md, which reads the folder ``rows`` and writes ``scores``."""
    import pyarrow
    import pyarrow.parquet

    Path("rows").mkdir()
    rows = pyarrow.table({"id": ["a7", "b2", "c5"], "age": [41, 28, 37], "calls": [3, 1, 2]})
    pyarrow.parquet.write_table(rows, "rows/part-0.parquet")
    examples = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (example,) = [code for code in examples if f"aiosmrt.integrations.{engine} " in code]
    exec(compile(example, f"{PAGE}, {engine}", "exec"), names)


def doubler(endpoint_name: str = "double") -> Scorer:
    """Doubles the column n."""
    return Scorer(
        endpoint_name, template={"n": "{n}"}, output_type="int64", on_error="columns", client_options=_PATIENT
    )


def list_doubler() -> Scorer:
    """Doubles the column n, five rows a call."""
    return Scorer("lists", rows_per_request=5, output_type="int64", on_error="columns", client_options=_PATIENT)


def typed_columns(job: Job) -> dict[str, list[str]]:
    """A row with a column for each type."""
    return {f"given_{number}": [job.answers[kind]] for number, kind in enumerate(TYPES)}


def typed_scorers() -> list[Scorer]:
    """A scorer for each type."""
    return [
        Scorer(
            "parsed",
            column=f"given_{number}",
            content_type="text/plain",
            output_column=f"got_{number}",
            output_type=kind,
            client_options=_PATIENT,
        )
        for number, kind in enumerate(TYPES)
    ]
