"""Scores rows with Dask, as a job of its own.

Usage: dask_program.py ROWS TOTAL FOLDER
"""

import json
import sys
import time
from pathlib import Path

import dask
import dask.dataframe
import pandas
from distributed import Client, LocalCluster

from aiosmrt.batch import Scorer
from aiosmrt.integrations.dask import score


def main(rows: int, total: int, folder: Path) -> None:
    begun = time.monotonic()
    with (
        dask.config.set({"temporary-directory": str(folder)}),
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        ready = time.monotonic()
        frame = dask.dataframe.from_pandas(
            pandas.DataFrame({"id": range(rows), "n": range(1, rows + 1)}), npartitions=8
        )
        scorer = Scorer("double", template={"n": "{n}"}, output_type="int64")
        score(frame, scorer, total_concurrency=total).to_parquet(folder / "out")
        print(json.dumps({"start": ready - begun, "seconds": time.monotonic() - ready}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
