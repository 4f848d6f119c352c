"""Ends what children have started when the gateway is killed: a tiny process that only waits.

A child dies with the gateway by itself, but then nobody is left in it to end the processes that
it has started. The guard knows the process groups of all children, from a pipe whose other end
is the gateway's; when that is gone, it ends them. Run as a script, it imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


class Guard:
    """One for a gateway. Its methods are for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._groups: set[int] = set()
        self._closed = False

    def watch(self, group: int) -> None:
        """Before the child in it may start anything. Raises `OSError`."""
        with self._lock:
            self._groups.add(group)
            self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """While its number is not free yet for another."""
        with self._lock:
            self._groups.discard(group)
            if self._process is not None:
                with contextlib.suppress(OSError):
                    self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        if self._closed:
            return
        if self._process is not None:
            try:
                os.write(self._pipe, line.encode())
            except BrokenPipeError:  # somebody has ended it
                self._end()
            else:
                return
        self._start()
        os.write(self._pipe, "".join(f"+{group}\n" for group in self._groups).encode())

    def _start(self) -> None:
        theirs, ours = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._pipe = ours

    def _end(self) -> None:
        if self._process is not None:
            os.close(self._pipe)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Ends it, and what it still watches; blocking, for a moment."""
        with self._lock:
            self._closed = True
            self._end()


def main() -> None:
    """The guard's own part: learns the groups line by line until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
