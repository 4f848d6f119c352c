"""One process that reads and writes large JSON, as the gateway sees it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from gateway import __version__, errors
from gateway.apart import child, wire
from gateway.errors import SluiceError
from gateway.telemetry.logs import log

T = TypeVar("T")
PACKAGE: Final = "gateway.codecs."
"""How the modules begin whose functions can be called."""
_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from gateway.apart.child import main; main()"
)
_ERRORS: Final = {
    name: each
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, SluiceError)
}


class CannotStart(Exception):
    """There can be no process; the text says why."""


class ProcessEnded(Exception):
    """The process is gone, or was told to go, before it had answered."""


class Unwanted(Exception):
    """Nobody waits any more, and nothing was begun."""


class Broken(Exception):
    """An error that is none of ours came out of a function; its text is the error's type."""


class CodecProcess:
    """One process. All but `end` is for one thread at a time."""

    def __init__(self, package: str = PACKAGE) -> None:
        self._package = package
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._over = False
        # Whoever gets out of step must not guess it from what a client sent.
        self._number = secrets.randbits(62)
        self.computing = False
        """Whether a call is being sent, worked at, or received."""

    @property
    def pid(self) -> int | None:
        """`None` before the start."""
        return None if self._process is None else self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it may be called (again)."""
        return not self._over and (self._process is None or self._process.poll() is None)

    def start(self) -> None:
        """Waits until it can be called; raises `CannotStart`, `ProcessEnded`."""
        if self._sock is not None:
            return
        try:
            self._sock, theirs = socket.socketpair()
            with theirs:
                self._process = self._popen(theirs.fileno())
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise CannotStart(str(error)) from None
            raise
        if self._over:  # told so while it was started
            self._process.kill()
        with self._in_step():
            version = wire.load(wire.receive(self._sock, self._number))
        if version != __version__:
            self.close()
            raise CannotStart(
                f"the gateway is {__version__}, its files are {version} by now; start it again"
            )

    def _popen(self, fileno: int) -> subprocess.Popen[bytes]:
        # With our flags, and without what lies in the working directory (-P).
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        told = [str(fileno), str(self._number), self._package, json.dumps(sys.path)]
        return subprocess.Popen(
            [sys.executable, *flags, "-P", "-c", _START, *told],
            stdin=subprocess.DEVNULL,
            # It computes nothing for which more than one thread would be of use.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=(fileno,),
        )

    def call(
        self, unwanted: threading.Event, function: Callable[..., T], arguments: tuple[Any, ...]
    ) -> T:
        """What the function gives over there; waits for it.

        Raises `SluiceError` as the function does, `Broken` for its other errors, `ProcessEnded`,
        `Unwanted` if that is set, and whatever comes of arguments that cannot be sent and of
        results that cannot be kept.
        """
        # In this order: who sets the other then looks at this one.
        self.computing = True
        try:
            if unwanted.is_set():
                raise Unwanted
            found: T = result(self._exchange((function, arguments)))
            return found
        finally:
            self.computing = False

    def _exchange(self, call: tuple[Any, ...]) -> Any:
        assert self._sock is not None
        pieces = wire.packed(self._number + 1, call)
        self._number += 1
        with self._in_step():
            wire.send(self._sock, pieces)
            return wire.load(wire.receive(self._sock, self._number))

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """If anything goes wrong in here, nobody reads what is left on the way."""
        try:
            yield
        except (EOFError, OSError):
            self.close()
            raise ProcessEnded from None
        except BaseException:
            self.close()
            raise

    def end(self) -> None:
        """Ends the process at once, from whatever thread; a call that waits for it raises."""
        self._over = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process and waits for its end."""
        self.end()
        if self._sock is not None:
            self._sock.close()
        if self._process is not None:
            self._process.wait()


def result(told: tuple[Any, ...]) -> Any:
    """What was told, or raises the error that was."""
    kind, *rest = told
    if kind == child.DONE:
        return rest[0]
    name, text = rest
    if kind == child.REFUSED:
        error_type = _ERRORS[name]
        error = error_type.__new__(error_type, text)
        raise error
    log.error("unexpected error in the process that reads and writes JSON: %s", text)
    raise Broken(name)
