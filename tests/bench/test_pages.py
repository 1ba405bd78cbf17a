"""The report pages: what they say, and how a browser shows them."""

from __future__ import annotations

import random
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aiosmrt._report.timeline import Timeline
from aiosmrt.batch import Progress, Report
from aiosmrt.batch.recorder import Recorder
from aiosmrt.bench.page import bench_page
from aiosmrt.bench.steps import LoadReport, Model, Step, knee
from aiosmrt.events import AttemptEnded
from tests.integrations.browser import Page, browsing, installed_chromium

HOSTILE = "</title></style><script>document.title='in'</script><img src=https://example.com/x.png onerror=alert(1)>"

VOID = {"meta", "link", "rect", "path"}


class Parsed(HTMLParser):
    """The tags and texts of a page; tags have to be balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        if tag not in VOID or (tag == "rect" and self.get_starttag_text() and not self._closes_itself()):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def _closes_itself(self) -> bool:
        return (self.get_starttag_text() or "").endswith("/>")


def job(name: str = "churn", problem: str | None = None, seconds: int = 90) -> str:
    """The page of a job that was throttled, saw an outage, and had failures of many causes."""
    numbers = random.Random(13)
    now = 0.0
    recorder = Recorder(lambda: now)
    scored = 0
    for second in range(seconds):
        is_out = 40 <= second < 50
        for _ in range(0 if is_out else numbers.randrange(20, 40)):
            now = second + numbers.random()
            cause = None if numbers.random() < 0.95 else numbers.choice([name, "ModelError", *"abcdefghijk"])
            took = numbers.lognormvariate(-3, 0.6)
            recorder(AttemptEnded("InvokeEndpoint", "churn", "1", 1, took, 200, cause, None, 10))
            scored += 1
        now = float(second)
        waiting_for, waiting = ("outage", 12) if is_out else (None, 0)
        recorder.see(Progress(scored, 9, 0, now, 30.0, 4, 16, waiting_for, 3, 0.5, 10.0, waiting, 9000, True))
    report = Report(
        rows=scored,
        scored=scored,
        failed=9,
        resumed=12,
        retries=3,
        seconds=float(seconds),
        finished=problem is None,
        output=Path(f"{name[:20]}.jsonl"),
        errors=Path("errors"),
    )
    return recorder.page(name, report, problem)


def load_test(name: str = "churn", model: Model = "closed", *, streams: bool = False) -> str:
    numbers = random.Random(13)
    timeline = Timeline()
    steps = []
    for number, load in enumerate([1, 2, 4, 8, 16, 32, 64]):
        step = Step(model=model, load=load, seconds=10.0, sent=1000, succeeded=1000)
        step.completed = step.good = min(load, 8) * 100
        for index in range(300):
            took = numbers.lognormvariate(-3, 0.3) * max(load / 8, 1)
            step.latency.add(took)
            timeline.succeeded(number * 10 + index / 30, took)
            timeline.see(number * 10 + index / 30, in_flight=load)
            if streams:
                step.first_part.add(took / 4)
                step.gaps.add(took / 10)
        step.failures[name] += number
        timeline.failed(number * 10, name)
        steps.append(step)
    report = LoadReport(steps=steps, knee=knee(steps), stopped=f"as {name} has it", seconds=70.0, timeline=timeline)
    return bench_page(name, [f"a note on {name}", "another"], report, 0.1)


PAGES = {
    "job": job,
    "failed-job": lambda name="churn": job(name, problem=f"stopped: {name}"),
    "closed": load_test,
    "open": lambda name="churn": load_test(name, "open"),
    "streams": lambda name="churn": load_test(name, streams=True),
}


def test_empty_pages() -> None:
    Parsed(Recorder(lambda: 0.0).page("churn", Report(**dict.fromkeys(REPORT_FIELDS, 0), **REPORT_PATHS), None))
    assert "0" in Parsed(bench_page("churn", [], LoadReport(finished=False), None)).texts["dd"]


REPORT_FIELDS = ("rows", "scored", "failed", "resumed", "retries", "seconds", "finished")
REPORT_PATHS: dict[str, Any] = {"output": Path("out.jsonl"), "errors": Path("errors")}


@settings(max_examples=40)
@given(st.text(min_size=1).filter(lambda text: text.strip() == text and "\r" not in text and "\0" not in text))
def test_any_name_is_text(name: str) -> None:
    for page in (bench_page(name, [name], LoadReport(stopped=name), None), job(name, name, seconds=2)):
        parsed = Parsed(page)
        assert any(name in text for text in ("".join(parsed.texts["h1"]), "".join(parsed.texts["title"])))
        assert parsed.tags["script"] == parsed.tags["img"] == 0
        assert parsed.tags["style"] == parsed.tags["title"] - page.count('<rect class="hover"') == 1


def test_what_a_job_page_says() -> None:
    parsed = Parsed(job("churn", "stopped: 3 of 4 calls failed"))
    said = " ".join(text for texts in parsed.texts.values() for text in texts)
    for expected in ("Batch job on churn", "stopped: 3 of 4 calls failed", "outage", "ModelError", "others", "p99.9"):
        assert expected in said
    assert "ab" not in parsed.texts.get("script", [])


# Pairs of labels on one axis that overlap, boxes wider than the page, and contrasts of texts and curves.
_LOOK = """(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05);
  };
  const colour = element => rgb(getComputedStyle(element).color);
  const card = rgb(getComputedStyle(document.querySelector('figure')).backgroundColor);
  const paper = rgb(getComputedStyle(document.body).backgroundColor);
  const overlaps = [];
  for (const axis of document.querySelectorAll('.x, .y, .marks')) {
    const boxes = [...axis.children].map(e => [e.textContent, e.getBoundingClientRect()]);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
        overlaps.push(one + ' / ' + other);
    }));
  }
  return {
    overlaps,
    wide: document.documentElement.scrollWidth - innerWidth,
    paper: light(paper),
    texts: Math.min(...['h1', 'header p', 'dt', 'dd', 'h2', 'figcaption p', '.legend', '.y span', '.x span', 'footer']
      .map(s => contrast(colour(document.querySelector(s)), s.match(/^h1|header|footer/) ? paper : card))),
    curves: Math.min(...[...document.querySelectorAll('.key:not(.band)')].map(e => contrast(colour(e), card))),
    charts: document.querySelectorAll('figure').length,
    drawn: document.querySelectorAll('svg .line, svg .bar').length,
    title: document.title,
    foreign: document.querySelectorAll('script, img, iframe, object').length,
  };
})()"""


async def shown(page: Page, url: str, scheme: str, width: int) -> dict[str, Any]:
    await page.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    await page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await page.load(url)
    look: dict[str, Any] = await page.evaluate(_LOOK)
    return look


async def test_in_a_browser(tmp_path: Path) -> None:
    """No errors, no requests, nothing that runs, readable in light and dark, on a phone and on a desk."""
    chromium = installed_chromium()
    profile = tmp_path / "profile"
    profile.mkdir()
    urls = []
    for name, page_of in PAGES.items():
        for kind, endpoint in (("plain", "churn"), ("hostile", HOSTILE)):
            file = tmp_path / f"{name}-{kind}.html"
            file.write_text(page_of(endpoint), encoding="utf-8")
            urls.append((file.as_uri(), endpoint))
    async with browsing(chromium, profile) as browser:
        page = await browser.open("about:blank", width=1280, height=900)
        for domain in ("Network", "Log", "Runtime"):
            await page.command(f"{domain}.enable")
        page.listen()
        for url, endpoint in urls:
            looks = (("light", 1280), ("dark", 360), ("light", 768)) if endpoint == "churn" else (("dark", 1280),)
            for scheme, width in looks:
                look = await shown(page, url, scheme, width)
                where = f"{url} {scheme} {width}: {look}"
                assert look["overlaps"] == [], where
                assert look["wide"] <= 0, where
                assert look["texts"] >= 4.5, where
                assert look["curves"] >= 3, where
                assert (look["paper"] > 0.5) == (scheme == "light"), where
                assert look["charts"] >= 5, where
                assert look["drawn"] >= 10, where
                assert endpoint in look["title"], where
                assert look["foreign"] == 0, where
        requested = {params["request"]["url"] for name, params in page.heard if name == "Network.requestWillBeSent"}
        assert requested == {url for url, _ in urls}
        said = [
            (name, params)
            for name, params in page.heard
            if name in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        ]
        assert said == []
