"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from gateway.config import LISTS, listed

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8080"


def url_options(command: F) -> F:
    """``--url`` and ``--token`` of the commands that talk to a running gateway."""
    token = click.option(
        "--token",
        envvar="SLUICE_TOKEN",
        default="",
        metavar="TOKEN",
        help="The gateway's admin.token; or the environment variable SLUICE_TOKEN.",
    )
    url = click.option(
        "--url",
        envvar="SLUICE_URL",
        default=DEFAULT_URL,
        show_default=True,
        metavar="URL",
        help="The gateway's HTTP address; or the environment variable SLUICE_URL.",
    )
    return url(token(command))


def json_option(command: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def message_option(command: F) -> F:
    """``-m`` of the commands that change something."""
    return click.option(
        "-m",
        "--message",
        default="",
        metavar="TEXT",
        help="Why; kept in the history beside who and when.",
    )(command)


def parse_settings(settings: Iterable[str]) -> dict[str, str | list[str]]:
    """``KEY=VALUE`` words as flags for `load_config`."""
    flags: dict[str, str | list[str]] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(
                f"'{text}' must be KEY=VALUE, such as drain.grace=3", param_hint="'--set'"
            )
        flags[key] = listed(value) if key in LISTS else value
    return flags
