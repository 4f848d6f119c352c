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

from gateway.apart import wire
from gateway.errors import SluiceError

DONE: Final = "done"
REFUSED: Final = "refused"
BROKEN: Final = "broken"
OOM_SCORE: Final = "500"
"""Where memory runs out, the kernel looks here before it looks at the gateway."""


def main() -> None:
    """Until the gateway closes its end."""
    # Those are for the gateway, which may have requests to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    # JSON has no circles, and a million rows would be looked through again and again.
    gc.disable()
    gc.freeze()
    with contextlib.suppress(EOFError, OSError), socket.socket(fileno=int(sys.argv[1])) as sock:
        while True:
            serve_one(sock)
            gc.collect()


def serve_one(sock: socket.socket) -> None:
    """Receives a call and sends what came of it. Raises `EOFError` and `OSError`."""
    function, arguments = wire.receive(sock)
    wire.send(sock, outcome(function, arguments))


def outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call gives, as it is told to the other side; never raises."""
    try:
        return DONE, function(*arguments)
    except SluiceError as error:
        return REFUSED, type(error), str(error)
    except Exception as error:
        return BROKEN, type(error).__name__, traceback.format_exc()


if __name__ == "__main__":
    main()
