"""Classify scikit-learn's handwritten digits from a Parquet file, with a job that resumes.

Run it, stop it with Ctrl-C, and run it again: rows that are done are not sent again. The answers are in
``digits.out.parquet``, joined to the rows. It starts its own endpoint::

    pip install 'aiosmrt[batch,demo]'
    python examples/score_files.py
"""

import asyncio
import signal
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from aiosmrt import Client
from aiosmrt.batch import ANY_ANSWER, Progress, score
from aiosmrt.local import Credentials, LocalRuntime, ModelContainer
from aiosmrt.serializers import CSV

KEY = Credentials("AKIDEXAMPLE", "not-a-real-secret")


def write_digits(path: Path) -> None:
    """Each image as a list of 64 pixels, with its true label."""
    digits = load_digits()
    pq.write_table(pa.table({"pixels": digits.data.tolist(), "label": digits.target}), path)


def show(progress: Progress) -> None:
    print(f"{progress.scored} rows, {progress.rows_per_second:.0f}/s")


async def main(folder: Path) -> None:
    rows, out = folder / "digits.parquet", folder / "digits.out.parquet"
    if not rows.exists():
        write_digits(rows)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    container = ModelContainer([sys.executable, "-m", "aiosmrt.cli.digits"])
    async with (
        LocalRuntime({"digits": container}, credentials=KEY) as runtime,
        Client(
            "us-east-1",
            endpoint_url=runtime.url,
            aws_access_key_id=KEY.access_key,
            aws_secret_access_key=KEY.secret_key,
        ) as client,
    ):
        # In place of the local runtime: Client() and the name of your endpoint.
        endpoint = client.endpoint("digits", serializer=CSV, deserializer=ANY_ANSWER, accept="application/json")
        report = await score(
            endpoint, rows, out, column="pixels", join_source="Input", stop=stop, on_progress=show, max_failures=0.05
        )
    if not report.finished:
        print("stopped; run it again to go on")
        return
    table = pq.read_table(out).to_pylist()
    right = sum(row["prediction"]["predictions"] == [row["label"]] for row in table)
    print(f"{len(table)} rows, {right / len(table):.1%} right, {report.failed} failed; see {out}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
