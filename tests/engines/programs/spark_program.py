"""Scores rows with Spark, as a job of its own.

Usage: spark_program.py ROWS TOTAL FOLDER
"""

import json
import sys
import time
from pathlib import Path

from pyspark.sql import SparkSession

from aiosmrt.batch import Scorer
from aiosmrt.integrations.spark import score


def main(rows: int, total: int, folder: Path) -> None:
    begun = time.monotonic()
    spark = (
        SparkSession.builder.master("local[2,4]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "100")
        .config("spark.local.dir", str(folder))
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("OFF")
    ready = time.monotonic()
    frame = spark.range(0, rows, 1, 4).selectExpr("id", "id + 1 AS n")
    scorer = Scorer("double", template={"n": "{n}"}, output_type="int64")
    score(frame, scorer, total_concurrency=total).write.parquet(str(folder / "out"))
    print(json.dumps({"start": ready - begun, "seconds": time.monotonic() - ready}), flush=True)
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
