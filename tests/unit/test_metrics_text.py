"""The page of metrics is what prometheus-client would write, in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families

from gateway.servers import metrics_page, piecewise
from gateway.servers.metrics_page import MOST_PAGES, MetricsPage, Page
from gateway.telemetry.counted import Counted
from gateway.telemetry.metrics import ModelFamilies
from gateway.telemetry.page import Family, counter, label, labels_of, number, write_metric
from gateway.telemetry.stats import ServableStats

VALUES = st.one_of(
    st.integers(-(10**20), 10**20), st.floats(), st.sampled_from([999_999, 1_000_000, -1, 0, 1e21])
)
TEXTS = st.one_of(st.text(), st.text(alphabet='"\\\n ,{}=é\r\t', max_size=6))


class Collector:
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def written(*metrics: Metric) -> bytes:
    """What prometheus-client writes."""
    registry = CollectorRegistry()
    registry.register(Collector(metrics))
    return generate_latest(registry)


@given(TEXTS, st.lists(st.tuples(TEXTS, TEXTS, VALUES), max_size=5))
def test_counters_and_gauges_are_as_the_library_writes_them(
    documentation: str, samples: list[tuple[str, str, float]]
) -> None:
    ours = counter("n", documentation), Family("g", documentation, "gauge")
    theirs = (
        CounterMetricFamily("n", documentation, labels=["model", "version"]),
        GaugeMetricFamily("g", documentation, labels=["model", "version"]),
    )
    for model, version, value in samples:
        labels = f"{label('model', model)},{label('version', version)}"
        assert labels == labels_of({"version": version, "model": model})
        for family in ours:
            family.add(labels, value)
        for metric in theirs:
            metric.add_metric([model, version], value)  # type: ignore[attr-defined]
    assert b"".join(chunk for family in ours for chunk in family.chunks()) == written(*theirs)
    again: list[bytes] = []
    for metric in theirs:
        for _ in write_metric(metric, again):
            pass
    assert b"".join(again) == written(*theirs)


@given(VALUES)
def test_metrics_without_labels_too(value: float) -> None:
    metric = GaugeMetricFamily("g", "Text.", value)
    out: list[bytes] = []
    for _ in write_metric(metric, out):
        pass
    assert b"".join(out) == written(metric)


@given(TEXTS, TEXTS, st.lists(st.floats(0, 1e9), max_size=20))
def test_histograms_are_as_the_library_writes_them(
    model: str, version: str, seconds: list[float]
) -> None:
    histogram = ServableStats().queue_seconds
    for each in seconds:
        histogram.observe(each)
    ours = Family("h", "Text.", "histogram")
    ours.add_histogram(f"{label('model', model)},{label('version', version)}", histogram)
    theirs = HistogramMetricFamily("h", "Text.", labels=["model", "version"])
    total, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
    theirs.add_metric([model, version], buckets, sum_value=histogram.total)
    assert b"".join(ours.chunks()) == written(theirs)


def test_a_name_that_is_no_text_takes_nothing_else_away() -> None:
    family = Family("g", "Text.", "gauge")
    family.add(label("model", "\udcff"), 1)
    assert b'g{model="?"} 1.0\n' in b"".join(family.chunks())


def test_long_families_are_whole() -> None:
    family = Family("g", "Text.", "gauge")
    for place in range(5000):
        family.add(label("place", str(place)), place)
    page = b"".join(family.chunks()).decode()
    (parsed,) = text_string_to_metric_families(page)
    assert [sample.value for sample in parsed.samples] == list(range(5000))
    assert number(4999) in page


def test_models_that_were_never_asked_have_all_their_series() -> None:
    families = ModelFamilies()
    families.add(Counted("m", "1", ServableStats(), decoupled=False, servable=None))
    page = b"".join(chunk for family in families.all() for chunk in family.chunks()).decode()
    names = {s.name for f in text_string_to_metric_families(page) for s in f.samples}
    assert {
        "nv_inference_count_total",
        "sluice_queue_seconds_bucket",
        "sluice_batch_rows_sum",
    } <= names


# --- in pieces


class Pieces:
    """Pages of three pieces, each of which waits to be let go."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def __call__(self, out: list[bytes]) -> Generator[None]:
        self.begun += 1
        mine = b"%d" % self.begun
        try:
            for _ in range(3):
                out.append(mine)
                yield
        finally:
            self.ended += 1


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is a slice."""
    monkeypatch.setattr(piecewise, "SLICE", 0.0)
    monkeypatch.setattr(piecewise, "LONGEST_SLICE", 0.0)


def text(page: Page | None) -> bytes:
    assert page is not None
    return b"".join(page.parts)


@pytest.mark.usefixtures("no_time")
def test_others_have_their_turns_between_the_pieces() -> None:
    async def test() -> None:
        asked = asyncio.create_task(MetricsPage(Pieces()).page())
        turns = 0
        while not asked.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 4
        assert text(asked.result()) == b"111"

    asyncio.run(test())


@pytest.mark.usefixtures("no_time")
def test_who_asks_together_shares_a_page_and_later_ones_get_a_newer_one() -> None:
    async def test() -> None:
        pieces = Pieces()
        page = MetricsPage(pieces)
        first = [asyncio.create_task(page.page()) for _ in range(3)]
        while not pieces.begun:
            await asyncio.sleep(0)
        later = [asyncio.create_task(page.page()) for _ in range(3)]
        assert [text(each) for each in await asyncio.gather(*first)] == [b"111"] * 3
        assert [text(each) for each in await asyncio.gather(*later)] == [b"222"] * 3
        assert pieces.begun == 2
        assert text(await page.page()) == b"333"

    asyncio.run(test())


@pytest.mark.usefixtures("no_time")
def test_a_page_that_nobody_waits_for_any_more_is_given_up() -> None:
    async def test() -> None:
        pieces = Pieces()
        page = MetricsPage(pieces)
        both = [asyncio.create_task(page.page()) for _ in range(2)]
        while not pieces.begun:
            await asyncio.sleep(0)
        behind = asyncio.create_task(page.page())
        both[0].cancel()
        await asyncio.sleep(0)
        assert not pieces.ended
        both[1].cancel()
        assert text(await behind) == b"222"
        assert pieces.ended == 2
        assert text(await page.page()) == b"333"

    asyncio.run(test())


def test_pages_that_are_read_slowly_do_not_pile_up() -> None:
    async def test() -> None:
        page = MetricsPage(Pieces())
        kept = [await page.page() for _ in range(MOST_PAGES)]
        assert await page.page() is None
        del kept[0]
        assert await page.page() is not None

    asyncio.run(test())


def test_an_error_reaches_who_asks_and_is_over_then() -> None:
    broken = True

    def pieces(out: list[bytes]) -> Generator[None]:
        if broken:
            raise RuntimeError("broken")
        out.append(b"well")
        yield

    async def test() -> None:
        nonlocal broken
        page = MetricsPage(pieces)
        for _ in range(2 * MOST_PAGES):
            with pytest.raises(RuntimeError):
                await page.page()
        broken = False
        assert text(await page.page()) == b"well"

    asyncio.run(test())


def test_a_client_that_reads_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "PATIENCE", 0.01)
    page = Page()
    page.parts = [b"a", b"b"]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Any:
        raise AssertionError

    response = metrics_page.PageResponse(page)
    asyncio.run(response({"type": "http", "method": "GET"}, receive, send))
    assert [each.get("body") for each in sent] == [None, b"a"]
    assert (b"content-length", b"2") in sent[0]["headers"]
