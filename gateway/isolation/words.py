"""The last words of a child: what it wrote to stderr, a few lines of it kept."""

from __future__ import annotations

import signal
from collections import deque
from typing import Final

from gateway.errors import printable
from gateway.isolation.bootstrap import REFUSED

LINES: Final = 40
LINE: Final = 400
TOLD: Final = 5
_FATAL: Final = "Fatal Python error:"


class Words:
    """Lines of a stream of bytes, the last ones kept."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LINES)
        self._rest = b""

    def hear(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *whole, rest = (self._rest + data).split(b"\n")
        # A line without an end must not grow for ever.
        self._rest = rest[-4 * LINE :]
        return self._keep(whole)

    def end(self) -> list[str]:
        """The line that was not completed, if any."""
        whole, self._rest = [self._rest], b""
        return self._keep(whole)

    def _keep(self, whole: list[bytes]) -> list[str]:
        lines = [text for raw in whole if (text := raw.decode(errors="replace").strip())]
        self.lines.extend(printable(line, LINE) for line in lines)
        return lines

    def last(self) -> str:
        """The last lines in one. Of a fatal error: its first ones, which say more."""
        lines = list(self.lines)
        for index in range(len(lines) - 1, -1, -1):
            if lines[index].startswith(_FATAL):
                return " | ".join(lines[max(index - 1, 0) : index + TOLD])
        return " | ".join(lines[-TOLD:])


def cause_of_death(returncode: int, killed_for: str, words: Words) -> str:
    """One line for an operator. `killed_for` is why we killed it ourselves, if we did."""
    last = words.last()
    if returncode == REFUSED and words.lines:
        return words.lines[-1]
    if killed_for:
        text = killed_for
    elif returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        text = f"the model's process was ended by {name}"
        if name == "SIGKILL":
            text += " (from outside, or by the system for want of memory)"
    else:
        text = f"the model's process exited with code {returncode}"
    return f"{text}; its last words: {last}" if last else text
