"""All commands in one group, and how errors end it: one line, and a code of `exits`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from gateway import __version__
from gateway.cli import exits
from gateway.cli.bench import bench
from gateway.cli.cache import cache
from gateway.cli.check import check
from gateway.cli.config import config
from gateway.cli.history import history
from gateway.cli.infer import infer
from gateway.cli.labels import label, labels
from gateway.cli.load import load, unload
from gateway.cli.log import log
from gateway.cli.models import models
from gateway.cli.pause import pause, resume
from gateway.cli.promote import promote
from gateway.cli.rollback import rollback
from gateway.cli.runtimes import runtimes
from gateway.cli.serve import serve
from gateway.cli.split import split
from gateway.errors import SluiceError

EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"  {code:3}  {text.replace('`', '')}" for code, text in exits.MEANINGS.items()
)


DID_YOU_MEAN = re.compile(r"\. \(?Did you mean (?:one of: )?(.*)\?\)?$")


class InOrder(click.Group):
    """Lists the commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
    epilog=EPILOG,
)
@click.version_option(__version__, "--version", prog_name="sluice", message="%(prog)s %(version)s")
def sluice() -> None:
    """Serve models over HTTP and gRPC, and look after a gateway that does."""


for command in (
    serve, models, infer, bench, split, promote, rollback, label, labels, pause, resume, load,
    unload, log, history, cache, check, config, runtimes,
):  # fmt: skip
    sluice.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    try:
        code = sluice.main(
            None if arguments is None else list(arguments),
            prog_name="sluice",
            standalone_mode=False,
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else exits.OK
    except exits.Failure as error:
        return complain(str(error), error.code)
    except SluiceError as error:
        return complain(str(error), exits.USAGE)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return exits.USAGE
    except click.UsageError as error:
        return complain(usage_line(error), exits.USAGE)
    except click.ClickException as error:
        return complain(error.format_message(), exits.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return complain("interrupted", exits.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output (`sluice models | head`) has seen enough.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK


def usage_line(error: click.UsageError) -> str:
    """What is wrong and what to type, on one line."""
    text = " ".join(error.format_message().split()).rstrip(".")
    text = DID_YOU_MEAN.sub(lambda m: f"; did you mean {m[1]}?".replace("', '", "' or '"), text)
    path = error.ctx.command_path if error.ctx is not None else "sluice"
    see = " See" if text.endswith("?") else "; see"
    return f"{text[:1].lower()}{text[1:]}{see} '{path} --help'"


def complain(text: str, code: int) -> int:
    with suppress(OSError):
        click.echo(f"sluice: {' '.join(text.split())}", err=True)
    return code
