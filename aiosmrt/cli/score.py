"""``aiosmrt score``: the rows of files through an endpoint, into a file.

The exit status is how the job ended:

====  ===========================================================================================
0     all rows are scored
1     all rows are done, and some failed
3     stopped early: too many rows failed, or every further one would
130   stopped by Ctrl-C or SIGTERM
252   invalid command: options that are unknown, missing, out of range, or do not fit together
255   anything else: input that cannot be read, output that cannot be written or is another job's
====  ===========================================================================================
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from aiosmrt.cli.interrupts import INTERRUPTED, Interrupts
from aiosmrt.cli.options import (
    GlobalOptions,
    choice_option,
    count_option,
    make_command,
    max_concurrency_option,
    number_option,
)
from aiosmrt.cli.parameters import HELP, ParameterError, option_name
from aiosmrt.cli.progress import print_json, rows_text, shown_progress
from aiosmrt.errors import AiosmrtError, BatchStoppedError, ParamValidationError

__all__ = ["score"]

# Options of the operation, by the endpoint's names for them.
_MEMBERS = {
    "accept": "Accept",
    "custom_attributes": "CustomAttributes",
    "inference_component": "InferenceComponentName",
    "target_variant": "TargetVariant",
    "target_model": "TargetModel",
    "target_container_hostname": "TargetContainerHostname",
    "enable_explanations": "EnableExplanations",
}

# --output is this command's own, and the others are about a response that is printed.
_NOT_HERE = frozenset({"output", "query", "cli_binary_format"})

_FORMATS = click.Choice(["jsonl", "csv", "parquet", "text", "openai-batch"])
_CONTENT_TYPES = {
    "csv": "text/csv",
    "text": "text/plain",
    "file": "application/octet-stream",
}  # and JSON for all others

# Options that are the arguments of a job.
_ARGUMENTS = (
    *("input_format", "output_format", "header", "column", "template", "id_field", "join_source"),
    *(
        "input_filter",
        "output_filter",
        "max_payload_mb",
        "asynchronous",
        "max_failures",
        "retry_failed",
        "fresh",
        "spool",
        "limit",
    ),
)


def _max_failures(context: click.Context, parameter: click.Parameter, value: str | None) -> int | float | None:
    from aiosmrt.endpoint.fanout import failure_limit

    try:
        return failure_limit(int(value) if value is not None and value.isascii() and value.isdigit() else value)
    except (ParamValidationError, ValueError):
        raise click.BadParameter(f"must be an integer >= 0, or a percentage such as 5%; got {value!r:.80}") from None


def _template(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"must be JSON: {error}") from None


_OWN_OPTIONS: list[click.Parameter] = [
    click.Argument(
        ["inputs"], nargs=-1, required=True, metavar="INPUT...", type=click.Path(allow_dash=True, readable=False)
    ),
    click.Option(["--endpoint-name"], required=True, metavar="NAME", help=HELP["EndpointName"]),
    click.Option(
        ["--output", "out"], required=True, metavar="OUT", type=click.Path(), help="File or S3 object for the answers."
    ),
    click.Option(["--input-format"], type=_FORMATS, help="Format of the input.  [default: by the suffix]"),
    click.Option(["--output-format"], type=_FORMATS, help="Format of the output.  [default: by the suffix]"),
    click.Option(
        ["--header/--no-header"], default=True, help="Whether CSV has a line of column names.  [default: header]"
    ),
    click.Option(["--column"], metavar="NAME", help="Column to send.  [default: the whole row]"),
    click.Option(
        ["--template"],
        metavar="JSON",
        callback=_template,
        help="""Body with columns in braces, such as '{"inputs": "{text}"}'.""",
    ),
    click.Option(
        ["--content-type"], metavar="TYPE", help=f"{HELP['ContentType']}  [default: the input's; JSON for a template]"
    ),
    *(
        click.Option([option_name(member), name], metavar="VALUE", help=HELP[member])
        for name, member in _MEMBERS.items()
    ),
    click.Option(["--id-field"], metavar="NAME", help="Column whose value is repeated in the output as id."),
    choice_option(
        "--join-source",
        ["None", "Input"],
        "Whether the output repeats the rows, with their predictions.  [default: None]",
        default="None",
    ),
    click.Option(
        ["--input-filter"], metavar="JSONPATH", help="Part of a row to send, such as '$.features' or '$[1:]'."
    ),
    click.Option(
        ["--output-filter"],
        metavar="JSONPATH",
        help="""Part of the value, or of the joined row, to write, such as "$['id','prediction']".""",
    ),
    count_option("--rows-per-request", "Rows in a request, which are scored alone if it fails.  [default: 1]"),
    choice_option("--split-type", ["None", "Line"], "None: a file is one row, sent as it is.  [default: Line]"),
    choice_option(
        "--batch-strategy",
        ["SingleRecord", "MultiRecord"],
        "MultiRecord: as many rows in a request as --rows-per-request and --max-payload-mb allow.",
    ),
    number_option(
        "--max-payload-mb",
        "F",
        "Largest request body in MiB; larger rows fail.  [default: no limit; 6 for several rows]",
        exclusive=True,
    ),
    click.Option(
        ["--asynchronous"],
        is_flag=True,
        help="The endpoint is asynchronous: answers are awaited in S3, and jobs resumed.",
    ),
    click.Option(
        ["--upload-to"],
        metavar="S3URI",
        help="Where --asynchronous puts bodies over 128,000 bytes, such as s3://bucket/prefix.",
    ),
    max_concurrency_option("Calls in flight.  [default: 100]"),
    number_option("--max-wait", "SECONDS", "How long a row waits for a service that fails.  [default: 600]"),
    click.Option(
        ["--max-failures"],
        metavar="N|P%",
        callback=_max_failures,
        help="Stop when more rows fail than this number, or share.  [default: no limit]",
    ),
    click.Option(["--retry-failed"], is_flag=True, help="Score the rows again that failed before."),
    click.Option(["--fresh"], is_flag=True, help="Start over, and overwrite OUT."),
    click.Option(
        ["--spool"],
        type=click.Path(file_okay=False),
        metavar="FOLDER",
        help="Where answers and journal are kept before they go to S3.  [default: in ~/.local/state]",
    ),
    count_option("--limit", "Score the first N rows only."),
    click.Option(["--report"], type=click.Path(), metavar="FILE", help="Write a page with charts of the run to FILE."),
    click.Option(
        ["--json", "as_json"], is_flag=True, help="Print progress on standard output, as JSON, a line a second."
    ),
    click.Option(["--quiet"], is_flag=True, help="Print errors only."),
]


def _run(**given: Any) -> None:
    context = click.get_current_context()
    try:
        given["input_format"] = _input_format(given)
        with Interrupts() as interrupts:
            code = asyncio.run(_score(GlobalOptions.of(context), given, interrupts))
    except (ParamValidationError, BrokenPipeError):
        raise  # as for all commands
    except BatchStoppedError as error:
        code = _fail(3, error)
    except (AiosmrtError, OSError) as error:
        code = _fail(255, error)
    except asyncio.CancelledError:
        code = INTERRUPTED
    except (click.ClickException, click.exceptions.Exit, click.Abort, ParameterError):
        raise
    except Exception as error:
        # Python's own status for it would be 1: all rows are done. The message may quote a row.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        code = _fail(255, RuntimeError(f"unexpected {type(error).__name__} at {place}"))
    context.exit(code)


_HELP = """Score the rows of files; the answers go to a file.

Files are JSON Lines, CSV, Parquet or text, as they are or compressed by gzip or zstd.

INPUT is a file, a folder, a pattern, an object or prefix in S3, or - for standard input. A row is the body of one
call. Answers are written as they come, and are in input order at the end; a Parquet file and an object in S3 appear
then. Rows that failed are listed in OUT.errors.jsonl.

The same command resumes after any interruption, by means of OUT.journal: rows that are done are not sent again.

Exit status: 0 all rows are scored, 1 some failed, 3 stopped early, 130 interrupted, 252 invalid command, 255 other.
"""
score: click.Command = make_command("score", _run, _OWN_OPTIONS, _NOT_HERE, _HELP)


async def _score(options: GlobalOptions, given: dict[str, Any], interrupts: Interrupts) -> int:
    from aiosmrt.batch import ANY_ANSWER, codec_for
    from aiosmrt.batch import score as run_job
    from aiosmrt.serializers import JSON

    stop = asyncio.Event()
    settings = {"max_concurrency": given["max_concurrency"]} if given["max_concurrency"] is not None else {}
    arguments: dict[str, Any] = {name: given[name] for name in _ARGUMENTS}
    arguments["rows_per_request"] = _rows_per_request(given)
    arguments["report_page"] = given["report"]
    if given["max_wait"] is not None:
        arguments["patience"] = given["max_wait"]
    # None leaves the header out, and the model gives what it gives.
    members = {name: given[name] for name in _MEMBERS}
    async with options.client(**settings) as client:
        endpoint = client.endpoint(
            given["endpoint_name"],
            serializer=JSON,
            deserializer=ANY_ANSWER,
            upload_to=given["upload_to"],
            **members,
        )
        with shown_progress(as_json=given["as_json"], quiet=given["quiet"]) as shown:

            def begin_to_stop() -> None:
                stop.set()
                shown.tell("stopping: calls in flight have 10 s to end; once more ends at once")

            interrupts.watch(begin_to_stop)
            report = await run_job(
                endpoint,
                given["inputs"],
                given["out"],
                serializer_for=lambda kind: codec_for(given["content_type"] or _default_content_type(kind, given)),
                stop=stop,
                on_progress=shown.on_progress,
                progress_interval=shown.every,
                **arguments,
            )
    if given["as_json"]:
        print_json({**_fields(report), "rows_per_second": round(report.rows_per_second, 1)})
    if not report.finished:
        # Told to stop before it has looked, it does not know of earlier runs.
        done = f": {rows_text(report.rows)} done" if report.rows else ""
        sys.stderr.write(f"stopped{done}; run the same command again to resume\n")
        return INTERRUPTED
    failures = f"; {report.failed:,} failed, see {report.errors}" if report.failed else ""
    if report.resumed == report.rows:
        shown.say(f"nothing left to do: {rows_text(report.scored)} scored before{failures}")
    else:
        rate = f"{report.rows_per_second:,.0f}/s"
        shown.say(f"{rows_text(report.scored)} scored in {report.seconds:.1f} s ({rate}){failures}")
    return 1 if report.failed else 0


def _input_format(given: dict[str, Any]) -> str | None:
    format_given: str | None = given["input_format"]
    if given["split_type"] != "None":
        return format_given
    if format_given is not None:
        raise ParamValidationError(["--split-type None sends files as they are: leave --input-format out"])
    return "file"


def _rows_per_request(given: dict[str, Any]) -> int | None:
    rows: int | None = given["rows_per_request"]
    strategy = given["batch_strategy"]
    if strategy == "SingleRecord" and rows is not None and rows > 1:
        raise ParamValidationError(["--batch-strategy SingleRecord excludes --rows-per-request over 1"])
    return 1 if rows is None and strategy != "MultiRecord" else rows


def _default_content_type(input_format: str, given: dict[str, Any]) -> str:
    if given["template"] is not None:
        return "application/json"
    if input_format == "csv" and given["column"] is not None:
        return "text/plain"
    return _CONTENT_TYPES.get(input_format, "application/json")


def _fields(report: Any) -> dict[str, Any]:
    names = ("rows", "scored", "failed", "resumed", "retries", "finished")
    return {
        **{name: getattr(report, name) for name in names},
        "seconds": round(report.seconds, 3),
        "output": str(report.output),
        "errors": str(report.errors) if report.failed else None,
    }


def _fail(code: int, error: Exception) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    sys.stderr.write(f"aiosmrt: error: {message}\n")
    return code
