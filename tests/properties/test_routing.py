"""Routing: long-run shares, stickiness, what is not ready, and snapshots."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.errors import ModelNotReady, UnknownModel, UnknownVersion
from gateway.routing import Route, Router, effective_weights, rendezvous

VERSIONS = st.sampled_from(["1", "2", "3", "10"])
WEIGHTS = st.dictionaries(VERSIONS, st.integers(0, 100), min_size=1).filter(
    lambda weights: any(weights.values())
)
READY = st.sets(VERSIONS)
KEYS = [f"user-{number}" for number in range(400)]


def route(
    weights: dict[str, float], ready: set[str], stable: str | None = None, **more: Any
) -> Any:
    return Route("m", {v: f"servable {v}" for v in ready}, weights, stable, **more)


def even(count: int) -> Any:
    """In place of chance: every part of the interval equally often."""
    steps = iter(range(count))
    return lambda: (next(steps) + 0.5) / count


@given(weights=WEIGHTS)
def test_long_run_shares_are_exactly_the_weights(weights: dict[str, float]) -> None:
    total = int(sum(weights.values()))
    table = route(weights, set(weights))
    draws = even(total)
    found = Counter(table.default(None, draws)[0] for _ in range(total))
    for version, weight in weights.items():
        want = total if sum(map(bool, weights.values())) == 1 and weight else weight
        assert found[f"servable {version}"] == want


def test_chance_comes_near_the_weights() -> None:
    table = route({"1": 90, "2": 10}, {"1", "2"})
    rng = Random(7)
    found = Counter(table.default(None, rng.random)[0] for _ in range(20_000))
    assert abs(found["servable 2"] / 20_000 - 0.1) < 0.01
    assert {table.default(None, lambda: 0.0)[1], table.default(None, lambda: 1.0)[1]} == {"split"}


@given(weights=WEIGHTS, ready=READY, stable=st.one_of(st.none(), VERSIONS))
def test_weight_goes_only_to_ready_versions_and_the_rest_to_the_stable_one(
    weights: dict[str, float], ready: set[str], stable: str | None
) -> None:
    effective = effective_weights(weights, stable, dict.fromkeys(ready))
    assert set(effective) <= ready
    assert all(weight > 0 for weight in effective.values())
    for version, weight in effective.items():
        if version != stable:
            assert weight == weights[version]
    if stable in ready:
        assert sum(effective.values()) == pytest.approx(sum(weights.values()))
    table = route(weights, ready, stable)
    if not effective:
        for key in (None, "k"):
            with pytest.raises(ModelNotReady):
                table.default(key)
        return
    for key in (None, *KEYS[:20]):
        servable, why = table.default(key)
        assert servable.removeprefix("servable ") in effective
        assert why in ("split", "sticky", "fallback")


@given(weights=WEIGHTS, key=st.text(max_size=20))
def test_a_key_always_gives_the_same_version(weights: dict[str, float], key: str) -> None:
    turned = dict(reversed(weights.items()))
    assert rendezvous("m", key, weights) == rendezvous("m", key, turned)
    # By the shares alone, whatever they are written in.
    scaled = {version: weight * 2 for version, weight in weights.items()}
    assert rendezvous("m", key, weights) == rendezvous("m", key, scaled)


def test_keys_stay_where_they_are_from_one_release_to_the_next() -> None:
    weights = {"1": 90.0, "2": 10.0}
    found = [rendezvous("digits", f"user-{n}", weights) for n in range(40)]
    assert [n for n, version in enumerate(found) if version == "2"] == [15, 21, 24, 39]


@given(old=WEIGHTS, new=WEIGHTS)
def test_keys_move_only_towards_versions_that_gain(
    old: dict[str, float], new: dict[str, float]
) -> None:
    old = {v: w for v, w in old.items() if w}
    new = {v: w for v, w in new.items() if w}
    for key in KEYS[:100]:
        before, after = rendezvous("m", key, old), rendezvous("m", key, new)
        if before != after:
            kept = new.get(before, 0) / old[before]
            gained = new[after] / old[after] if after in old else float("inf")
            assert gained > kept


@given(first=st.integers(1, 99), second=st.integers(1, 99))
def test_a_canary_that_grows_takes_keys_and_gives_none_back(first: int, second: int) -> None:
    small, large = sorted((first, second))
    for key in KEYS:
        if rendezvous("m", key, {"1": 100 - small, "2": small}) == "2":
            assert rendezvous("m", key, {"1": 100 - large, "2": large}) == "2"


@pytest.mark.parametrize(
    "weights", [{"1": 50, "2": 50}, {"1": 90, "2": 10}, {"1": 5, "2": 3, "3": 2}]
)
def test_the_share_of_keys_is_the_weight(weights: dict[str, float]) -> None:
    count = 20_000
    found = Counter(rendezvous("m", str(number), weights) for number in range(count))
    for version, weight in weights.items():
        assert found[version] / count == pytest.approx(weight / sum(weights.values()), abs=0.012)


@given(weights=WEIGHTS, gone=VERSIONS, stable=st.one_of(st.none(), VERSIONS))
def test_a_version_that_is_not_ready_moves_its_own_keys_only(
    weights: dict[str, float], gone: str, stable: str | None
) -> None:
    everything = set(weights) | ({stable} if stable else set())
    assume(gone in everything)
    whole = route(weights, everything, stable)
    rest = route(weights, everything - {gone}, stable)
    for key in KEYS[:100]:
        before, _ = whole.default(key)
        try:
            after, why = rest.default(key)
        except ModelNotReady:
            assert not rest.effective
            continue
        if before != f"servable {gone}":
            assert after == before
        elif stable is not None and stable != gone:
            assert after == f"servable {stable}"
            assert why == "fallback"


def test_versions_and_labels_by_name() -> None:
    table = route(
        {"1": 1}, {"1", "2"}, "1",
        labels={"canary": "2", "next": "3", "2": "1"}, known_versions=("1", "2", "3"),
    )  # fmt: skip
    assert table.named("2") == ("servable 2", "version")
    assert table.named("canary") == ("servable 2", "label")
    for name in ("3", "next"):
        with pytest.raises(ModelNotReady, match="version 3"):
            table.named(name)
    with pytest.raises(UnknownVersion, match="it has: 1, 2, 3, canary, next"):
        table.named("../etc/passwd\0")
    assert table.default(None) == ("servable 1", "split")


def test_an_unready_canary_is_said_to_fall_back() -> None:
    assert route({"1": 90, "2": 10}, {"1"}, "1").default("k") == ("servable 1", "fallback")
    with pytest.raises(ModelNotReady, match="no version that is ready: still loading"):
        route({"1": 1}, set(), reason="still loading").default(None)


def test_a_version_without_weight_is_reached_by_name_alone() -> None:
    table = route({"1": 1, "2": 0}, {"1", "2"})
    assert {table.default(key)[0] for key in KEYS} == {"servable 1"}
    assert table.named("2") == ("servable 2", "version")


def test_a_table_is_a_snapshot() -> None:
    router: Router[str] = Router()
    weights = {"1": 1.0}
    versions = {"1": "a"}
    router.publish(Route("m", versions, weights, "1"))
    held, old = router.table, router.route("m")
    versions["2"] = weights["2"] = None  # type: ignore[assignment]
    assert "2" not in old.versions and "2" not in old.weights
    for mapping in (old.versions, old.weights, old.labels, old.effective):
        with pytest.raises(TypeError):
            mapping["9"] = "b"  # type: ignore[index]
    with pytest.raises(AttributeError):
        old.stable = "2"  # type: ignore[misc]
    router.publish(Route("m", {"2": "b"}, {"2": 1}))
    router.publish(Route("other", {"1": "c"}, {"1": 1}))
    assert held == {"m": old}
    assert old.default(None) == ("a", "split")
    router.withdraw("m")
    with pytest.raises(UnknownModel, match=r"^Request for unknown model: 'othre' .*'other'"):
        router.route("othre")
    with pytest.raises(UnknownModel):
        router.route("\0" * 100_000)
