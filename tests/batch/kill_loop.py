"""Kill a job at random moments until it is done, and count what is lost, there twice, and sent again.

As a script: ``python -m tests.batch.kill_loop --kills 200 --seed 1``.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from aiosmrt.local import LocalRuntime
from tests.support.command_line import PROGRAM, environment, started
from tests.support.runtime import local_runtime
from tests.support.scoring import Models, write_rows

_CONCURRENCY = 8
# Calls whose answers may be unwritten when a process dies: in flight, and what came within one write's time.
KILLS_IN_FLIGHT = 4 * _CONCURRENCY


class Outcome(NamedTuple):
    """What came of a job that was killed.

    Args:
        kills: how often it was killed.
        rows: rows of the input.
        lost: rows that are not in the output.
        twice: rows that are there more than once.
        repeated: calls beyond one for each row.
        seconds: how long it all took.
    """

    kills: int
    rows: int
    lost: int
    twice: int
    repeated: int
    seconds: float


def _indexes(out: Path) -> list[int]:
    if out.suffix == ".parquet":
        indexes: list[int] = pyarrow.parquet.read_table(out, columns=["index"])["index"].to_pylist()
        return indexes
    text = out.read_text()
    assert text.endswith("\n")
    if out.suffix == ".csv":
        return [int(line["index"]) for line in csv.DictReader(text.splitlines())]
    return [int(json.loads(line)["index"]) for line in text.splitlines()]


async def kill_until_done(
    runtime: LocalRuntime, models: Models, folder: Path, *, kills: int, seed: int, kind: str = "jsonl"
) -> Outcome:
    """Score rows with ``aiosmrt score``, which is killed once a random number of further rows was sent.

    Args:
        runtime: serves the models.
        models: count the calls; their time is drawn.
        folder: where the files are.
        kills: how often the job is killed, before it is left alone.
        seed: of the random moments.
        kind: the format of the output.
    """
    drawn = random.Random(seed)
    rows = 40 * kills + 200
    source, out = write_rows(folder / "rows.jsonl", rows), folder / f"out.{kind}"
    due: asyncio.Event = asyncio.Event()
    at = 0

    async def work(body: bytes) -> None:
        if models.seen.total() >= at:
            due.set()
        await asyncio.sleep(drawn.uniform(0, 0.01))

    models.before = work
    command = (*PROGRAM, "score", str(source), "--endpoint-name", "double", "--output", str(out), "--quiet")
    env = environment(folder, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
    begun = time.monotonic()
    for _ in range(kills):
        at, due = models.seen.total() + drawn.randint(1, 35), asyncio.Event()
        async with started(*command, "--max-concurrency", str(_CONCURRENCY), env=env) as process:
            await due.wait()
            await asyncio.sleep(drawn.uniform(0, 0.01))
            process.kill()
            _, stderr = await process.communicate()
        assert stderr == b"", stderr
        assert process.returncode == -9
    async with started(*command, env=env) as process:
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")
    found: Any = _indexes(out)
    assert found == sorted(found)
    return Outcome(
        kills=kills,
        rows=rows,
        lost=rows - len(set(found)),
        twice=len(found) - len(set(found)),
        repeated=models.seen.total() - rows,
        seconds=time.monotonic() - begun,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=["jsonl", "csv", "parquet"], default="jsonl")
    given = parser.parse_args()
    models = Models()
    with tempfile.TemporaryDirectory() as folder:
        async with local_runtime({"double": models.double}) as runtime:
            outcome = await kill_until_done(
                runtime, models, Path(folder), kills=given.kills, seed=given.seed, kind=given.format
            )
    print(outcome)
    assert (outcome.lost, outcome.twice) == (0, 0)


if __name__ == "__main__":
    asyncio.run(main())
