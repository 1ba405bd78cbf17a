"""How long do Ray Data, Spark, Dask and Daft take to start, and how many rows a second do they score?

    python benchmarks/engines.py --python .venv-engines/bin/python [--rows 20000] [--rounds 3] [--json engines.json]

Each sample is a fresh interpreter that starts an engine and scores rows with two workers, 64 calls in flight in all,
against the loopback server. ``start`` is the time from before that interpreter to the engine's being ready, ``rows/s``
comes from a second job after a short first one, which starts the workers. The bound is `aiosmrt.batch.Scorer` in one
process without an engine. The workers share the cores of this machine with the server, so compare ratios; with a
model that takes its time, the engine is not what limits the job.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOTAL = 64
WORKERS = 2
BATCH_ROWS = 1000
ENGINES = ("none", "daft", "dask", "ray", "spark")

# Makes a function that scores so many rows into a folder.
Start = Callable[[Path], Callable[[int, str], object]]


def scorer() -> Any:
    from aiosmrt.batch import Scorer

    return Scorer("churn", template={"n": "{n}"}, max_concurrency=TOTAL)


def start_none(folder: Path) -> Callable[[int, str], object]:
    import pyarrow
    import pyarrow.parquet

    own = scorer()

    def run(rows: int, out: str) -> None:
        batches = pyarrow.table({"n": range(rows)}).to_batches(BATCH_ROWS)
        pyarrow.parquet.write_table(pyarrow.Table.from_batches(map(own, batches)), out)

    return run


def start_daft(folder: Path) -> Callable[[int, str], object]:
    import daft

    from aiosmrt.integrations.daft import score

    daft.set_runner_native()

    def run(rows: int, out: str) -> None:
        frame = daft.from_pydict({"n": list(range(rows))})
        score(frame, scorer(), total_concurrency=TOTAL, batch_rows=BATCH_ROWS).write_parquet(out)

    return run


def start_dask(folder: Path) -> Callable[[int, str], object]:
    import dask
    import dask.dataframe
    import pandas
    from distributed import Client, LocalCluster

    from aiosmrt.integrations.dask import score

    dask.config.set({"temporary-directory": str(folder)})
    Client(LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None))

    def run(rows: int, out: str) -> None:
        frame = dask.dataframe.from_pandas(pandas.DataFrame({"n": range(rows)}), chunksize=BATCH_ROWS)
        score(frame, scorer(), total_concurrency=TOTAL).to_parquet(out)

    return run


def start_ray(folder: Path) -> Callable[[int, str], object]:
    import ray

    from aiosmrt.integrations.ray import score

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(rows: int, out: str) -> None:
        dataset = ray.data.range(rows).rename_columns({"id": "n"})
        scored = score(dataset, scorer(), workers=WORKERS, total_concurrency=TOTAL, batch_rows=BATCH_ROWS)
        scored.write_parquet(out)

    return run


def start_spark(folder: Path) -> Callable[[int, str], object]:
    from pyspark.sql import SparkSession

    from aiosmrt.integrations.spark import score

    builder = SparkSession.builder.master(f"local[{WORKERS},4]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", str(BATCH_ROWS))
    spark = builder.config("spark.local.dir", str(folder)).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")

    def run(rows: int, out: str) -> None:
        frame = spark.range(0, rows, 1, WORKERS).withColumnRenamed("id", "n")
        score(frame, scorer(), total_concurrency=TOTAL).write.parquet(out)

    return run


STARTS: dict[str, Start] = {
    "none": start_none,
    "daft": start_daft,
    "dask": start_dask,
    "ray": start_ray,
    "spark": start_spark,
}


def sample(engine: str, rows: int, begun: float) -> None:
    """Run one engine in this process, and report. ``begun`` is the time before this process, of `time.time`."""
    with tempfile.TemporaryDirectory() as name:
        run = STARTS[engine](Path(name))
        start = time.time() - begun
        first = time.time()
        run(100, f"{name}/first")
        first = time.time() - first
        second = time.time()
        run(rows, f"{name}/second")
        print(json.dumps({"start": start, "first": first, "rate": rows / (time.time() - second)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the interpreter with the engines")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sample is not None:
        sample(given.sample, given.rows, given.begun)
        return

    from loopback_server import running
    from reporting import environment, print_table, write_json

    figures: dict[str, list[dict[str, float]]] = {engine: [] for engine in given.engines.split(",")}
    with running() as (url, _):
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "PYSPARK_PYTHON": given.python,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "DO_NOT_TRACK": "1",
        }
        for _ in range(given.rounds):
            for engine, samples in figures.items():
                command = [given.python, __file__, "--sample", engine, "--rows", str(given.rows)]
                done = subprocess.run(
                    [*command, "--begun", str(time.time())], env=env, stdout=subprocess.PIPE, check=True, text=True
                )
                samples.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))
    medians = {
        engine: {name: statistics.median(one[name] for one in samples) for name in samples[0]}
        for engine, samples in figures.items()
    }
    print_table(
        f"{given.rows:,} rows, {WORKERS} workers, {TOTAL} calls in flight",
        ["engine", "start", "first 100 rows", "rows/s"],
        [
            [engine, f"{median['start']:.1f} s", f"{median['first']:.1f} s", f"{median['rate']:,.0f}"]
            for engine, median in medians.items()
        ],
    )
    if given.json is not None:
        write_json(given.json, {"environment": environment(), "samples": figures})


if __name__ == "__main__":
    main()
