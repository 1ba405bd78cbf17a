"""The report page of a load test."""

from __future__ import annotations

from collections.abc import Sequence

from aiosmrt._report.charts import Series, count_text, duration_text, figure, linear_axis
from aiosmrt._report.histogram import Histogram
from aiosmrt._report.page import (
    PERCENTS,
    Fact,
    axis_of,
    distribution,
    failures_over_time,
    in_flight_over_time,
    latency_over_time,
    over_time,
    page,
    table,
)
from aiosmrt.bench.steps import LoadReport

__all__ = ["bench_page"]


def bench_page(
    endpoint: str, notes: Sequence[str], report: LoadReport, slo: float | None, *, footnote: str = ""
) -> str:
    """The page of a load test.

    Args:
        endpoint: the endpoint's name.
        notes: what a reader has to know of the figures.
        report: what the test came to.
        slo: the seconds within which an answer was good; None if nothing was said.
        footnote: where it comes from.
    """
    steps, best = report.steps, report.knee
    is_open = bool(steps) and steps[0].model == "open"
    unit = "calls/s" if is_open else "callers"
    problem = None
    if not report.finished:
        problem = "Interrupted: the figures are those of the steps that were over."
    elif report.stopped is not None:
        notes = [*notes, f"stopped: {report.stopped}"]
    failed = sum(step.failed for step in steps)
    facts = [Fact("calls", f"{sum(step.sent for step in steps):,}"), Fact("failed", f"{failed:,}", failed > 0)]
    charts = []
    if best is not None:
        facts += [
            Fact("knee", f"{best.load:g} {unit}"),
            Fact("answers/s at the knee", count_text(best.throughput)),
            Fact("p50 at the knee", duration_text(best.latency.percentile(50))),
            Fact("p99 at the knee", duration_text(best.latency.percentile(99))),
        ]
    if steps:
        labels = [((number + 0.5) / len(steps), f"{step.load:g}") for number, step in enumerate(steps)]
        marks = [((number + 0.5) / len(steps), "knee") for number, step in enumerate(steps) if step is best]
        series = [Series("answers", 2, [step.throughput for step in steps], "area")]
        if slo is not None:
            series.append(Series(f"within {duration_text(slo)}", 3, [step.goodput for step in steps]))
        if is_open:
            series.append(Series("asked for", 8, [step.load for step in steps], dashed=True))
        tooltips = [_step_text(step.load, unit, step.throughput, step.latency) for step in steps]
        charts.append(
            figure(
                f"Answers by {'rate' if is_open else 'number of callers'}",
                f"answers a second, by {unit}",
                x_labels=labels,
                axis=axis_of(series, count_text),
                series=series,
                tooltips=tooltips,
                marks=marks,
            )
        )
        series = [
            Series(f"p{percent}", colour, [step.latency.percentile(percent) for step in steps])
            for percent, colour in PERCENTS
        ]
        if slo is not None:
            series.append(Series("wanted", 8, [slo] * len(steps), dashed=True))
        charts.append(
            figure(
                f"Latency by {'rate' if is_open else 'number of callers'}",
                f"of successes, by {unit}",
                x_labels=labels,
                axis=axis_of(series, duration_text),
                series=series,
                tooltips=tooltips,
                marks=marks,
            )
        )
        charts.append(_steps_table(report, unit, slo))
    measured = best.latency if best is not None else report.timeline.latency
    charts.append(distribution("Latency at the knee" if best is not None else "Latency", measured))
    if best is not None and best.first_part.count:
        charts.append(distribution("Time to the first part at the knee", best.first_part))
        charts.append(distribution("Gaps between parts at the knee", best.gaps))
    rates = [part.done / report.timeline.seconds for part in report.timeline.slices()]
    charts += [
        over_time(
            "Answers over time",
            "a second; warm-ups included",
            report.timeline,
            [Series("answers", 2, rates, "area")],
            linear_axis(max(rates, default=0), count_text),
        ),
        in_flight_over_time(report.timeline),
        *latency_over_time(report.timeline),
        *failures_over_time(report.timeline),
    ]
    subtitle = " ".join(f"{note[:1].upper()}{note[1:]}." for note in notes)
    return page(f"Load test of {endpoint}", subtitle, problem, facts, charts, footnote)


def _step_text(load: float, unit: str, throughput: float, latency: Histogram) -> str:
    return (
        f"{load:g} {unit}: {count_text(throughput)} answers/s\n"
        f"p50 {duration_text(latency.percentile(50))}, p99 {duration_text(latency.percentile(99))}"
    )


def _steps_table(report: LoadReport, unit: str, slo: float | None) -> str:
    heads = [unit, "answers/s", *(["good/s"] if slo is not None else []), "p50", "p90", "p95", "p99", "p99.9", "max"]
    heads.append("failed")
    streams = any(step.first_part.count for step in report.steps)
    if streams:
        heads += ["first part p50", "p99", "gap p50", "p99"]
    rows = []
    for step in report.steps:
        cells = [f"{step.load:g}", f"{step.throughput:,.1f}", *([f"{step.goodput:,.1f}"] if slo is not None else [])]
        cells += [duration_text(step.latency.percentile(percent)) for percent in (50, 90, 95, 99, 99.9, 100)]
        cells.append(f"{step.failed:,}")
        if streams:
            cells += [duration_text(times.percentile(p)) for times in (step.first_part, step.gaps) for p in (50, 99)]
        rows.append(cells)
    best = next((number for number, step in enumerate(report.steps) if step is report.knee), None)
    return table("Steps (the knee in bold)", heads, rows, best=best, wide=True)
