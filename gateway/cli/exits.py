"""Exit codes, and the error that carries one."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
MODEL_FAILED: Final = 4
INTERRUPTED: Final = 130

MEANINGS: Final = {
    OK: "done; for `serve`: stopped after a clean drain",
    FAILED: "the gateway refused it, a request failed, or `check` found something wrong; "
    "for `bench`: an objective is missed, or B is worse",
    USAGE: "wrong usage or configuration; nothing was done",
    UNREACHABLE: "no gateway answers at the URL",
    MODEL_FAILED: "`serve --strict`: a model failed to load",
    INTERRUPTED: "interrupted; for `serve`: by a second signal, without waiting for requests",
}


class Failure(Exception):
    """Ends the command with one line for the user and an exit code."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code
