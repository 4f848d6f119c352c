"""Pages and pictures: whole, harmless, the same every time, for whatever was measured."""

from __future__ import annotations

import builtins
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from loadtests.bench.differences import compare as differ
from loadtests.bench.plan import Load
from loadtests.bench.results import Interval, Result, Search, Tick, load
from loadtests.errors import BenchError
from loadtests.report import (
    bench,
    bench_load,
    bench_parts,
    bench_splits,
    bench_time,
    compare,
    curves,
    differences,
    draw,
    look,
    marks,
    page,
    scale,
    soak,
    soak_charts,
    verdict,
    words,
)
from loadtests.report.levels import MOST_TICKS, level_name, levels, timeline, told, told_mean
from loadtests.soak.results import Event, Sample, Soak, Verdict
from loadtests.tests import samples

EVIL = "</script><script>alert(1)</script><!-- \"'&\x00\u202e\ud800"
VOID = {"meta", "link", "br", "img", "input", "hr"}
LOADING = {"src", "href", "srcset", "poster", "action", "formaction", "data", "background"}


class Page(HTMLParser):
    """What a browser would take from a page; fails where elements are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._attributes: dict[str, str | None] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self._attributes = dict(attrs)
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in LOADING]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((self._attributes, data))
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def document(self, name: str) -> str:
        return next(text for attrs, text in self.scripts if attrs.get("data-name") == name)

    def charts(self) -> dict[str, Any]:
        found = next(text for attrs, text in self.scripts if attrs.get("id") == "charts")
        charts: dict[str, Any] = json.loads(found, parse_constant=pytest.fail)
        return charts


@pytest.fixture
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the 900 kB of Vega, which take seconds to put together."""
    monkeypatch.setattr(draw, "javascript", lambda: "/* vega */")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch, no_bundle: None) -> None:
    """Charts are made and checked, but not drawn."""

    def svg(spec: look.Spec) -> str:
        json.dumps(draw.plain(spec), allow_nan=False)
        return "<svg></svg>"

    monkeypatch.setattr(draw, "svg", svg)


def checked(text: str) -> Page:
    """A page that is well-formed, complete, and asks nobody for anything."""
    text.encode("utf-8")
    found = Page(text)
    assert found.loads == []
    assert found.handlers == []
    assert not re.search(r"@import|url\((?!#)", text.split("</style>")[0])
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    return found


def closed() -> Result:
    return samples.result([samples.point(concurrency=c) for c in (1, 4, 16)], expected_split={})


def single() -> Result:
    one = samples.point(2000, bottleneck="its busiest thread used 0.98 of a core")
    return samples.result([one], search=Search("p99<=1ms", None, [(2000.0, False)]))


# --- the page of `sluice bench`


def test_the_real_page_is_complete() -> None:
    text = bench.render(samples.searched())
    found = checked(text)
    assert "vegaEmbed" in text
    assert found.count["svg"] == len(found.charts()) >= 9
    for expected in ("2,000/s", "p99<=20ms", "fell behind at 3,000/s", "as declared", "429"):
        assert expected in found.text
    assert "bottleneck at any level" in found.text
    assert len([1 for attrs, _ in found.scripts if not attrs]) == 2
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawn)


def test_the_json_inside_is_the_result_without_secrets(undrawn: None) -> None:
    result = samples.result()
    inside = checked(bench.render(result)).document("result.json")
    again = load(inside.encode())
    assert again.points == result.points
    assert "secret" not in inside


@pytest.mark.parametrize("result", [closed(), single(), samples.failed()], ids=lambda r: r.payload)
def test_pages_of_other_runs(result: Result, no_bundle: None) -> None:
    checked(bench.render(result))


def test_a_bottleneck_cannot_be_overlooked(undrawn: None) -> None:
    text = bench.render(single())
    assert "The load generator was the bottleneck" in text
    assert text.index('class="banner bad"') < text.index('class="cards"')
    assert "No load that was tried meets p99&lt;=1ms, not even 2,000/s." in text
    assert 'class="banner' not in bench.render(samples.result())


def test_nothing_measured_and_nothing_answered(undrawn: None) -> None:
    assert "Nothing was measured." in checked(bench.render(samples.result([]))).text
    failed = checked(bench.render(samples.failed())).text
    assert "Not one request was answered well. What went wrong: connection." in failed


def test_text_from_outside_does_nothing(no_bundle: None) -> None:
    point = samples.point(
        500, errors={EVIL: 3}, split={EVIL: 0.5, "2": 0.5}, bottleneck=EVIL, samples=50
    )
    result = samples.result(
        [point, samples.point(900, samples=50)],
        target=msgspec.structs.replace(samples.result().target, model=EVIL, grpc=EVIL),
        payload=EVIL,
        command=EVIL,
        started=EVIL,
        machine={EVIL: EVIL},
        versions={EVIL: EVIL},
        notes=[EVIL],
        expected_split={EVIL: 0.5, "2": 0.5},
        search=Search(EVIL, 500.0, [(500.0, True)]),
    )
    # JSON cannot hold a lone surrogate, so no result that was read has one.
    result = msgspec.convert(
        json.loads(re.sub(r"\\ud800", "", json.dumps(msgspec.to_builtins(result)))), Result
    )
    found = checked(bench.render(result))
    assert [attrs for attrs, _ in found.scripts if not attrs] == [{}, {}]
    assert not any("alert" in code for attrs, code in found.scripts if not attrs)
    assert "alert(1)" in found.text
    assert found.count.get("b", 0) == 0


def test_the_end_of_a_script_cannot_stand_in_the_data() -> None:
    said = page.embedded({"a": EVIL, "b": [math.inf, math.nan, 1.5]})
    assert "<" not in said and "&" not in said
    assert json.loads(said) == {"a": EVIL, "b": [None, None, 1.5]}


def test_pictures_and_pages_do_not_change_by_themselves(no_bundle: None) -> None:
    result = samples.result([samples.point(500, samples=20, seconds=2)])
    assert bench.render(result) == bench.render(result)
    assert draw.picture(scale.spec(a_chart()), "x") == draw.picture(scale.spec(a_chart()), "x")


counts = st.integers(0, 10**12)
times = st.none() | st.floats(0, 1e10)
texts = st.text(max_size=12)
ticks = st.builds(
    Tick,
    at_s=st.floats(-100, 1e5),
    seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    sent=counts,
    ok=counts,
    failed=counts,
    p50_us=times,
    p99_us=times,
    versions=st.dictionaries(texts, counts, max_size=12),
    batch_rows=times,
    queue_us=times,
    execute_us=times,
    client_cpu=st.floats(0, 100),
)
LATENCIES = [samples.latency(found) for found in ([], [1], [5, 3_600_000_000], range(1, 400, 3))]
latencies = st.sampled_from(
    [*LATENCIES, msgspec.structs.replace(LATENCIES[1], percentiles_us={}, p99=Interval(0, 1e300))]
)
SERVER = samples.point().server
points = st.builds(
    msgspec.structs.replace,
    st.just(samples.point(500, samples=20)),
    load=st.builds(
        Load, rate=st.sampled_from([0.0, 0.5, 500.0, 1e9]), concurrency=st.integers(0, 4096)
    ),
    warmup_s=st.floats(0, 1e4),
    steady=st.booleans(),
    seconds=st.floats(0, 1e6),
    sent=counts,
    ok=counts,
    errors=st.dictionaries(texts, counts, max_size=25),
    rate=st.floats(0, 1e12),
    rate_ci=st.none() | st.just(Interval(-5.0, 1e12)),
    latency=latencies,
    service=latencies,
    versions=st.dictionaries(texts, counts, max_size=12),
    ticks=st.lists(ticks, max_size=6),
    server=st.none()
    | st.builds(
        msgspec.structs.replace,
        st.just(SERVER),
        queue_us=st.floats(-1, 1e9),
        batch_sizes=st.dictionaries(
            st.sampled_from(["1", "64", "100000", "x", "-3", "²"]), counts, max_size=4
        ),
    ),
)
results = st.builds(
    msgspec.structs.replace,
    st.just(samples.result([])),
    points=st.lists(points, max_size=5),
    expected_split=st.dictionaries(texts, st.floats(0, 1), max_size=4),
    search=st.none() | st.builds(Search, texts, times, st.just([(1.0, True), (2.0, False)])),
)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(results)
def test_any_result_has_a_page(undrawn: None, result: Result) -> None:
    checked(bench.render(result))


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(results)
def test_any_result_can_be_drawn(no_bundle: None, result: Result) -> None:
    text = bench.render(result)
    checked(text)
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawn)


# --- what is drawn


def test_a_long_run_is_thinned_without_losing_requests() -> None:
    long = [samples.point(rate, seconds=3000, samples=20) for rate in (100, 200)]
    found = levels(samples.result(long))
    seconds, together = timeline(found)
    assert together > 1 and len(seconds) <= MOST_TICKS + 4
    assert sum(s.tick.ok for s in seconds) == sum(t.ok for p in long for t in p.ticks)
    assert max(s.tick.p99_us or 0 for s in seconds) == max(
        t.p99_us or 0 for p in long for t in p.ticks
    )
    # No point stands for the warm-up and for the measurement.
    assert all(s.tick.at_s + s.tick.seconds <= 0 or s.tick.at_s >= 0 for s in seconds)


def test_levels_follow_each_other_in_time() -> None:
    found = levels(samples.result())
    for before, after in itertools.pairwise(found):
        assert after.starts - after.point.warmup_s == before.starts + before.point.seconds
    twice = levels(samples.result([samples.point(500), samples.point(500)]))
    assert [level.name for level in twice] == ["500/s", "500/s (2)"]


def test_a_curve_rises_to_the_largest_and_says_where_it_is_unsure() -> None:
    found = curves.curve(samples.latency(range(1, 1001)).histogram)
    assert [us for _, us, _ in found] == sorted(us for _, us, _ in found)
    assert found[0][0] == 0 and found[-1][:2] == (3.0, 1000.0)
    assert {nines: us for nines, us, _ in found}[1.0] == 900.0
    assert all(sure == (nines <= 2.0001) for nines, _, sure in found)
    assert curves.curve("") == [] == curves.curve(samples.latency([]).histogram)
    with pytest.raises(BenchError, match="damaged"):
        curves.curve("nonsense")


def test_the_parts_of_a_latency_are_the_whole() -> None:
    point = samples.point(3000)
    parts = bench_parts.parts(point)
    assert sum(parts.values()) == pytest.approx(point.latency.mean_us)
    assert point.server is not None and parts["queue"] == pytest.approx(point.server.queue_us)
    server = msgspec.structs.replace(point.server, queue_us=1e12, execute_us=-4.0)
    clipped = bench_parts.parts(msgspec.structs.replace(point, server=server))
    assert min(clipped.values()) >= 0
    assert sum(clipped.values()) == pytest.approx(point.latency.mean_us)


def test_bars_begin_at_zero_and_shares_reach_one() -> None:
    found = samples.result()
    spec = bench_splits.versions_over_time(found, levels(found), timeline(levels(found))[0])
    assert spec is not None
    tops: dict[float, float] = {}
    for row in spec["layer"][0]["data"]["values"]:
        tops[row["from"]] = max(tops.get(row["from"], 0), row["high"])
    assert all(top == pytest.approx(1) for top in tops.values())
    borders = next(
        layer["data"]["values"]
        for layer in spec["layer"]
        if layer["mark"].get("strokeDash") and layer["mark"]["type"] == "rule"
    )
    assert borders == [{"at": 0.9}]
    sizes = bench_splits.batch_sizes(found, found.points[2])
    assert sizes is not None
    assert sizes["params"][0]["value"] == "1,000/s"
    assert sizes["layer"][0]["encoding"]["y2"] == {"datum": 0}
    total = sum(r["share"] for r in sizes["data"]["values"] if r["level"] == "1,000/s")
    assert total == pytest.approx(1)


@given(st.floats(1e-6, 1e12), st.floats(1, 1e9))
def test_log_axes_hold_what_they_show(low: float, factor: float) -> None:
    (first, last), labels = marks.ticks(low, low * factor)
    assert first <= low and low * factor <= last and first < last
    assert labels and all(first <= value <= last for value in labels)


def test_colours_are_told_apart_by_their_dark_rules() -> None:
    drawn = [colour.light for colour in look.all_colours()]
    assert len(drawn) == len(set(drawn))
    rules = look.dark_rules()
    spec = bench_load.latency_against_load(samples.result())
    assert spec is not None
    used = set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{6})"', draw.svg(spec)))
    assert used and all(f'"{colour}"' in rules for colour in used)


# --- the verdict


def test_the_headline_is_the_highest_load_that_was_kept_up_with() -> None:
    result = samples.result()
    assert verdict.headline(result) is result.points[3]
    behind = verdict.sentences(result)
    assert any("fell behind at 3,000/s" in said and "86.7 %" in said for said in behind)
    kept = samples.result(result.points[:3])
    assert any("kept up with every load" in said for said in verdict.sentences(kept))
    assert verdict.headline(samples.searched()) is not None
    assert level_name(verdict.headline(samples.searched()) or result.points[0]) == "2,000/s"


def test_shares_are_judged_by_chance() -> None:
    def said(second: int, first: int) -> str:
        point = msgspec.structs.replace(samples.point(), versions={"1": first, "2": second})
        return verdict.split_table(samples.result([point]))[1][4]

    assert said(100, 900) == "as declared"
    assert said(110, 890) == "as declared"
    assert said(200, 800) == "more than declared"
    assert said(1000, 99000) == "less than declared"
    point = msgspec.structs.replace(samples.point(), versions={"3": 10})
    rows = verdict.split_table(samples.result([point]))
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert rows[2][4] == "more than declared"


# --- two results


def test_differences_say_which_is_worse(undrawn: None) -> None:
    a = samples.result()
    b = samples.result([samples.point(rate, capacity=1900) for rate in (250, 500, 1000, 2000)])
    found = checked(differences.render(a, b, differ(a, b)))
    assert "B is worse than A" in found.text
    assert load(found.document("a.json").encode()).points == a.points
    assert "No difference" in checked(differences.render(a, a, differ(a, a))).text
    assert "B is better than A" in checked(differences.render(b, a, differ(b, a))).text


def test_differences_are_drawn(no_bundle: None) -> None:
    a = samples.result([samples.point(rate, samples=100) for rate in (250, 500)])
    found = checked(differences.render(a, a, differ(a, a)))
    assert found.count["svg"] == 4


# --- pictures


def a_chart(**replaced: Any) -> scale.Chart:
    series = [
        scale.Series(
            EVIL,
            [(1, 100.0), (10, 200.0), (100, 1000.0)],
            [(90, 110), (1, 2), (3, 4)],
            "slope 0.50",
        ),
        scale.Series("none", []),
        scale.Series("zero", [(1, 0.0), (2, 5.0)]),
    ]
    fields: dict[str, Any] = {
        "name": "x",
        "title": f"Title {EVIL}",
        "x": "models",
        "y": "MiB",
        "series": series,
    }
    return scale.Chart(**fields | replaced)


@pytest.mark.parametrize("log_x", [True, False])
@pytest.mark.parametrize("log_y", [True, False])
def test_scale_is_well_formed_on_any_axes(log_x: bool, log_y: bool) -> None:
    text = scale.picture(a_chart(log_x=log_x, log_y=log_y))
    ElementTree.fromstring(text)
    assert "slope 0.50" in text
    assert ("cannot show" in text) == log_y
    ElementTree.fromstring(scale.picture(a_chart(series=[], log_x=log_x, log_y=log_y)))


def test_overload_is_well_formed() -> None:
    many = [scale.OverloadPoint(x, 100 * x, 5e3, 0.1, 0, 10.0 * x) for x in (0.5, 1.25, 3)]
    text = scale.overload(scale.Overload(EVIL, 300.0, many))
    ElementTree.fromstring(text)
    assert ">1.25<" in text and "memory" in text
    ElementTree.fromstring(scale.overload(scale.Overload("none", 0.0, [])))


def peers(tmp_path: Path, lines: Any) -> Path:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"format": compare.FORMAT, "lines": lines}))
    return path


def test_servers_are_drawn_model_by_model(tmp_path: Path) -> None:
    def line(server: str, model: str, concurrency: int, mean: float | None) -> dict[str, Any]:
        rate = None if mean is None else 1e6 * concurrency / mean
        return {
            "server": server,
            "model": model,
            "route": "grpc",
            "concurrency": concurrency,
            "mean_us": mean,
            "rate": rate,
            "p99_us": mean,
            "ratio": 2.0,
        }

    lines = [
        line(server, model, concurrency, mean)
        for server, mean in (("slow", 900.0), ("sluicegate", 100.0), ("bare", 50.0), ("bad", None))
        for model in ("add", "../evil</svg>")
        for concurrency in (1, 64)
    ]
    paths = compare.plots(peers(tmp_path, lines), tmp_path)
    assert [path.name for path in paths] == ["add.svg", "evil-svg.svg"]
    for path in paths:
        ElementTree.fromstring(path.read_text("utf-8"))
    text = paths[0].read_text("utf-8")
    order = [text.index(f">{name} · grpc<") for name in ("sluicegate", "slow", "bad", "bare")]
    assert order == sorted(order)
    assert "does not count" in text and "2.00×" in text
    spec = compare.spec("add", compare.models(lines)["add"])
    assert all(
        panel["layer"][0]["encoding"]["x"]["scale"]["domain"][0] == 0 for panel in spec["hconcat"]
    )


def test_a_limit_far_beyond_leaves_the_others_their_bars() -> None:
    lines = [
        {"server": server, "model": "add", "route": "r", "concurrency": 64, "rate": rate}
        for server, rate in (("sluicegate", 10.0), ("slow", 1.0), ("bare", 1e6))
    ]
    [panel] = compare.spec("add", lines)["hconcat"]
    bars = {row["side"]: row for row in panel["data"]["values"]}
    assert bars["limit"]["value"] == 0 and "beyond the scale" in bars["limit"]["text"]
    assert panel["layer"][0]["encoding"]["x"]["scale"]["domain"][1] < 20


@pytest.mark.parametrize("found", ["{", "[]", "{}", '{"format": "sluicegate-peers/1"}'])
def test_another_document_is_refused(tmp_path: Path, found: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(found)
    with pytest.raises(BenchError, match=r"^peers\.json "):
        compare.plots(path, tmp_path)
    with pytest.raises(BenchError, match=r"has no concurrency"):
        compare.plots(peers(tmp_path, [{"server": "", "model": "", "route": ""}]), tmp_path)


# --- soaks


def a_soak(count: int = 40, passed: bool = True) -> Soak:
    taken = [
        Sample(float(i), 1.0, 50, i % 2, 1, 2, 800.0, 9e3, 100.0 + i, None, 40, 9, 1)
        for i in range(count)
    ]
    events = [Event(i * 0.7, ("swap", EVIL)[i % 2], EVIL) for i in range(20)]
    verdicts = [Verdict("no lost request", passed, "0", "0"), Verdict(EVIL, True, EVIL)]
    return Soak(taken, events, verdicts, "2026-11-22T07:30:00+00:00", EVIL, {"cpu": EVIL})


def test_a_soak_is_a_page_and_a_picture(no_bundle: None) -> None:
    made = soak.files(a_soak())
    assert made.keys() == {"soak.html", "soak.svg"}
    found = checked(made["soak.html"])
    assert "Everything held" in found.text and found.count["svg"] == 5
    assert len(json.loads(found.document("soak.json"))["samples"]) == 40
    ElementTree.fromstring(made["soak.svg"])


def test_a_soak_that_failed_or_hardly_began(undrawn: None) -> None:
    assert "1 of 2 did not hold" in checked(soak.render(a_soak(passed=False))).text
    assert "Nothing was judged" in checked(soak.render(Soak([]))).text
    checked(soak.render(Soak([Sample(0, 0, 0), Sample(0, 1, 1)])))


def test_a_long_soak_is_thinned_to_its_worst() -> None:
    long = a_soak(5000).samples
    kept = soak_charts.thinned(long)
    assert len(kept) <= soak_charts.MOST_SAMPLES
    assert sum(s.failed for s in kept) == sum(s.failed for s in long)
    assert max(s.memory_mib or 0 for s in kept) == long[-1].memory_mib
    assert kept[0].children_mib is None


# --- words, and what is missing


@pytest.mark.parametrize(
    ("us", "said"),
    [
        (0, "0 µs"),
        (0.25, "0.250 µs"),
        (850, "850 µs"),
        (999.7, "1 ms"),
        (12_345, "12.3 ms"),
        (999_700, "1 s"),
        (75e6, "75 s"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_durations(us: float | None, said: str) -> None:
    assert words.duration(us) == said


def test_shares_and_intervals() -> None:
    assert [words.share(v) for v in (0, 1, 0.00001, 0.999999, 0.5, 0.0012)] == [
        "0 %",
        "100 %",
        "< 0.01 %",
        "> 99.99 %",
        "50 %",
        "0.12 %",
    ]
    assert words.between(Interval(1100, 2100)) == "1.10 to 2.10 ms"
    assert words.between(Interval(900, 2100)) == "900 µs to 2.10 ms"
    assert words.between(Interval(90, 110), "rate") == "90 to 110/s"
    assert words.between(None) == ""


@given(st.text())
def test_names_are_made_harmless(text: str) -> None:
    name = words.short(text, 12)
    assert len(name) <= 12
    ElementTree.fromstring(f"<a>{page.escape(text)}</a>")


def test_a_percentile_of_few_or_of_unanswered_requests_does_not_look_known(
    undrawn: None,
) -> None:
    few = samples.point(100, samples=400)
    lost = msgspec.structs.replace(samples.point(200, samples=4000), errors={"timeout": 100})
    found = samples.result([few, lost])
    assert [few.known(p) for p in (50, 90, 99, 99.9, 100)] == ["well"] * 2 + ["few"] * 2 + ["well"]
    assert [lost.known(p) for p in (50, 99, 99.9)] == ["well", "at least", "at least"]
    assert told(few, 99).startswith("~") and told(few, 99.9) == "–"
    assert told(lost, 99).startswith("≥ ") and told_mean(lost).startswith("≥ ")
    text = checked(bench.render(found)).text
    assert told(few, 99) in text and told(lost, 99) in text
    assert "~: fewer than 10" in text and "Arrows: that much at least" in text
    assert "99 % within about" in " ".join(verdict.sentences(samples.result([few])))
    assert "or more" in " ".join(verdict.sentences(samples.result([lost])))
    spec = bench_parts.parts_of_latency(found)
    assert spec is not None
    assert {row["level"] for row in spec["data"]["values"]} == {"100/s"}
    page = checked(differences.render(found, found, differ(found, found))).text
    assert "not known: requests had no answer" in page


def test_seconds_without_an_answer_do_not_look_known(undrawn: None) -> None:
    """A flat line at the timeout would read as if somebody had been answered then."""

    def ticks(*lost: int) -> list[Tick]:
        return [
            Tick(float(at), 1.0, 100, 100 - count, count, 4000.0 if count < 50 else 1e6,
                 1e6 if count else 9000.0, unanswered=count)
            for at, count in enumerate(lost)
        ]  # fmt: skip

    point = msgspec.structs.replace(
        samples.point(200, samples=4000), ticks=ticks(0, 2, 60), errors={"timeout": 62}
    )
    found, _ = timeline(levels(samples.result([point])))
    assert [each.bounded for each in found] == [set(), {"p99"}, {"p50", "p99"}]
    assert found[1].row()["p99 "] == "≥ 1 s" and found[1].row()["p50 "] == "4 ms"
    spec = bench_time.latency_over_time(levels(samples.result([point])), found)
    assert spec is not None
    arrows = [each for each in spec["layer"] if each["mark"].get("shape") == "triangle-up"]
    assert [(row["at"], row["what"]) for row in arrows[0]["data"]["values"]] == [
        (row["at"], row["what"]) for row in (
            {"at": found[1].row()["at"], "what": "p99"},
            {"at": found[2].row()["at"], "what": "p50"},
            {"at": found[2].row()["at"], "what": "p99"},
        )
    ]  # fmt: skip
    said = checked(bench.render(samples.result([point]))).text
    assert said.count("Arrows: that much at least") == 1  # one level: no other chart has any
    assert "would see it, without the requests that had no answer." in said
    calm = msgspec.structs.replace(point, ticks=ticks(0, 0), errors={})
    said = checked(bench.render(samples.result([calm]))).text
    assert "Arrows" not in said and "would see it. Faint" in said
    # Drawn together, the largest p99 is still the one of the second without answers.
    many = msgspec.structs.replace(point, ticks=ticks(*[0] * 4000, 3, *[0] * 4000))
    found, together = timeline(levels(samples.result([many])))
    assert together > 1 and [each.bounded for each in found if each.bounded] == [{"p99"}]


def test_a_closed_loop_says_from_when_it_counts(undrawn: None) -> None:
    closed = samples.result([samples.point(concurrency=at) for at in (1, 4)])
    said = checked(bench.render(closed)).text
    assert "Counted from when each request could have been sent." in said


def test_a_search_that_was_not_finished_claims_nothing(undrawn: None) -> None:
    search = Search("p99<=20ms", None, [(100.0, True)], finished=False)
    said = checked(bench.render(samples.result([samples.point(100)], search=search))).text
    assert "The search was not finished" in said and "No load that was tried" not in said
    assert "not known" in said


def test_without_vl_convert_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "vl_convert":
            raise ModuleNotFoundError("No module named 'vl_convert'", name=name)
        return real(name, *args, **kwargs)

    draw._converter.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    try:
        for call in (draw.available, lambda: bench.render(samples.result([samples.point()]))):
            with pytest.raises(BenchError, match=r"pip install 'sluicegate\[bench\]'"):
                call()
    finally:
        draw._converter.cache_clear()
