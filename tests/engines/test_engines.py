"""Ray Data, Spark, Dask and Daft themselves: every row scored once, a worker killed, the limit of all held.

The service answers the first calls once as many are in flight as all workers together may have, so that every worker
has part in reaching the limit, however slow the machine is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.engines import REFUSED, ROWS, TOTAL, Outcome

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

# Fewer than a batch.
KILL_AFTER = 40

RunJob = Callable[..., Outcome]

# What the types make of the answers in tests/support/engines.py.
TYPED = {"got_0": b"raw", "got_1": True, "got_2": [0.5, 1.0]}


def check_types(outcome: Outcome) -> None:
    """Answers of every type are what the engine has for it."""
    (typed,) = outcome.table("typed")
    assert {name: value for name, value in typed.items() if name.startswith("got")} == TYPED


def check_killed(outcome: Outcome) -> None:
    """A worker died with its share of the calls, and the rows of these were scored by another."""
    assert outcome.killed is not None
    assert outcome.lost == TOTAL // 2
    if outcome.code == 0:
        assert outcome.repeated >= outcome.lost


def check_scored(outcome: Outcome) -> None:
    """All rows are in the output, once, with their answers or errors; the limit was reached and not exceeded."""
    assert outcome.code == 0, outcome.stderr[-4000:]
    rows = outcome.table("out")
    assert Counter(row["id"] for row in rows) == Counter(range(ROWS))
    for row in rows:
        error = "ModelError" if row["id"] == REFUSED else None
        assert row["prediction"] == (None if error else 2 * (row["id"] + 1))
        assert (row["n"], row["error"], row["error_code"]) == (row["id"] + 1, error, error)
        assert ("not this one" in (row["error_message"] or "")) == (error is not None)
    assert outcome.peak == TOTAL
    assert set(outcome.calls) == set(range(ROWS))
    assert {row["id"]: row["prediction"] for row in outcome.table("scores")} == {"a7": 1.0, "b2": 0.5, "c5": 0.5}


@pytest.fixture(scope="module")
def ray_outcome(run_job: RunJob) -> Outcome:
    return run_job("ray", kill_after=KILL_AFTER)


def test_ray_loses_nothing_when_a_worker_is_killed(ray_outcome: Outcome) -> None:
    check_scored(ray_outcome)
    check_killed(ray_outcome)
    # At most the batches of the actor that died: one in its hands, if it had one, and those of a block that was not
    # finished.
    assert ray_outcome.repeated <= ROWS // 2


def test_ray_resumes_with_the_rows_that_are_missing(ray_outcome: Outcome) -> None:
    assert Counter(row["id"] for row in ray_outcome.table("resumed")) == Counter(range(ROWS))
    assert ray_outcome.resumed_calls[ROWS - 1] >= 2
    once = [row for row, calls in ray_outcome.resumed_calls.items() if calls == 1]
    assert len(once) >= ROWS // 8


def test_spark_loses_nothing_when_a_worker_is_killed(run_job: RunJob) -> None:
    outcome = run_job("spark", kill_after=KILL_AFTER)
    check_scored(outcome)
    check_types(outcome)
    check_killed(outcome)
    # A task's partition.
    assert outcome.repeated <= ROWS // 2


def test_dask_loses_nothing_when_a_worker_is_killed(run_job: RunJob) -> None:
    outcome = run_job("dask", kill_after=KILL_AFTER)
    check_scored(outcome)
    check_types(outcome)
    check_killed(outcome)
    # The partitions of a worker, those that it had scored among them: they were in its memory.
    assert outcome.repeated <= ROWS


def test_daft_scores_in_threads(run_job: RunJob) -> None:
    outcome = run_job("daft")
    check_scored(outcome)
    check_types(outcome)
    assert outcome.repeated == 0
    lists = outcome.table("lists")
    assert {row["n"]: row["prediction"] for row in lists} == {n: None if n == 7 else 2 * n for n in range(20)}
    assert [row["error"] for row in lists if row["error"]] == ["ModelError"]
    # Four calls, and the halves of one of them.
    assert sorted(outcome.lists, reverse=True)[:4] == [5, 5, 5, 5]
    assert len(outcome.lists) < 20


def test_daft_fails_when_a_worker_is_killed(run_job: RunJob) -> None:
    outcome = run_job("daft", processes=True, kill_after=KILL_AFTER)
    assert outcome.peak == TOTAL
    check_killed(outcome)
    assert outcome.code == 1
    assert "UDF process" in outcome.stderr
    assert outcome.table("out") == []
