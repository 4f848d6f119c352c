"""The process that reads and writes large JSON: one function call after the other."""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gateway import __version__, errors
from gateway.apart import wire
from gateway.errors import SluiceError

DONE: Final = "done"
REFUSED: Final = "refused"
BROKEN: Final = "broken"
OOM_SCORE: Final = "500"
"""Where memory runs out, the kernel looks here before it looks at the gateway."""


def main() -> None:
    """Until the gateway closes its end. Arguments: socket, number of the first frame, package."""
    # Those are for the gateway, which may have requests to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    # JSON has no circles, and a million rows would be looked through again and again.
    gc.disable()
    gc.freeze()
    fileno, number, package = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with contextlib.suppress(EOFError, OSError), socket.socket(fileno=fileno) as sock:
        wire.send(sock, wire.packed(number, __version__))
        while True:
            number += 1
            serve_one(sock, number, package)
            gc.collect()


def serve_one(sock: socket.socket, number: int, package: str) -> None:
    """Receives a call and sends what came of it.

    Raises `EOFError` and `OSError`, and `wire.OutOfStep` where there is nothing to be answered.
    """
    frame = wire.receive(sock, number)
    try:
        function, arguments = wire.load(frame, package)
        del frame
        pieces = wire.packed(number, outcome(function, arguments))
    except Exception as error:  # something that cannot be sent; what was, has been read
        pieces = wire.packed(number, _broken(error))
    wire.send(sock, pieces)


def outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call gives, as it is told to the other side; never raises."""
    try:
        return DONE, function(*arguments)
    except SluiceError as error:
        known = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
        return REFUSED, known.__name__, str(error)
    except Exception as error:
        return _broken(error)


def _broken(error: Exception) -> tuple[str, str, str]:
    return BROKEN, type(error).__name__, traceback.format_exc()


if __name__ == "__main__":
    main()
