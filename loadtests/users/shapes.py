"""The number of users over time, as locust's shapes."""

from __future__ import annotations

from typing import Any, ClassVar

from locust import LoadTestShape
from locust.env import Environment

from loadtests.errors import BenchError
from loadtests.users import levels
from loadtests.users.levels import Saturation
from loadtests.users.tally import Tally

Tick = tuple[int, float]


class SluiceShape(LoadTestShape):
    """Takes ``--users`` for the highest number, ``--run-time`` for its length, ``--spawn-rate``.

    As a class in a locustfile it has the default of every key; ``--shape`` gives others.
    """

    abstract = True
    use_common_options = True
    endless: ClassVar[bool] = True
    """Whether it goes on without ``--run-time``."""

    def __init__(self, keys: dict[str, str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = keys or {}

    @property
    def _options(self) -> Any:
        assert self.runner is not None
        return self.runner.environment.parsed_options

    @property
    def users(self) -> int:
        """``--users``: the highest number of them."""
        return int(self._options.num_users or 1)

    @property
    def run_s(self) -> float:
        """``--run-time`` in seconds; 0: none."""
        return float(self._options.run_time or 0)

    def tick(self) -> Tick | None:
        """Users, and how many come or go a second; ``None``: it is over."""
        at = self.get_run_time()  # type: ignore[no-untyped-call]
        if self.run_s and at >= self.run_s:
            return None
        users = self.users_at(at)
        return users, self.spawn_rate

    @property
    def spawn_rate(self) -> float:
        """Users that come or go a second: ``--spawn-rate``, else as many as locust does without a
        warning."""
        return float(self._options.spawn_rate or 100)

    def users_at(self, at: float) -> int:
        """How many there are ``at`` seconds from the beginning."""
        raise NotImplementedError

    def check(self, users: int, run_s: float) -> None:
        """Raises `BenchError` for keys that do not fit."""
        if not self.endless and not run_s:
            raise BenchError(f"--shape {type(self).__name__.lower()} needs --run-time, as in -t 5m")


class Constant(SluiceShape):
    """All users from the beginning."""

    def users_at(self, at: float) -> int:
        return self.users


class Ramp(SluiceShape):
    """From few users (``from``, 1) to all of them, evenly, in the whole of ``--run-time``."""

    endless = False

    def users_at(self, at: float) -> int:
        return levels.ramp(at, self.run_s, levels.whole(self.keys, "from", 1), self.users)

    def check(self, users: int, run_s: float) -> None:
        super().check(users, run_s)
        least = levels.whole(self.keys, "from", 1)
        _below(least, users, "from")
        levels.check_ramp(least, users)


class Spike(SluiceShape):
    """``base`` users (a tenth), and all of them ``for`` a while (10s), first ``at`` (30s), again
    ``every`` so often (only once)."""

    def users_at(self, at: float) -> int:
        return levels.spike(
            at,
            levels.whole(self.keys, "base", max(self.users // 10, 1)),
            self.users,
            levels.seconds(self.keys, "at", 30.0),
            levels.seconds(self.keys, "for", 10.0),
            levels.seconds(self.keys, "every", 0.0),
        )

    def check(self, users: int, run_s: float) -> None:
        super().check(users, run_s)
        _below(levels.whole(self.keys, "base", max(users // 10, 1)), users, "base")
        first = levels.seconds(self.keys, "at", 30.0)
        lasts = levels.seconds(self.keys, "for", 10.0)
        every = levels.seconds(self.keys, "every", 0.0)
        if run_s and first >= run_s:
            raise BenchError(
                f"--shape spike: the spike at {first:g}s is behind --run-time {run_s:g}s"
            )
        if every and every <= lasts:
            raise BenchError(f"--shape spike: every={every:g}s must be more than for={lasts:g}s")


class Diurnal(SluiceShape):
    """A day in a ``period`` (10m): from ``base`` users (a tenth) to all of them and back."""

    def users_at(self, at: float) -> int:
        return levels.diurnal(
            at,
            levels.whole(self.keys, "base", max(self.users // 10, 1)),
            self.users,
            levels.seconds(self.keys, "period", 600.0),
        )

    def check(self, users: int, run_s: float) -> None:
        super().check(users, run_s)
        _below(levels.whole(self.keys, "base", max(users // 10, 1)), users, "base")
        levels.seconds(self.keys, "period", 600.0)


class StepToSaturation(SluiceShape):
    """More users step by step, until the server has no more to give; then it stops by itself."""

    def __init__(self, keys: dict[str, str] | None = None) -> None:
        super().__init__(keys)
        self.saturation: Saturation | None = None
        self._began = 0.0
        self._counted_from: float | None = None

    def reset_time(self) -> None:
        """A new run begins."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self.saturation = None

    def check(self, users: int, run_s: float) -> None:
        super().check(users, run_s)
        _below(Saturation.of(self.keys, users).start, users, "start")

    def tick(self) -> Tick | None:
        at = self.get_run_time()  # type: ignore[no-untyped-call]
        if self.saturation is None:
            self.saturation = Saturation.of(self.keys, self.users)
            self._began, self._counted_from = at, None
        found = self.saturation
        tally = self._tally()
        if self._counted_from is None and at - self._began >= found.settle_s:
            tally.open_window()
            self._counted_from = at
        elif self._counted_from is not None and at - self._began >= found.hold_s:
            found.ended(tally.window, at - self._counted_from)
            self._began, self._counted_from = at, None
        if found.finished or (self.run_s and at >= self.run_s):
            return None
        return found.users, self.spawn_rate

    def _tally(self) -> Tally:
        from loadtests.users.session import session_of

        assert self.runner is not None
        return session_of(self.runner.environment).tally


def _below(value: int, users: int, key: str) -> None:
    if value > users:
        raise BenchError(f"--shape: {key}={value} is more than --users {users}")


SHAPES: dict[str, type[SluiceShape]] = {
    "constant": Constant,
    "ramp": Ramp,
    "spike": Spike,
    "diurnal": Diurnal,
    "step": StepToSaturation,
}


def shape_of(text: str, environment: Environment) -> SluiceShape:
    """The shape that ``--shape`` names. Raises `BenchError`."""
    name, keys = levels.parse_shape(text)
    options: Any = environment.parsed_options
    shape = SHAPES[name](keys)
    shape.check(int(options.num_users or 1), float(options.run_time or 0))
    return shape
