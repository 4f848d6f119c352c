"""A report as Markdown."""

from __future__ import annotations

from loadtests.scale.study import (
    Check,
    Comparison,
    Report,
    Study,
    sizes_of,
    slope_text,
)

DISTURBED = 0.2
"""Cores used by others from which on it is said."""


def number(value: float) -> str:
    """Three significant digits, and a comma for thousands: ``0.123``, ``12.3``, ``12,345``."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def size_text(value: float, unit: str) -> str:
    """A size; bytes with their binary multiples."""
    if unit.startswith("bytes"):
        for power, letter in ((30, "Gi"), (20, "Mi"), (10, "Ki")):
            if value >= 2**power:
                return f"{value / 2**power:g} {letter}B"
        return f"{value:g} B"
    return f"{value:,g}"


def verdict(words: str) -> str:
    """In words; what is worse than linear, or may be, stands out."""
    return f"**{words}**" if words.endswith("worse than linear") else words


def slopes(study: Study) -> list[str]:
    """The table of what grows how."""
    lines = ["| measure | from | to | slope of the cost | what is added | |", "|---" * 6 + "|"]
    for measure in study.measures:
        name = f"{measure.name} (as time for one)" if measure.rate else measure.name
        for each in measure.stretches:
            low, high = size_text(each.cost.low, study.size), size_text(each.cost.high, study.size)
            added = "" if each.added is None else slope_text(each.added)
            lines.append(
                f"| {name} | {low} | {high} | {slope_text(each.cost)} | {added} "
                f"| {verdict(each.words)} |"
            )
    return lines


def values(study: Study) -> list[str]:
    """The table of what was measured, medians; one line a measure."""
    sizes = sizes_of(study.measures)
    head = " | ".join(size_text(size, study.size) for size in sizes)
    lines = [f"| {study.size} | {head} |", "|---" * (len(sizes) + 1) + "|"]
    for measure in study.measures:
        known = dict(measure.medians)
        row = " | ".join(number(known[size]) if size in known else "" for size in sizes)
        lines.append(f"| {measure.name} ({measure.unit}) | {row} |")
    return lines


def comparisons(found: list[Comparison]) -> list[str]:
    """The table of ratios."""
    lines = ["| | ratio | of the rounds | |", "|---|---|---|---|"]
    for each in found:
        spread = f"{min(each.ratios):.2f} to {max(each.ratios):.2f}"
        lines.append(f"| {each.name} | {each.ratio:.2f} | {spread} | {each.detail} |")
    return lines


def checks(found: list[Check]) -> list[str]:
    """The table of what must hold."""
    lines = ["| | found | should be | |", "|---|---|---|---|"]
    for each in found:
        word = "met" if each.met else "**missed**"
        if not each.met and each.explained:
            word = f"missed, explained: {each.explained}"
        sign = "≤" if each.at_most else "≥"
        unit = f" {each.unit}" if each.unit else ""
        found_text = f"{number(each.value)}{unit}"
        if each.unmeasured:
            word, found_text = f"**not measured**: {each.unmeasured}", ""
        lines.append(f"| {each.name} | {found_text} | {sign} {number(each.bound)}{unit} | {word} |")
    return lines


def section(study: Study, pictures: list[str] | None = None) -> str:
    """One study: pictures, values, slopes, ratios, remarks."""
    parts = [[f"## {study.title}"]]
    if pictures:
        parts.append([f"![{study.title}]({file})" for file in pictures])
    if study.measures:
        parts.append(values(study))
    if any(measure.stretches for measure in study.measures):
        parts.append(slopes(study))
    if study.comparisons:
        parts.append(comparisons(study.comparisons))
    if study.checks:
        parts.append(checks(study.checks))
    remarks = list(study.notes)
    if study.limited:
        remarks.append(f"The client was the bottleneck: {', '.join(study.limited)}.")
    if study.others > DISTURBED:
        remarks.append(
            f"Other processes used up to {study.others:.1f} cores of this machine meanwhile: rates "
            "and latencies are worse than they would be, processor times are nearly right."
        )
    if remarks:
        parts.append([f"- {each}" for each in remarks])
    return "\n\n".join("\n".join(part) for part in parts)


def markdown(report: Report, pictures: dict[str, list[str]] | None = None) -> str:
    """The whole page. ``pictures``: files beside the page, by study."""
    bad, undecided = report.bad, report.undecided
    parts = [
        "# Cost against size\n\n"
        f"Made by `{report.command}`. A slope is that of a line through the points on log-log axes "
        "(least squares, with its standard error): 0 is constant, 1 is linear. Rates count as the "
        "time a request takes. *What is added* is k of a + b * size^k with its 95 % bounds: a "
        "constant part is not in it. *Worse than linear* is what is above 1.05 with 95 % "
        "confidence; whatever is not called so, or perhaps so, is below 1.15 with 95 % confidence, "
        "or no more than a quarter above the cost of the smallest size."
    ]
    if bad:
        parts.append("Worse than it should be:\n\n" + "\n".join(f"- {line}" for line in bad))
    if undecided:
        parts.append("Not decided:\n\n" + "\n".join(f"- {line}" for line in undecided))
    if not bad and not undecided:
        parts.append("Nothing grows faster than its size, and every bound is met.")
    parts += [section(study, (pictures or {}).get(study.name)) for study in report.studies]
    facts = {**report.machine, **report.versions}
    took = ", ".join(f"{study.name} {study.seconds:.0f} s" for study in report.studies)
    machine = [f"- {key}: {value}" for key, value in facts.items()]
    parts.append("\n".join(["## Machine", "", *machine, f"- time: {took}"]))
    return "\n\n".join(parts) + "\n"
