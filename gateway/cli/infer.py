"""``sluice infer``: real requests, and who answered them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import FAILED, OK
from gateway.cli.options import json_option, url_options

if TYPE_CHECKING:
    from gateway.cli.sending import Outcome


@click.command(short_help="Send requests and count who answers.")
@click.argument("model")
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A picture; the model's 'image' settings say how it becomes a tensor.",
)
@click.option(
    "--input", "source", metavar="JSON", help="A request body: a file, '-', or the JSON itself."
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="How many requests to send.",
)
@click.option("--version", default="", metavar="VERSION", help="A version or a label.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=1,
    metavar="C",
    help="How many requests to send at the same time.",
)
@click.option(
    "--key", default="", metavar="KEY", help="Routing key, sent as the header x-sluice-key."
)
@url_options
@json_option
def infer(
    model: str,
    image: Path | None,
    source: str | None,
    count: int,
    version: str,
    concurrency: int,
    key: str,
    url: str,
    token: str,
    as_json: bool,
) -> int:
    """Send requests to MODEL, print the first answer, and how many came from which version.

    Requests go over HTTP, as JSON. The exit code is 1 when one of them failed.
    """
    import asyncio

    from gateway.cli.body import body_of_image, body_of_input
    from gateway.cli.client import GatewayClient, base_url
    from gateway.cli.output import print_json
    from gateway.cli.sending import Plan, send

    if (image is None) == (source is None):
        raise click.UsageError("give either --image FILE or --input JSON")
    if image is not None:
        with GatewayClient(url, token) as gateway:
            body = body_of_image(gateway, model, image)
    else:
        body = body_of_input(source or "")
    plan = Plan(base_url(url), model, body, count, min(concurrency, count), version, key)
    outcome = asyncio.run(send(plan))
    if as_json:
        print_json(as_tree(outcome))
    else:
        print_outcome(outcome)
    return FAILED if outcome.failed else OK


def as_tree(outcome: Outcome) -> dict[str, Any]:
    return {
        "model": outcome.model,
        "requests": outcome.answered + outcome.failed,
        "answered": outcome.answered,
        "failed": outcome.failed,
        "versions": dict(sorted(outcome.versions.items())),
        "errors": dict(outcome.errors),
        "seconds": round(outcome.seconds, 6),
        "p50_ms": outcome.quantile_ms(0.5),
        "p99_ms": outcome.quantile_ms(0.99),
        "first": outcome.first,
    }


def print_outcome(outcome: Outcome) -> None:
    from gateway.cli.answer import answer_lines
    from gateway.cli.output import clean, milliseconds, plural

    if outcome.first is not None:
        version = outcome.first.get("model_version", "")
        route = f" ({outcome.route})" if outcome.route else ""
        click.echo(f"{outcome.model}, version {version}{route}")
        lines = answer_lines(outcome.first)
        width = max((len(name) for name, _ in lines), default=0)
        for name, text in lines:
            click.echo(f"  {clean(name).ljust(width)}  {text}")
    total = outcome.answered + outcome.failed
    if outcome.answered and total > 1:
        click.echo(
            f"{plural(outcome.answered, 'answer')} to {plural(total, 'request')} in "
            f"{outcome.seconds:.2f} s, p50 {milliseconds(outcome.quantile_ms(0.5))}, "
            f"p99 {milliseconds(outcome.quantile_ms(0.99))}"
        )
        for version, answers in sorted(outcome.versions.items()):
            share = 100 * answers / outcome.answered
            click.echo(f"  version {version}: {plural(answers, 'answer')}, {share:.1f} %")
    for text, times in outcome.errors.most_common():
        click.echo(f"sluice: {plural(times, 'request')} failed: {clean(text)}", err=True)
