"""Aliases and tags of a registered model ↔ traffic, and the order in which they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidModelSettings, RegistryError
from gateway.registries.mlflow.documents import Alias, Registered, Tag
from gateway.registries.mlflow.traffic import Roles, Write, parse_weights, plan, traffic_of
from gateway.registries.traffic import StickyKey, Traffic

ROLES = Roles()


def model(aliases: dict[str, str], tags: dict[str, str] | None = None) -> Registered:
    return Registered(
        "m",
        aliases=tuple(Alias(*each) for each in aliases.items()),
        tags=tuple(Tag(*each) for each in (tags or {}).items()),
    )


def after(before: Registered, writes: list[Write]) -> Registered:
    aliases, tags = before.by_alias, before.by_tag
    for each in writes:
        table = aliases if each.kind == "alias" else tags
        if each.value is None:
            table.pop(each.name, None)
        else:
            table[each.name] = each.value
    return model(aliases, tags)


def shares(traffic: Traffic) -> dict[str, float]:
    total = sum(traffic.weights.values())
    return {v: round(w / total, 9) for v, w in traffic.weights.items() if w}


def test_champion_takes_all_and_the_challenger_has_its_label() -> None:
    read = traffic_of(model({"champion": "3", "challenger": "4", "7": "1"}), ROLES)
    labels = {"champion": "3", "challenger": "4"}
    assert read.traffic == Traffic(weights={"3": 100.0}, stable="3", labels=labels)


def test_the_tag_names_aliases_or_versions() -> None:
    aliases = {"champion": "3", "challenger": "4"}
    tags = {
        "sluice.traffic": " champion = 85% ,challenger=10,7=5,",
        "sluice.sticky": "header=X-User",
    }
    read = traffic_of(model(aliases, tags), ROLES)
    assert read.traffic.weights == {"3": 85, "4": 10, "7": 5}
    assert read.traffic.stable == "3" and read.traffic.sticky == StickyKey(header="X-User")
    # Promoted by hand: both names are one version, and it takes both parts.
    read = traffic_of(model({"champion": "4", "challenger": "4"}, tags), ROLES)
    assert read.traffic.weights == {"4": 95, "7": 5}


def test_a_name_without_a_version_is_told_of() -> None:
    read = traffic_of(
        model({"champion": "3"}, {"sluice.traffic": "champion=9,challenger=1"}), ROLES
    )
    assert read.traffic.weights == {"3": 9} and read.lost == ("challenger",)
    read = traffic_of(model({"champion": "3"}, {"sluice.traffic": "challenger=1"}), ROLES)
    assert read.traffic.weights == {"3": 100} and read.lost == ("challenger",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("champion", "'champion' must be NAME=WEIGHT"),
        ("champion=-1", "'champion=-1' must be NAME=WEIGHT"),
        ("champion=nan", "must be NAME=WEIGHT"),
        ("champion=1e999", "must be numbers from 0 to 1e9"),
        ("=5", "must be NAME=WEIGHT"),
        ("a=1, a=2", "'a' has two weights"),
        ("a=0", "add up to 0"),
        ("", "add up to 0"),
    ],
)
def test_a_wrong_tag_says_what_to_write(text: str, problem: str) -> None:
    with pytest.raises(InvalidModelSettings, match=problem) as error:
        parse_weights(text, "tag sluice.traffic")
    assert "\n" not in str(error.value)


def test_a_wrong_sticky_tag() -> None:
    with pytest.raises(InvalidModelSettings, match="must be header=NAME or parameter=NAME"):
        traffic_of(model({}, {"sluice.sticky": "cookie=a"}), ROLES)


def test_a_promotion() -> None:
    before = model(
        {"champion": "1", "challenger": "2"}, {"sluice.traffic": "champion=9, challenger=1"}
    )
    old = traffic_of(before, ROLES).traffic
    wanted = Traffic(weights={"2": 100.0}, stable="2", labels=old.labels)
    assert plan(before, wanted, ROLES) == [
        Write("tag", "sluice.traffic", "2=100"),
        Write("alias", "champion", "2"),
        Write("alias", "challenger", None),
        Write("tag", "sluice.traffic", None),
    ]


def test_a_split_moves_the_challenger_first_where_nothing_depends_on_it() -> None:
    before = model({"champion": "1", "challenger": "2"})
    wanted = Traffic(weights={"1": 90.0, "3": 10.0}, stable="1")
    assert plan(before, wanted, ROLES) == [
        Write("alias", "challenger", "3"),
        Write("tag", "sluice.traffic", "champion=90, challenger=10"),
    ]


def test_labels_leave_the_tag_as_somebody_has_written_it() -> None:
    tag = "champion=90,  challenger=10, gone=5"
    before = model(
        {"champion": "1", "challenger": "2", "a": "1"}, {"sluice.traffic": tag, "x": "y"}
    )
    old = traffic_of(before, ROLES).traffic
    wanted = Traffic(weights=old.weights, stable="1", labels={"b": "2"})
    assert plan(before, wanted, ROLES) == [Write("alias", "b", "2"), Write("alias", "a", None)]


def test_labels_that_mlflow_cannot_hold() -> None:
    before = model({"champion": "1"})
    with pytest.raises(RegistryError, match="promote or split to version 2"):
        plan(before, Traffic(stable="1", labels={"champion": "2"}), ROLES)
    for label in ("latest", "V3", "a b", "a/b"):
        with pytest.raises(RegistryError, match="cannot be an alias"):
            plan(before, Traffic(stable="1", labels={label: "1"}), ROLES)


versions = st.sampled_from([str(number) for number in range(1, 6)])
names = st.sampled_from(["champion", "challenger", "a", "b", "1", "2", "3"])
amounts = st.integers(0, 100).map(float)
tags = st.dictionaries(names, amounts, min_size=1, max_size=4).map(
    lambda parts: ", ".join(f"{name}={weight:g}" for name, weight in parts.items())
)


@given(
    aliases=st.dictionaries(st.sampled_from(["champion", "challenger", "a", "b"]), versions),
    tag=st.none() | tags,
    weights=st.dictionaries(versions, amounts, min_size=1, max_size=4).filter(
        lambda each: sum(each.values()) > 0
    ),
    stable=st.booleans(),
    labels=st.dictionaries(st.sampled_from(["a", "b", "c"]), versions),
    sticky=st.none() | st.just(StickyKey(header="x-user")),
)
def test_what_is_written_is_what_is_read_and_a_crash_leaves_the_old_or_the_new(
    aliases: dict[str, str],
    tag: str | None,
    weights: dict[str, float],
    stable: bool,
    labels: dict[str, str],
    sticky: StickyKey | None,
) -> None:
    before = model(aliases, {} if tag is None else {"sluice.traffic": tag})
    chosen = max(weights, key=lambda version: weights[version]) if stable else None
    wanted = Traffic(weights=weights, stable=chosen, labels=labels, sticky=sticky)
    writes = plan(before, wanted, ROLES)
    done = traffic_of(after(before, writes), ROLES).traffic
    assert shares(done) == shares(wanted)
    assert done.stable == wanted.stable_version() and done.sticky == sticky
    assert {k: v for k, v in done.labels.items() if k not in ("champion", "challenger")} == labels
    assert plan(after(before, writes), wanted, ROLES) == []
    try:
        old = shares(traffic_of(before, ROLES).traffic)
    except InvalidModelSettings:
        return
    for count in range(len(writes)):
        between = shares(traffic_of(after(before, writes[:count]), ROLES).traffic)
        assert between in (old, shares(wanted)), (writes, count)
