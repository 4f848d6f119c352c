"""``sluice history``: who changed what, when and why, and what was served at any moment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from gateway.cli.options import json_option, url_options


@click.command(short_help="Show what was served when, and who changed it.")
@click.argument("model", required=False, default="")
@click.option(
    "--at",
    metavar="WHEN",
    help="What was served then: 2026-11-17T12:00, '2 hours ago', 'last tuesday', ...",
)
@click.option("--until", metavar="WHEN", help="Leave out what came later.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), metavar="N", help="Most entries; 50 unless given."
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Read the history in this state directory, without a running gateway.",
)
@click.option(
    "--database", metavar="URL", help="Read this database (history.url), without a gateway."
)
@url_options
@json_option
def history(
    model: str,
    at: str | None,
    until: str | None,
    limit: int | None,
    state_dir: Path | None,
    database: str | None,
    url: str,
    token: str,
    as_json: bool,
) -> None:
    """Show the record of MODEL, or of all models and the gateways, the newest entry first.

    Times without a zone are those of this machine, and so are those that are printed; a day
    without a time is its beginning. SHARES are what callers that name no version get, in percent.
    """
    from gateway.cli.output import print_json
    from gateway.history.documents import iso
    from gateway.history.times import moment

    if at is not None and (until is not None or limit is not None):
        raise click.UsageError("--at asks for one moment; leave out --until and --limit")
    if state_dir is not None and database is not None:
        raise click.UsageError("give --state-dir or --database, not both")
    query: dict[str, str] = {}
    if at is not None:
        query["at"] = iso(moment(at))
    else:
        query["limit"] = str(limit or 50)
        if until is not None:
            query["until"] = iso(moment(until))
    if state_dir is not None or database is not None:
        tree = from_database(model, query, state_dir, database)
    else:
        from gateway.cli.client import GatewayClient

        with GatewayClient(url, token) as gateway:
            tree = gateway.history(model, **query)
    if as_json:
        print_json(tree)
    elif at is not None:
        show_past(tree, model)
    else:
        show_changes(tree["changes"], model)


def from_database(
    model: str, query: dict[str, str], state_dir: Path | None, database: str | None
) -> dict[str, Any]:
    """What the gateway would answer. Raises `ConfigError` or `RegistryError`."""
    from datetime import datetime

    from gateway.history.documents import change_tree, past_tree
    from gateway.history.store import open_store, read_file

    if state_dir is not None:
        store = read_file(state_dir / "history.db")
    else:
        store = open_store(database or "", read_only=True)
    try:
        named = {"model": model} if model else {}
        if "at" in query:
            at = datetime.fromisoformat(query["at"]).timestamp()
            return {**named, **past_tree(store.past(model, at))}
        until = datetime.fromisoformat(query["until"]).timestamp() if "until" in query else None
        found = store.changes(model, int(query["limit"]), until)
        return {**named, "changes": [change_tree(change) for change in found]}
    finally:
        store.close()


def show_changes(changes: list[dict[str, Any]], model: str) -> None:
    """Entries as a table."""
    from gateway.cli.output import Column, print_table

    if not changes:
        click.echo(f"there is nothing in the history of '{model}'" if model else "no history")
        return
    columns = [Column(name) for name in ("ID", "TIME", "WHO", "ACTION", "SHARES", "MESSAGE")]
    rows = [
        [
            str(change["id"]),
            local(change["at"]),
            change["who"],
            change["action"],
            moved(change),
            change["message"] if change["model"] else with_local_times(change["message"]),
        ]
        for change in changes
    ]
    gateways = {change["gateway"] for change in changes}
    if not model:
        columns.insert(2, Column("MODEL"))
        for row, change in zip(rows, changes, strict=True):
            row.insert(2, change["model"])
    if len(gateways) > 1:
        columns.insert(2, Column("GATEWAY"))
        for row, change in zip(rows, changes, strict=True):
            row.insert(2, change["gateway"])
    print_table(columns, rows)


def show_past(tree: dict[str, Any], model: str) -> None:
    """What was served at one moment."""
    from gateway.cli.output import Column, percent, print_table

    click.echo(f"at {local(tree['at'])}:")
    rows = []
    for served in tree["served"]:
        until = local(served["until"]) if served["until"] else "now"
        for version, share in served["shares"].items():
            facts = served.get("versions", {}).get(version, {})
            rows.append(
                [
                    served["gateway"],
                    served["model"],
                    version,
                    percent(share),
                    "yes" if version == served["stable"] else "",
                    local(served["since"]),
                    until,
                    served["who"],
                    facts.get("source", ""),
                    facts.get("digest", ""),
                    served["message"],
                ]
            )
    names = ("GATEWAY", "MODEL", "VERSION", "SHARE", "STABLE", "SINCE", "UNTIL", "WHO", "SOURCE")
    columns = [Column(name, right=name == "SHARE") for name in (*names, "DIGEST", "MESSAGE")]
    if rows:
        print_table(columns, rows)
    if tree["note"]:
        click.echo(with_local_times(tree["note"]))


def moved(change: dict[str, Any]) -> str:
    """``1 90, 2 10 → 2 100``; where the shares stayed, what else changed."""
    before, after = change["before"], change["after"]
    if before.get("shares") != after.get("shares"):
        return f"{shares(before)} → {shares(after)}"
    if not after.get("shares"):
        return ""
    text = shares(after)
    for version, facts in after.get("versions", {}).items():
        if before.get("versions", {}).get(version, facts) != facts:
            text += f", new files of {version}"
    old, new = before.get("labels", {}), after.get("labels", {})
    for label in sorted({*old, *new}):
        if old.get(label) != new.get(label):
            text += f", {label}: {old.get(label, 'none')} → {new.get(label, 'none')}"
    return text


def shares(served: dict[str, Any]) -> str:
    """``1 90, 2 10``"""
    from gateway.cli.output import number

    return ", ".join(f"{v} {number(s)}" for v, s in served.get("shares", {}).items()) or "none"


def local(text: str) -> str:
    """A time of the API in this machine's zone, to the second."""
    from datetime import datetime

    from gateway.times import local_time

    return local_time(datetime.fromisoformat(text).timestamp())


def with_local_times(text: str) -> str:
    """A text of the gateway's own, with its times in this machine's zone."""
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lambda found: local(found[0]), text)
