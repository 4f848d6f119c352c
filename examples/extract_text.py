"""Collect lines of Python code and of English prose from the standard library's source.

Its result, ``data/text_lines.tsv``, is kept with the examples because the library's source
differs from one Python release to the next. Run ``python -m examples.extract_text`` only to
make it anew (then train anew). Nothing but the standard library is needed.
"""

from __future__ import annotations

import ast
import inspect
import io
import random
import sysconfig
import tokenize
from pathlib import Path

from examples.datasets import TEXT_LINES

TRAIN_MODULES = (
    "argparse", "asyncio/base_events", "base64", "bdb", "calendar", "cgi", "codecs",
    "collections/__init__", "configparser", "contextlib", "copy", "csv", "datetime",
    "difflib", "doctest", "email/message", "fractions", "ftplib", "functools", "gzip",
    "heapq", "imaplib", "inspect", "ipaddress", "locale", "mailbox", "nntplib", "optparse",
    "pathlib", "pdb", "pickle", "platform", "random", "shutil", "smtplib", "sqlite3/dump",
    "statistics", "string", "subprocess", "tarfile", "textwrap", "threading", "traceback",
    "turtle", "unittest/case", "unittest/mock", "urllib/request", "warnings", "zipfile",
)  # fmt: skip
HELD_OUT_MODULES = (
    "_pydecimal", "aifc", "bisect", "cmd", "concurrent/futures/_base", "dataclasses", "enum",
    "filecmp", "getopt", "http/client", "http/server", "logging/__init__", "os", "queue",
    "sched", "selectors", "shelve", "socket", "tempfile", "timeit", "typing", "wave",
)  # fmt: skip
COUNTS = {"train": 1800, "held_out": 400}
"""Lines of each kind in each part."""


def code_lines(source: str) -> set[str]:
    """Lines that hold code, without comments and without lines that touch a longer string."""
    lines = source.splitlines()
    used: set[int] = set()
    excluded: set[int] = set()
    ignored = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        rows = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and len(rows) > 1):
            excluded.update(rows)
        elif token.type not in ignored:
            used.update(rows)
    return {lines[row - 1].strip() for row in used - excluded}


def prose_lines(source: str) -> set[str]:
    """Lines of doc-strings that read as a sentence or a piece of one."""
    found: set[str] = set()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, kinds):
            continue
        for paragraph in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n"):
            lines = paragraph.splitlines()
            # An indented or a doctest paragraph is an example, a table or a listing.
            if any(line.startswith((" ", ">>>", "...")) for line in lines):
                continue
            found.update(line.strip() for line in lines if len(line.split()) >= 4)
    return found


def main() -> None:
    """Write the file: a header, then part, kind, module and text of each line."""
    library = Path(sysconfig.get_paths()["stdlib"])
    rows = ["part\tkind\tmodule\ttext"]
    seen: set[str] = set()
    for part, modules in (("held_out", HELD_OUT_MODULES), ("train", TRAIN_MODULES)):
        for kind, extract in (("code", code_lines), ("prose", prose_lines)):
            lines: dict[str, str] = {}
            for module in modules:
                source = (library / f"{module}.py").read_text(encoding="utf-8")
                for line in sorted(extract(source) - seen):
                    if len(line) >= 8 and "\t" not in line:
                        lines[line] = module
            seen.update(lines)
            chosen = random.Random(0).sample(sorted(lines), COUNTS[part])
            rows += [f"{part}\t{kind}\t{lines[line]}\t{line}" for line in chosen]
    TEXT_LINES.parent.mkdir(exist_ok=True)
    TEXT_LINES.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
