"""Scores rows with Spark."""

import time

from job import Job, doubler, run_example, started, typed_columns, typed_scorers
from pyspark.sql import SparkSession

from aiosmrt.integrations.spark import score


def main(job: Job) -> None:
    spark = (
        # The second number: a task whose process dies is tried again.
        SparkSession.builder.master("local[3,4]")
        .config("spark.ui.enabled", "false")
        # A job this short ends before optimized code pays.
        .config("spark.driver.extraJavaOptions", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "50")
        .config("spark.local.dir", str(job.folder))
        .config("spark.sql.warehouse.dir", str(job.folder))
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("OFF")
    ready = time.monotonic()
    # More partitions and more cores than tasks that may run at once.
    numbers = spark.range(0, job.rows, 1, 8).selectExpr("id", "id + 1 AS n")
    score(numbers, doubler(), total_concurrency=job.total, tasks=2).write.parquet(job.out)
    job.tell(ready)

    columns = typed_columns(job)
    typed = spark.createDataFrame(list(zip(*columns.values(), strict=True)), list(columns)).coalesce(1)
    for scorer in typed_scorers():
        typed = score(typed, scorer)
    typed.write.parquet(job.typed)
    run_example("spark")
    spark.stop()


if __name__ == "__main__":
    main(started())
