"""Times as people read them: one form everywhere, with the zone."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.cli.history import local
from gateway.cli.tables import versions_of
from gateway.config import ControlConfig
from gateway.control.checks import Checks
from gateway.control.controls import Controls
from gateway.control.documents import Control, Pause
from gateway.errors import Conflict
from gateway.lifecycle.logs import LoadLog
from gateway.registries.remembered import when
from gateway.state import StateDir
from gateway.times import local_time

AT = 1_795_000_000.5
FORM = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d")


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_all_say_the_moment_in_one_form(
    zone: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        said = local_time(AT)
        assert FORM.fullmatch(said)
        assert datetime.fromisoformat(said).timestamp() == int(AT)
        assert local(datetime.fromtimestamp(AT, UTC).isoformat()) == said
        assert when(AT) == said

        pause = {"who": "ada", "message": "", "at": AT}
        model = {"name": "m", "error": "", "versions": [], "state": "ready", "paused": pause}
        assert [row["cause"] for _, row in versions_of([model]) if row["state"] == "paused"] == [
            f"since {said} by ada"
        ]

        controls = Controls(ControlConfig(), StateDir(tmp_path), lambda name: None)  # type: ignore[arg-type,return-value]
        controls.put(Control(model="m", pause=Pause(who="ada", at=AT)))
        with pytest.raises(Conflict, match=re.escape(f"paused since {said} by ada;")):
            Checks(None, controls).check_not_paused("m")  # type: ignore[arg-type]

        log = LoadLog()
        log.write("loading")
        assert FORM.match(log.text())
    finally:
        monkeypatch.undo()
        time.tzset()
