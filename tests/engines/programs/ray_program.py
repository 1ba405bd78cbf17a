"""Scores rows with Ray Data, as a job of its own.

Usage: ray_program.py ROWS TOTAL FOLDER
"""

import json
import sys
import time
from pathlib import Path

import ray

from aiosmrt.batch import Scorer
from aiosmrt.integrations.ray import resume_from, score


def main(rows: int, total: int, folder: Path) -> None:
    begun = time.monotonic()
    # More than the machine has: checkpoints take a slot beside the reading and the actors.
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ready = time.monotonic()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    resume_from(str(folder / "checkpoint"), "id")
    dataset = ray.data.range(rows, override_num_blocks=4).map_batches(
        lambda batch: {"id": batch["id"], "n": batch["id"] + 1}
    )
    scorer = Scorer("double", template={"n": "{n}"}, output_type="int64")
    scored = score(dataset, scorer, workers=2, total_concurrency=total, batch_rows=100)
    scored.write_parquet(str(folder / "out"))
    print(json.dumps({"start": ready - begun, "seconds": time.monotonic() - ready}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
