"""Entries as plain data: rows of the database, lines of the journal, answers of the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gateway.history.base import Change, Moment, Past, Served
from gateway.registries.traffic import Traffic

Row = dict[str, Any]

LONGEST_NAME: Final = 500
LONGEST_TEXT: Final = 10_000
"""Most characters of a message or a cause; what is longer is cut."""


def row_of(change: Change) -> Row:
    """The entry as a row, without its `id`. Every text in it can be stored by any database."""
    return {
        "gateway": storable(change.gateway, 250),
        "run": change.run,
        "seq": change.seq,
        "happened_at": change.at,
        "since": change.since or change.at,
        "changes": change.count,
        "model": storable(change.model, LONGEST_NAME),
        "action": storable(change.action, 30),
        "who": storable(change.who),
        "message": storable(change.message),
        "served_before": json.dumps(served_tree(change.before)),
        "served_after": json.dumps(served_tree(change.after)),
    }


def change_of(row: Mapping[str, Any]) -> Change:
    """The entry of a row of the database."""
    return Change(
        row["model"],
        row["action"],
        row["who"],
        row["message"],
        served_of_tree(json.loads(row["served_before"])),
        served_of_tree(json.loads(row["served_after"])),
        float(row["happened_at"]),
        int(row.get("id", 0)),
        row["gateway"],
        row["run"],
        int(row["seq"]),
        float(row["since"]),
        int(row["changes"]),
    )


def served_tree(served: Served) -> Row:
    """As JSON has it; what is empty is left out."""
    tree: Row = {
        "shares": dict(served.shares),
        "stable": served.stable,
        "labels": dict(served.labels),
        "versions": {version: dict(facts) for version, facts in served.versions.items()},
        "traffic": msgspec.to_builtins(served.traffic),
    }
    return {key: value for key, value in tree.items() if value}


def served_of_tree(tree: Mapping[str, Any]) -> Served:
    return Served(
        tree.get("shares", {}),
        tree.get("stable"),
        tree.get("labels", {}),
        tree.get("versions", {}),
        # Without its limits: what an older or newer gateway declared is told as it was.
        msgspec.convert(known_traffic(tree.get("traffic", {})), Traffic, strict=False),
    )


def known_traffic(tree: Mapping[str, Any]) -> Row:
    """Without keys that this release does not know."""
    return {key: value for key, value in tree.items() if key in Traffic.__struct_fields__}


def change_tree(change: Change) -> Row:
    """The entry as the API tells it; times in ISO 8601, UTC."""
    tree: Row = {
        "id": change.id,
        "at": iso(change.at),
        "model": change.model,
        "action": change.action,
        "who": change.who,
        "message": change.message,
        "gateway": change.gateway,
        "before": served_tree(change.before),
        "after": served_tree(change.after),
    }
    if change.count > 1:
        tree["count"] = change.count
    if change.since < change.at:
        tree["since"] = iso(change.since)
    return tree


def past_tree(past: Past) -> Row:
    """What was served then, as the API tells it."""
    return {
        "at": iso(past.at),
        "note": past.note,
        "served": [moment_tree(moment) for moment in past.moments],
    }


def moment_tree(moment: Moment) -> Row:
    change = moment.change
    return {
        "gateway": moment.gateway,
        "model": moment.model,
        "state": moment.state,
        "shares": {},
        "stable": None,
        **served_tree(change.after),
        "since": iso(change.at),
        "until": None if moment.until is None else iso(moment.until),
        "action": change.action,
        "who": change.who,
        "message": change.message,
        "id": change.id,
    }


def iso(at: float) -> str:
    """Unix seconds as ISO 8601 to the microsecond, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def storable(text: str, limit: int = LONGEST_TEXT) -> str:
    """Text that every database takes: no lone surrogates, no NUL, not too long."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.replace("\0", "�").encode("utf-8", "replace").decode()
