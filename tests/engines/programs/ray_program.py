"""Scores rows with Ray Data."""

import time

import ray
from job import Job, doubler, run_example, started

from aiosmrt.batch import Scorer
from aiosmrt.integrations.ray import resume_from, score


def numbers(rows: int) -> ray.data.Dataset:
    # One reader and one writer: each would be a process.
    dataset = ray.data.range(rows, override_num_blocks=8, concurrency=1)
    return dataset.map_batches(lambda batch: {"id": batch["id"], "n": batch["id"] + 1})


def main(job: Job) -> None:
    # More CPUs than are needed otherwise: checkpoints take one beside the reading and the actors.
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ready = time.monotonic()
    ray.data.DataContext.get_current().enable_progress_bars = False
    scored = score(numbers(job.rows), doubler(), workers=2, total_concurrency=job.total, batch_rows=50)
    scored.write_parquet(job.out, concurrency=1)
    job.tell(ready)

    run_example("ray")

    resume_from(str(job.folder / "checkpoint"), "id")
    raising = Scorer("refuses-once", template={"n": "{n}"}, output_type="int64")
    try:
        score(numbers(job.rows), raising, workers=1, batch_rows=50).write_parquet(job.resumed, concurrency=1)
    except ray.exceptions.RayTaskError:
        print("failed once", flush=True)
    score(numbers(job.rows), raising, workers=1, batch_rows=50).write_parquet(job.resumed, concurrency=1)
    ray.shutdown()


if __name__ == "__main__":
    main(started())
