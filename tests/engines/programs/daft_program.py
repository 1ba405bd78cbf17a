"""Scores rows with Daft: in threads, or in processes if the folder has a file of that name."""

import time

import daft
from job import Job, doubler, list_doubler, run_example, started, typed_columns, typed_scorers

from aiosmrt.integrations.daft import score


def main(job: Job) -> None:
    daft.set_runner_native()
    ready = time.monotonic()
    numbers = daft.from_pydict({"id": list(range(job.rows)), "n": list(range(1, job.rows + 1))})
    workers = 2 if (job.folder / "processes").exists() else None
    scored = score(numbers, doubler(), total_concurrency=job.total, workers=workers, batch_rows=50)
    scored.write_parquet(job.out)
    job.tell(ready)

    typed = daft.from_pydict(typed_columns(job))
    for scorer in typed_scorers():
        typed = score(typed, scorer)
    typed.write_parquet(job.typed)
    score(daft.from_pydict({"n": list(range(20))}), list_doubler()).write_parquet(str(job.folder / "lists"))
    run_example("daft")


if __name__ == "__main__":
    main(started())
