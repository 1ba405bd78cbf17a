"""`Scorer`: batches of every kind, failures, limits, pickling, and the life of what is behind it."""

from __future__ import annotations

import asyncio
import copy
import gc
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pandas
import polars
import pyarrow
import pytest

import aiosmrt.batch.scorer
from aiosmrt import AdaptiveLimit, RetryPolicy
from aiosmrt.batch import OutputType, Scorer
from aiosmrt.errors import (
    ClientStateError,
    DeserializationError,
    EndpointNotFoundError,
    ModelError,
    ParamValidationError,
    SerializationError,
)
from aiosmrt.integrations._shares import shares
from aiosmrt.local import ContainerFailure, Invocation, LocalRuntime
from tests.support.peers import CREDENTIALS
from tests.support.runtime import local_runtime

ROOT = Path(__file__).parents[2]
JSON = {"Content-Type": "application/json"}


class Models:
    """Models whose calls are held while `gate` is closed.

    Attributes:
        bodies: what was received.
        peak: the most calls in flight at once.
    """

    def __init__(self) -> None:
        self.bodies: list[tuple[bytes, str]] = []
        self.in_flight = 0
        self.peak = 0
        self.wanted = 0
        self.gate: asyncio.Event | None = None

    async def double(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Doubles n, once `wanted` calls were in flight together."""
        if self.gate is None:
            self.gate = asyncio.Event()
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if self.in_flight >= self.wanted:
            self.gate.set()
        try:
            await self.gate.wait()
            await asyncio.sleep(0.005)
        finally:
            self.in_flight -= 1
        n = json.loads(invocation.body)["n"]
        if n == 13:
            raise ContainerFailure(400, "unlucky")
        return json.dumps(2 * n).encode(), JSON

    async def echo(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Returns the body as JSON or bytes."""
        self.bodies.append((invocation.body, invocation.content_type or ""))
        binary = invocation.content_type == "application/octet-stream"
        return invocation.body, {"Content-Type": "application/octet-stream"} if binary else JSON

    async def lists(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Doubles the n of several rows, in JSON or the only field of CSV."""
        self.bodies.append((invocation.body, invocation.content_type or ""))
        if invocation.content_type == "text/csv":
            return b"".join(b"%d\n" % (2 * int(line)) for line in invocation.body.splitlines()), {
                "Content-Type": "text/csv"
            }
        body = json.loads(invocation.body)
        rows = body["instances"] if isinstance(body, dict) else body
        if any(row["n"] == 13 for row in rows):
            raise ContainerFailure(400, "unlucky")
        return json.dumps({"predictions": [[2 * row["n"]] for row in rows]}).encode(), JSON


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def runtime(models: Models, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRuntime]:
    """A runtime in its own thread: a scorer blocks the test's."""
    with local_runtime({"double": models.double, "echo": models.echo, "lists": models.lists}) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running
        close_all()


def close_all() -> None:
    """End every client of this process, as its exit does."""
    aiosmrt.batch.scorer._stop_all()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiosmrt-scorer"]


def doubler(**arguments: Any) -> Scorer:
    return Scorer("double", template={"n": "{n}"}, output_type="int64", **arguments)


# Batches

COLUMNS: dict[str, Any] = {"id": ["a", "b"], "n": [1, 2]}


def check_arrow(given: Any, scored: Any) -> None:
    assert type(scored) is type(given)
    assert scored.schema.field("prediction").type == pyarrow.int64()
    assert scored.to_pydict() == {**COLUMNS, "prediction": [2, 4]}


def check_pandas(given: Any, scored: Any) -> None:
    assert list(scored.index) == list(given.index) == [7, 3]
    assert scored.to_dict("list") == {**COLUMNS, "prediction": [2, 4]}
    assert scored["prediction"].dtype == "Int64"


def check_dict(given: Any, scored: Any) -> None:
    assert {name: list(values) for name, values in scored.items()} == {**COLUMNS, "prediction": [2, 4]}
    assert scored["n"] is given["n"]


BATCHES: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], None]]] = {
    "table": (lambda: pyarrow.table(COLUMNS), check_arrow),
    "record batch": (lambda: pyarrow.record_batch(COLUMNS), check_arrow),
    "pandas": (lambda: pandas.DataFrame(COLUMNS, index=[7, 3]), check_pandas),
    "lists": (lambda: copy.deepcopy(COLUMNS), check_dict),
    "arrays": (lambda: {name: numpy.array(values) for name, values in COLUMNS.items()}, check_dict),
}


@pytest.mark.parametrize(("make", "check"), BATCHES.values(), ids=list(BATCHES))
def test_batch_comes_back_with_the_answers(
    runtime: LocalRuntime, make: Callable[[], Any], check: Callable[[Any, Any], None]
) -> None:
    given = make()
    scored = doubler()(given)
    check(given, scored)
    assert len(given.schema if hasattr(given, "schema") else given.columns if hasattr(given, "columns") else given) == 2


@pytest.mark.parametrize("kind", ["int64", "string", "list<float64>", "binary", "bool", "float64"])
def test_empty_batch_makes_no_call_and_has_typed_columns(runtime: LocalRuntime, kind: OutputType) -> None:
    scorer = Scorer("double", output_type=kind, on_error="columns")
    table = scorer(pyarrow.table({"n": pyarrow.array([], "int64")}))
    assert table.schema.names == ["n", "prediction", "error", "error_code", "error_message"]
    assert str(table.schema.field("prediction").type).replace("item: double", "float64") in (
        kind,
        {"float64": "double"}.get(kind),
    )
    assert len(scorer(pandas.DataFrame({"n": []}))) == 0
    assert runtime.statistics()["requests"] == 0


BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], bytes]] = {
    "all columns": ({}, {"n": [1], "word": ["x"]}, b'{"n":1,"word":"x"}'),
    "a column": ({"column": "word"}, {"n": [1], "word": ["x"]}, b'"x"'),
    "text": ({"column": "word", "content_type": "text/plain"}, {"word": ["true"]}, b"true"),
    "template": ({"template": {"inputs": "{word}!", "n": "{n}"}}, {"n": [1], "word": ["x"]}, b'{"inputs":"x!","n":1}'),
    "rows of CSV": ({"content_type": "text/csv"}, {"n": [1], "m": [2.5]}, b"1,2.5"),
    "bytes": ({"column": "image", "content_type": "application/octet-stream"}, {"image": [b"\xff\0"]}, b"\xff\0"),
    "arrays in columns": ({}, {"x": numpy.array([[1, 2]])}, b'{"x":[1,2]}'),
    "missing": ({}, pandas.DataFrame({"x": [float("nan")]}), b'{"x":null}'),  # type: ignore[dict-item]
}


@pytest.mark.parametrize(("arguments", "batch", "body"), BODIES.values(), ids=list(BODIES))
def test_bodies(runtime: LocalRuntime, models: Models, arguments: Any, batch: Any, body: bytes) -> None:
    kind = "application/octet-stream" if "image" in batch else arguments.get("content_type", "application/json")
    Scorer("echo", output_type="binary", on_error="columns", **arguments)(batch)
    assert models.bodies == [(body, kind)]


ANSWERS: dict[OutputType, list[tuple[str, Any]]] = {
    "string": [('"é"', "é"), ("[1]", "[1]"), ('{"a":1}', '{"a": 1}'), ("null", "null")],
    "binary": [('"é"', "é".encode()), ("1", None)],
    "bool": [("true", True), ("[false]", False), ("1", None), ('"true"', None)],
    "int64": [("7", 7), ("[[7]]", 7), ("7.0", 7), ("7.5", None), ("true", None), (str(2**63), None), ("[1,2]", None)],
    "float64": [("0.5", 0.5), ("[3]", 3.0), ("true", None), ('"0.5"', None), ("null", None), ("9" * 400, None)],
    "list<float64>": [("[0.5,1]", [0.5, 1.0]), ("[[1,2]]", [1.0, 2.0]), ("3", [3.0]), ("[]", []), ("[[1],[2]]", None)],
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_become_values_of_the_type_or_fail_their_row(runtime: LocalRuntime, kind: OutputType) -> None:
    scorer = Scorer("echo", column="text", content_type="text/plain", output_type=kind, on_error="columns")
    given = [text for text, _ in ANSWERS[kind]]
    scored = scorer(pyarrow.table({"text": given})).to_pydict()
    assert scored["prediction"] == [value for _, value in ANSWERS[kind]]
    wrong = [value is None for _, value in ANSWERS[kind]]
    assert [error == "DeserializationError" for error in scored["error"]] == wrong


def test_bytes_that_are_no_text_fail_a_row_of_text(runtime: LocalRuntime) -> None:
    scorer = Scorer("echo", column="image", content_type="application/octet-stream")
    assert scorer({"image": [b"abc"]})["prediction"] == ["abc"]
    with pytest.raises(DeserializationError, match="not text in UTF-8"):
        scorer({"image": [b"\xff"]})


# Several rows a request

SEVERAL: dict[str, tuple[dict[str, Any], list[bytes]]] = {
    "all columns": ({}, [b'[{"n":1},{"n":2}]', b'[{"n":3}]']),
    "template": ({"template": {"instances": ["{}"]}}, [b'{"instances":[{"n":1},{"n":2}]}', b'{"instances":[{"n":3}]}']),
    "rows of CSV": ({"content_type": "text/csv"}, [b"1\n2", b"3"]),
    "as many as fit": ({"rows_per_request": None}, [b'[{"n":1},{"n":2},{"n":3}]']),
}


@pytest.mark.parametrize(("arguments", "bodies"), SEVERAL.values(), ids=list(SEVERAL))
@pytest.mark.parametrize("is_pickled", [False, True])
def test_several_rows_share_a_request(
    runtime: LocalRuntime, models: Models, arguments: Any, bodies: list[bytes], is_pickled: bool
) -> None:
    scorer = Scorer("lists", **{"rows_per_request": 2, "output_type": "int64", **arguments}).limited(1)
    if is_pickled:
        scorer = pickle.loads(pickle.dumps(scorer))
    assert scorer({"n": [1, 2, 3]})["prediction"] == [2, 4, 6]
    assert [body for body, _ in models.bodies] == bodies


def test_requests_of_several_rows_end_at_six_mebibytes(runtime: LocalRuntime, models: Models) -> None:
    scorer = Scorer("lists", rows_per_request=None, output_type="float64")
    assert scorer({"n": [1] * 8, "pad": ["x" * 2**20] * 8})["prediction"] == [2.0] * 8
    assert sorted(body.count(b'"n"') for body, _ in models.bodies) == [3, 5]


def test_only_the_bad_row_of_a_request_fails(runtime: LocalRuntime, models: Models) -> None:
    arguments: dict[str, Any] = {"rows_per_request": 8, "output_type": "int64"}
    scored = Scorer("lists", on_error="columns", **arguments)(pyarrow.table({"n": range(10, 26)})).to_pydict()
    assert scored["prediction"] == [None if n == 13 else 2 * n for n in range(10, 26)]
    assert [error for error in scored["error"] if error] == ["ModelError"]
    assert len(models.bodies) == 2 + 2 * 3
    with pytest.raises(ModelError, match="unlucky") as caught:
        Scorer("lists", **arguments)({"n": [1, 13, 3]})
    assert caught.value.__notes__[-1] == "row 1 of the batch"


@pytest.mark.parametrize("rows_per_request", [1, 3])
def test_a_row_without_a_body_is_not_sent_and_spoils_no_other(
    runtime: LocalRuntime, models: Models, rows_per_request: int
) -> None:
    columns = {"text": ["1", object(), "3"]}
    arguments: dict[str, Any] = {"column": "text", "content_type": "text/csv", "rows_per_request": rows_per_request}
    scored = Scorer("lists", output_type="int64", on_error="columns", **arguments)(columns)
    assert scored["prediction"] == [2, None, 6]
    assert scored["error"] == [None, "SerializationError", None]
    models.bodies.clear()
    with pytest.raises(SerializationError):
        Scorer("lists", **arguments)(columns)
    assert models.bodies == []


def test_a_row_of_several_lines_cannot_share_a_request(runtime: LocalRuntime) -> None:
    scorer = Scorer("lists", column="n", content_type="text/plain", rows_per_request=2, on_error="columns")
    scored = scorer({"n": ["1\n2"]})
    assert scored["error_message"] == ["the record is not a single line, and so cannot share a body with other rows"]


# Failures


def test_failed_row_has_error_columns_and_the_others_are_scored(runtime: LocalRuntime) -> None:
    scored = doubler(on_error="columns")(pyarrow.table({"n": [1, 13, 3]})).to_pydict()
    assert scored["prediction"] == [2, None, 6]
    assert scored["error"] == scored["error_code"] == [None, "ModelError", None]
    assert "unlucky" in scored["error_message"][1]
    assert scored["error_message"][::2] == [None, None]


def test_failed_row_is_raised_and_names_itself(runtime: LocalRuntime) -> None:
    with pytest.raises(ModelError, match="unlucky") as caught:
        doubler()({"n": [1, 13, 3]})
    # Engines send errors to their drivers.
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert error.__notes__[-1] == "row 1 of the batch"


@pytest.mark.parametrize("on_error", ["raise", "columns"])
def test_what_every_row_would_meet_is_raised(runtime: LocalRuntime, on_error: Any) -> None:
    with pytest.raises(EndpointNotFoundError):
        Scorer("nowhere", on_error=on_error)({"n": list(range(50))})
    assert runtime.statistics()["requests"] < 50 * 2


SECRET = "a-payload-that-nobody-must-see"


class Strange:
    def __repr__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    ("arguments", "column"),
    [({"output_type": "float64"}, [json.dumps(SECRET)]), ({"content_type": "application/json"}, [{SECRET: Strange()}])],
    ids=["answer", "body"],
)
def test_errors_hold_no_payload(runtime: LocalRuntime, arguments: Any, column: Any) -> None:
    arguments = {"content_type": "text/plain", **arguments}
    columns = Scorer("echo", column="x", on_error="columns", **arguments)({"x": column})
    assert columns["error"][0] in ("DeserializationError", "SerializationError")
    assert SECRET not in f"{columns['error_message']}{columns['error_code']}"
    with pytest.raises((DeserializationError, SerializationError)) as caught:
        Scorer("echo", column="x", **arguments)({"x": column})
    package = str(Path(aiosmrt.__file__).parent)
    for frame, _ in traceback.walk_tb(caught.value.__traceback__):
        if frame.f_code.co_filename.startswith(package):
            assert SECRET not in repr(frame.f_locals)


BAD_BATCHES: dict[str, tuple[Any, str]] = {
    "no batch": ([1], "a dict; got <class 'list'>"),
    "polars": (polars.DataFrame({"n": [1]}), "a dict; got <class 'polars"),
    "missing column": ({"m": [1]}, "no column 'n'; it has m"),
    "lengths": ({"n": [1], "m": [1, 2]}, "different lengths"),
    "no list": ({"n": 5}, "column 'n' must be a list or an array; got <class 'int'>"),
    "taken": ({"n": [1], "prediction": [1]}, "has a column 'prediction'; choose another output_column"),
    "twice": (pyarrow.table([[1], [2]], names=["n", "n"]), "two columns of the same name"),
}


@pytest.mark.parametrize(("batch", "message"), BAD_BATCHES.values(), ids=list(BAD_BATCHES))
def test_bad_batches_are_refused_before_anything_is_sent(runtime: LocalRuntime, batch: Any, message: str) -> None:
    with pytest.raises(ParamValidationError, match=message):
        doubler()(batch)
    assert runtime.statistics()["requests"] == 0


def test_a_column_with_the_name_of_an_error_column_is_refused(runtime: LocalRuntime) -> None:
    with pytest.raises(ParamValidationError, match="has a column 'error'; rename it, or let failures raise"):
        doubler(on_error="columns")({"n": [1], "error": ["none"]})
    assert runtime.statistics()["requests"] == 0


# Arguments

BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "column and template": ({"column": "a", "template": "{a}"}, "exclude each other"),
    "template without a column": ({"template": {"a": 1}}, "must name a column"),
    "no column": ({"column": ""}, "column must be a non-empty str"),
    "no output column": ({"output_column": 3}, "output_column must be a non-empty str"),
    "error's column": ({"output_column": "error", "on_error": "columns"}, "the name of an error's column"),
    "rows": ({"rows_per_request": 0}, "rows_per_request must be an integer >= 1 or None"),
    "template of one row": ({"rows_per_request": 2, "template": {"n": "{n}"}}, "template needs one list with one item"),
    "type": ({"output_type": "int"}, "output_type must be one of 'string'"),
    "on_error": ({"on_error": "ignore"}, "on_error must be one of 'raise', 'columns'"),
    "endpoint": ({"endpoint_name": "a b"}, "EndpointName"),
    "limit": ({"max_concurrency": 0}, "max_concurrency must be an integer >= 1"),
    "patience": ({"patience": -1}, "patience"),
    "secret": ({"client_options": {"aws_secret_access_key": SECRET}}, "each finds its own credentials"),
    "token": ({"client_options": {"aws_session_token": SECRET}}, "each finds its own credentials"),
    "credentials": ({"client_options": {"credentials": object()}}, "each finds its own credentials"),
    "session": ({"client_options": {"session": None}}, "accepted are connect_timeout"),
    "own": ({"client_options": {"max_concurrency": 3}}, "the scorer's own arguments"),
    "context": ({"client_options": {"verify": object()}}, "verify must be True, False or a path"),
    "no mapping": ({"client_options": [1]}, "client_options must be a mapping"),
    "client's": ({"client_options": {"read_timeout": "1"}}, "read_timeout"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=list(BAD_ARGUMENTS))
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamValidationError, match=message) as caught:
        Scorer(**{"endpoint_name": "double", **arguments})
    assert SECRET not in str(caught.value)


def test_members_and_client_options_reach_the_service(runtime: LocalRuntime) -> None:
    scorer = Scorer("echo", target_variant="AllTraffic", client_options={"user_agent_extra": "nightly"})
    scorer({"n": [1]})
    (record,) = runtime.requests
    assert (record.variant, "nightly" in (record.user_agent or "")) == ("AllTraffic", True)


def test_what_a_scorer_says_about_itself() -> None:
    scorer = Scorer("double", template=["{b}", "{a}"], output_type="bool", on_error="columns", custom_attributes=SECRET)
    assert (scorer.endpoint_name, scorer.columns, scorer.max_concurrency) == ("double", ["a", "b"], 100)
    assert scorer.output_fields == {
        "prediction": "bool",
        "error": "string",
        "error_code": "string",
        "error_message": "string",
    }
    assert SECRET not in repr(scorer)
    assert Scorer("double").columns is None


# Limits


def test_scorers_of_a_process_share_one_limit(runtime: LocalRuntime, models: Models) -> None:
    models.wanted = 6
    scorers = [doubler(max_concurrency=6), doubler(max_concurrency=6)]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda number: scorers[number % 2]({"n": [20 + number] * 20}), range(4)))
    assert [set(batch["prediction"]) for batch in batches] == [{2 * (20 + number)} for number in range(4)]
    assert models.peak == 6
    assert len(threads()) == 1


def test_limit_of_a_batch(runtime: LocalRuntime, models: Models) -> None:
    models.wanted = 2
    doubler(max_concurrency=6).score({"n": [1] * 30}, concurrency=2)
    assert models.peak == 2
    with pytest.raises(ParamValidationError, match="concurrency must be an integer >= 1; got 0"):
        doubler().score({"n": [1]}, concurrency=0)


LIMITS: list[tuple[Any, int, int]] = [(100, 8, 8), (4, 8, 4), ("adaptive", 8, 8), (AdaptiveLimit(maximum=5), 8, 5)]


@pytest.mark.parametrize(("own", "limit", "both"), LIMITS)
def test_limited_never_raises_the_limit(own: Any, limit: int, both: int) -> None:
    scorer = doubler(max_concurrency=own)
    assert scorer.limited(limit).max_concurrency == both
    with pytest.raises(ParamValidationError, match="max_concurrency must be an integer >= 1; got 0"):
        scorer.limited(0)


SHARES = [(4, 30, 4, 7), (4, 3, 3, 1), (1, 8, 1, 8), (3, None, 3, 100), (2, 1000, 2, 100)]


@pytest.mark.parametrize(("workers", "total", "used", "each"), SHARES)
def test_shares_of_workers_never_exceed_the_total(workers: int, total: int | None, used: int, each: int) -> None:
    got, scorer = shares(doubler(), workers, total)
    assert (got, scorer.max_concurrency) == (used, each)


@pytest.mark.parametrize(("workers", "total"), [(0, 5), (2, 0), (2, 1.5), (True, 5)])
def test_shares_of_what_is_no_number(workers: Any, total: Any) -> None:
    with pytest.raises(ParamValidationError, match="must be an integer >= 1"):
        shares(doubler(), workers, total)


# Pickling


def test_pickled_scorer_scores_and_holds_no_secret(runtime: LocalRuntime) -> None:
    scorer = doubler(
        on_error="columns", client_options={"retry": RetryPolicy(max_attempts=3), "region_name": runtime.region}
    )
    for made in (scorer, copy.copy(scorer), copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert made({"n": [4]})["prediction"] == [8]
    # After use, with the credentials found.
    data = pickle.dumps(scorer)
    assert CREDENTIALS.secret_key.encode() not in data
    assert CREDENTIALS.access_key.encode() not in data
    assert repr(pickle.loads(data)) == repr(scorer)


# The life of what is behind it


def test_dropped_scorers_leave_the_connections_to_the_next(runtime: LocalRuntime) -> None:
    for _ in range(3):
        doubler()({"n": [1]})
        gc.collect()
    assert runtime.statistics()["connections_seen"] == 1
    assert len(threads()) == 1


def test_dropped_scorer_ends_by_itself(runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiosmrt.batch.scorer, "_LINGER_SECONDS", 0.0)
    scorer = doubler()
    scorer({"n": [1]})
    (thread,) = threads()
    del scorer
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    assert doubler()({"n": [2]})["prediction"] == [4]


def test_close_ends_the_client_unless_another_scorer_uses_it(runtime: LocalRuntime) -> None:
    first, second = doubler(), doubler()
    first.close()
    first({"n": [1]})
    second({"n": [1]})
    first.close()
    assert len(threads()) == 1
    second.close()
    assert threads() == []
    assert first({"n": [3]})["prediction"] == [6]


def test_close_ends_a_batch_of_another_thread(runtime: LocalRuntime, models: Models) -> None:
    models.wanted = 1000
    scorer = doubler(on_error="columns", max_concurrency=5)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(scorer, {"n": [1] * 10})
        asyncio.run(runtime.wait_for_in_flight(5))
        scorer.close()
        with pytest.raises(ClientStateError, match="closed"):
            batch.result(60)


PROGRAM = """
import gc, multiprocessing, os, signal, sys, threading
from aiosmrt.batch import Scorer
from aiosmrt.errors import ClientStateError

def score(scorer, n):
    assert scorer({{"n": [n]}})["prediction"] == [2 * n]

if __name__ == "__main__":
    scorer = Scorer("double", template={{"n": "{{n}}"}}, output_type="int64")
    {0}
"""

ENDS: dict[str, str] = {
    "not closed": "score(scorer, 1)",
    "dropped": "score(scorer, 1); del scorer; gc.collect()",
    "in a cycle": "score(scorer, 1); scorer.itself = scorer; del scorer",
    "never called": "pass",
    "failed": """score(scorer, 1)
    try:
        score(Scorer("nowhere"), 1)
    except Exception:
        pass""",
    "in flight": """
    def wait():
        try:
            score(scorer, 99)
        except ClientStateError:
            pass
    threading.Thread(target=wait, daemon=True).start()
    sys.stdin.read(1)""",
    "spawned": """score(scorer, 1)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(score, [(scorer, n) for n in range(4)])
        pool.close()
        pool.join()""",
    "forked": """score(scorer, 1)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(score, [(scorer, n) for n in range(4)])
        pool.close()
        pool.join()
    score(scorer, 2)""",
    "forked by hand": """score(scorer, 1)
    child = os.fork()
    score(scorer, 2)
    if child:
        assert os.waitpid(child, 0)[1] == 0
    score(scorer, 3)""",
    "forked while another thread makes a client": """
    others = [Scorer("double", output_type="int64", max_concurrency=n) for n in range(1, 40)]
    thread = threading.Thread(target=lambda: [score(other, 1) for other in others])
    thread.start()
    for _ in range(5):
        child = os.fork()
        if not child:
            score(scorer, 2)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    thread.join()""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
@pytest.mark.parametrize("end", ENDS)
def test_process_ends_without_a_warning_or_a_wait(
    runtime: LocalRuntime, models: Models, tmp_path: Path, end: str
) -> None:
    if end == "in flight":
        models.wanted = 1000
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(ENDS[end]))
    command = [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", str(program)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            if end == "in flight":
                asyncio.run(runtime.wait_for_in_flight(1))
            _, stderr = process.communicate(b"x")
        finally:
            process.kill()
    # asyncio's debug mode tells of callbacks that were slow on a busy machine.
    said = [line for line in stderr.decode().splitlines() if not line.startswith("Executing <")]
    assert (process.returncode, said) == (0, [])


def test_client_is_closed_before_its_process_ends(runtime: LocalRuntime) -> None:
    program = """
import atexit, threading
# Registered before the package's own, so called after it.
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
from aiosmrt.batch import Scorer
Scorer("double", output_type="int64")({"n": [1]})
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "['MainThread']", "")


def test_interrupt_ends_a_batch_and_its_calls(runtime: LocalRuntime, models: Models, tmp_path: Path) -> None:
    models.wanted = 1000
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM.format("signal.signal(signal.SIGINT, signal.default_int_handler)\n    scorer({'n': [1] * 5})")
    )
    with subprocess.Popen(
        [sys.executable, str(program)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    ) as process:
        try:
            asyncio.run(runtime.wait_for_in_flight(5))
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate()
        finally:
            process.kill()
    assert stderr.decode().splitlines()[-1] == "KeyboardInterrupt"
    until = time.monotonic() + 60
    while models.in_flight and time.monotonic() < until:
        time.sleep(0.01)
    assert models.in_flight == 0


@pytest.mark.parametrize(
    ("engine", "package"), [("ray", "ray"), ("spark", "pyspark"), ("dask", "dask"), ("daft", "daft")]
)
def test_missing_engine_is_named_with_its_extra(engine: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"aiosmrt.integrations.{engine}", raising=False)
    with pytest.raises(
        ModuleNotFoundError,
        match=rf"^{package} (is not installed|cannot be imported \(.*\)); run: pip install 'aiosmrt\[{engine}\]'$",
    ):
        importlib.import_module(f"aiosmrt.integrations.{engine}")
