"""Prints ``docs/cli.md`` from the commands themselves: ``python -m gateway.cli.docs``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from gateway.cli import exits
from gateway.cli.commands import sluice

HEAD = """\
# Command line

`sluice` and `python -m gateway` are the same. This page is made by `make docs` from the commands'
own help; `sluice COMMAND --help` says the same in a terminal.

`--json` prints JSON instead of a table (`bench --json FILE` writes it besides). An error is one
line on standard error that begins with `sluice:` and says what to type; logs go to standard error
too.

## Exit codes

| code | meaning |
|---|---|
"""

AFTER_CODES = """
## Environment

Every configuration key can be set by a variable (see [configuration](configuration.md)); `serve`
and `config show` read them. The commands that talk to a running gateway read `SLUICE_URL` and
`SLUICE_TOKEN` in place of `--url` and `--token`.
"""


def page() -> str:
    """The whole page."""
    codes = "".join(f"| {code} | {text} |\n" for code, text in exits.MEANINGS.items())
    commands = "\n".join(section(words, command) for words, command in walk(sluice, "sluice"))
    return f"{HEAD}{codes}{AFTER_CODES}\n{commands}"


def walk(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from walk(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def section(words: str, command: click.Command) -> str:
    """One command: usage, what it does, its options."""
    context = click.Context(command, info_name=words)
    pieces = [p for p in command.collect_usage_pieces(context) if p != "[OPTIONS]"]
    usage = " ".join([words, *pieces, "[OPTIONS]"])
    text = inspect.cleandoc(command.help or "")
    lines = [f"## {words}\n", f"```\n{usage}\n```\n", f"{escaped(text)}\n"]
    lines.append("| option | |\n|---|---|")
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if isinstance(option, click.Option) and record is not None and "--help" not in option.opts:
            lines.append(f"| `{record[0].replace('|', ' or ')}` | {escaped(record[1])} |")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    return text.replace("<", "\\<").replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
