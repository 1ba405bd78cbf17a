"""Scores rows with Dask."""

import time

import dask
import dask.dataframe
import pandas
from distributed import Client, LocalCluster
from job import Job, doubler, run_example, started, typed_columns, typed_scorers

from aiosmrt.integrations.dask import score


def main(job: Job) -> None:
    with (
        dask.config.set({"temporary-directory": str(job.folder)}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        ready = time.monotonic()
        rows = pandas.DataFrame({"id": range(job.rows), "n": range(1, job.rows + 1)})
        numbers = dask.dataframe.from_pandas(rows, npartitions=8)
        scored = score(numbers, doubler(), total_concurrency=job.total)
        # More workers than the calls were split among.
        cluster.scale(3)
        client.wait_for_workers(3)
        scored.to_parquet(job.out, write_index=False)
        job.tell(ready)

        typed = dask.dataframe.from_pandas(pandas.DataFrame(typed_columns(job)), npartitions=1)
        for scorer in typed_scorers():
            typed = score(typed, scorer)
        typed.to_parquet(job.typed, write_index=False)
        run_example("dask", cluster=cluster)


if __name__ == "__main__":
    main(started())
