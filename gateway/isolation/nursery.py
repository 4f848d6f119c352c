"""Starts child processes, loads models in them, and keeps spares that take over quickly."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.errors import ModelLoadError, SluiceError
from gateway.isolation import messages as m
from gateway.isolation.arena import Arena
from gateway.isolation.errands import Errands
from gateway.isolation.forking import NotForked
from gateway.isolation.forks import Forks
from gateway.isolation.guard import Guard
from gateway.isolation.launch import Launch, by_exec
from gateway.isolation.limits import Surroundings, isolation_of, surroundings
from gateway.isolation.memory import Segment, Table
from gateway.isolation.model import ChildModel, Curve
from gateway.isolation.priority import LOADING, WAITING, Shares
from gateway.isolation.process import ChildProcess
from gateway.isolation.watch import watch_loading
from gateway.lifecycle.probe import Findings
from gateway.model_settings import IsolationSettings
from gateway.telemetry.logs import log
from runtimes.interface import Artifact, Runtime

if TYPE_CHECKING:
    from gateway.config import BatchingConfig
    from gateway.host import PipelineHost

ROOM: Final = 64 << 20
"""Bytes of shared memory for requests, besides twice what may wait."""
PACKAGES: Final = {
    "torch": "'torch>=2.6'",
    "onnxruntime": "'onnxruntime>=1.20'",
    "mlflow": "'mlflow-skinny>=3.1' 'pandas>=2.2'",
    "ml_dtypes": "ml-dtypes",
    "yaml": "pyyaml",
    "grpc": "grpcio",
}
"""Module → what to install for it, where that has another name or bound."""
Loading = tuple[ChildModel, Findings]
Kind = tuple[Surroundings, tuple[str, ...]]
"""Children of one kind may stand in for each other: equal surroundings, the same imports."""


class Nursery:
    """Owned by the event loop; `load` is for other threads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: BatchingConfig,
        host: PipelineHost | None = None,
    ) -> None:
        self._loop = loop
        self._config = config
        self._host = host
        # Children die with the thread that started them: one that lives as long as we do.
        self._starter = ThreadPoolExecutor(1, "sluice-nursery")
        self._forker = ThreadPoolExecutor(2, "sluice-forks")
        self._forks = Forks(loop, self._starter)
        self._guard = Guard()
        self._shares = Shares(loop)
        self._children: set[ChildProcess] = set()
        self._spares: dict[Kind, ChildProcess] = {}
        self._users: Counter[Kind] = Counter()
        """Models that a spare could stand in for."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def load(
        self, artifact: Artifact, runtime: Runtime, warming: Callable[[str], object]
    ) -> tuple[ChildModel, Findings]:
        """Loads and warms up in a child; blocking, for a thread. Raises `SluiceError`."""
        work = self._load(artifact, runtime, warming)
        tracked = self._tracked(work)
        try:
            loading = asyncio.run_coroutine_threadsafe(tracked, self._loop)
        except RuntimeError as error:  # the loop is closed
            tracked.close()
            work.close()
            raise ModelLoadError("the gateway is closing") from error
        try:
            return loading.result()
        except CancelledError as error:
            raise ModelLoadError("the gateway is closing") from error

    async def _tracked(self, work: Coroutine[Any, Any, Loading]) -> Loading:
        task = asyncio.current_task()
        assert task is not None
        if self._closed:
            work.close()
            raise asyncio.CancelledError
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await work

    async def _load(
        self, artifact: Artifact, runtime: Runtime, warming: Callable[[str], object]
    ) -> tuple[ChildModel, Findings]:
        around = surroundings(isolation_of(artifact.settings), artifact.path.parent)
        queue = artifact.settings.batching.queue
        try:
            arena, table = Arena(Segment, 2 * queue.max_bytes + ROOM), Table()
        except OSError as error:
            raise ModelLoadError(f"isolation: no shared memory: {error.strerror}") from error
        try:
            child, told = await self._bring_up(
                artifact, runtime, around, arena, table, None, lambda: warming(runtime.name)
            )
        except BaseException:
            arena.close()
            table.close()
            raise
        facts, found = told
        known = (found["max_batch_size"], found["notes"])

        async def renew(curve: Curve) -> ChildProcess:
            again, (facts_now, _) = await self._bring_up(
                artifact, runtime, around, arena, table, (*known, curve), lambda: None
            )
            self._want_spare((around, preload_of(artifact, runtime)), artifact, runtime)
            if facts_now != facts:
                again.kill("its files have changed")
                raise ModelLoadError(
                    "the artifact's signature is another one since it was loaded first; put "
                    "changed files into a new version"
                )
            return again

        curve = [(rows, seconds) for rows, seconds in found["curve"]]
        kind = around, preload_of(artifact, runtime)
        self._users[kind] += 1
        self._forks.use(*kind)
        self._want_spare(kind, artifact, runtime)
        model = ChildModel(
            facts, child, arena, table, curve, renew, self._loop, lambda: self._unused(kind)
        )
        return model, Findings(found["max_batch_size"], notes=list(found["notes"]))

    async def _bring_up(
        self,
        artifact: Artifact,
        runtime: Runtime,
        around: Surroundings,
        arena: Arena,
        table: Table,
        known: tuple[Any, ...] | None,
        warming: Callable[[], object],
    ) -> tuple[ChildProcess, tuple[Any, Any]]:
        """A child with the model in it. `known`: what an earlier one has found out.

        Raises `ModelLoadError`, and whatever else the model's loading raised.
        """
        label = f"{artifact.model}/{artifact.version}"
        order = {
            "model": artifact.model,
            "version": artifact.version,
            "path": str(artifact.path),
            "alone": artifact.alone,
            "settings": msgspec.msgpack.encode(artifact.settings),
            "runtime": f"{type(runtime).__module__}:{type(runtime).__qualname__}",
            "package": "",
            "packages": PACKAGES,
            "foreign": around.foreign,
            "max_batch_size": self._config.max_batch_size,
            "inline_us": self._config.inline_us,
            "known": known,
        }
        if around.foreign:
            # Reads the records of all that is installed, the first time: not on the loop.
            order["package"] = await asyncio.to_thread(package_of, type(runtime).__module__)
        isolation = isolation_of(artifact.settings)
        modules = preload_of(artifact, runtime)
        spare = self._spares.pop((around, modules), None)
        if spare is not None and not spare.dead:
            spare.label = label
            try:
                return spare, await self._order(spare, order, isolation, arena, table, warming)
            except SluiceError:
                # It may have been about to end, or its imports were at fault.
                if not spare.ended.is_set() or spare.killed:
                    raise
                log.warning("%s: the spare process has ended; starting another one", label)
        # Of a model that has crashed, callers wait: it does not wait for a fork server's imports.
        child = await self._start(around, label, modules, wait=known is None)
        return child, await self._order(child, order, isolation, arena, table, warming)

    async def _order(
        self,
        child: ChildProcess,
        order: dict[str, Any],
        isolation: IsolationSettings,
        arena: Arena,
        table: Table,
        warming: Callable[[], object],
    ) -> tuple[Any, Any]:
        """Has the model loaded in a child; what it says of it. The child ends if it cannot."""
        loaded: asyncio.Future[tuple[Any, Any]] = self._loop.create_future()
        errands = Errands(child, arena, self._host)

        def heard(message: list[Any]) -> None:
            kind = message[0]
            if kind == m.WARMING:
                warming()
            elif kind == m.PRELOADED:
                pass  # a spare that was taken before it was ready
            elif kind == m.LOADED and not loaded.done():
                loaded.set_result((message[1], message[2]))
            elif kind == m.LOAD_FAILED and not loaded.done():
                error = m.error_of(message[1])
                error.add_note(f"In the child process:\n{message[2]}")
                if child.said:
                    error.add_note(f"It wrote last:\n{child.said}")
                loaded.set_exception(error)
            else:
                errands.take(message)

        def died(cause: str) -> None:
            errands.close()
            if not loaded.done():
                error = ModelLoadError(cause)
                if child.said:
                    error.add_note(f"It wrote last:\n{child.said}")
                loaded.set_exception(error)

        child.on_message, child.on_died = heard, died
        child.errands = errands
        limit = self._loop.call_later(
            isolation.load_seconds, child.kill,
            "the model has not loaded within isolation.load_seconds = "
            f"{isolation.load_seconds:g}",
        )  # fmt: skip
        watch = watch_loading(child, isolation.hang_seconds, self._loop)
        # A new version gives way to what serves; for one that has crashed, callers wait.
        new = order["known"] is None and any(self._users.values())
        self._shares.want(child, LOADING if new else 0)
        try:
            child.attach(arena, table)
            child.send((m.LOAD, order))
            return await loaded
        except BaseException as error:
            child.on_died = lambda cause: None
            errands.close()
            child.kill("its model did not load")
            if isinstance(error, SluiceError | asyncio.CancelledError):
                raise
            raise ModelLoadError(f"{type(error).__name__}: {error}") from error
        finally:
            limit.cancel()
            watch.cancel()
            self._shares.want(child, 0)

    async def _start(
        self,
        around: Surroundings,
        label: str,
        modules: tuple[str, ...],
        *,
        wait: bool = True,
    ) -> ChildProcess:
        """A child that waits for orders: forked where that can be, else a program of its own."""
        for _ in range(2):  # a fork server may have ended just now
            server = await self._forks.server(around, modules, wait=wait)
            if server is None:
                break
            try:
                return await self._begin(self._forker, around, label, server.fork)
            except (NotForked, OSError) as error:
                self._forks.lost(server, str(error))
        try:
            return await self._begin(self._starter, around, label, by_exec)
        except OSError as error:
            raise ModelLoadError(
                f"isolation: '{around.python}' cannot be run: {error.strerror}"
            ) from error

    async def _begin(
        self, threads: Executor, around: Surroundings, label: str, launch: Launch
    ) -> ChildProcess:
        starting = self._loop.run_in_executor(
            threads, ChildProcess, self._loop, around, label, self._guard, launch
        )
        try:
            child = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_never_wanted)
            raise
        child.begin()
        self._children.add(child)
        self._children = {each for each in self._children if not each.ended.is_set()}
        return child

    # --- spares

    def _want_spare(self, kind: Kind, artifact: Artifact, runtime: Runtime) -> None:
        if kind[1] and not self._forks.imported(*kind):
            seconds = isolation_of(artifact.settings).load_seconds
            self._spawn(self._make_spare(kind, runtime.name, seconds))

    def _has_spare(self, kind: Kind) -> bool:
        spare = self._spares.get(kind)
        return spare is not None and not spare.dead

    async def _make_spare(self, kind: Kind, runtime: str, seconds: float) -> None:
        if self._has_spare(kind) or not self._users[kind]:
            return
        try:
            spare = await self._start(kind[0], f"spare for {runtime}", kind[1])
        except ModelLoadError as error:
            log.warning("no spare process for %s: %s", runtime, error)
            return
        if self._has_spare(kind) or not self._users[kind]:
            spare.kill("it is not needed")
            return
        self._spares[kind] = spare
        limit = self._loop.call_later(seconds, self._stuck, kind, spare, seconds)

        def died(cause: str) -> None:
            # Not made again before the next model of its kind has loaded.
            limit.cancel()
            if self._spares.get(kind) is spare:
                del self._spares[kind]
                log.warning("the spare process for %s has ended: %s", runtime, cause)

        spare.on_died = died
        spare.on_message = lambda message: limit.cancel()  # it has imported everything
        self._shares.want(spare, WAITING)
        spare.send((m.PRELOAD, kind[1]))

    def _stuck(self, kind: Kind, spare: ChildProcess, seconds: float) -> None:
        """Its imports hang: whoever took it would wait for them."""
        if self._spares.get(kind) is spare:
            spare.kill(f"its imports took more than isolation.load_seconds = {seconds:g}")

    def _unused(self, kind: Kind) -> None:
        """A model is closed; the last of its kind takes the spare with it."""
        self._users[kind] -= 1
        self._forks.leave(*kind)
        if not self._users[kind] and (spare := self._spares.pop(kind, None)) is not None:
            spare.ask_to_close()

    # --- the end

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends every child that is left: spares, and those that were loading."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = [child for child in self._children if not child.ended.is_set()]
        for child in left:
            child.on_died = lambda cause: None
            child.kill("the gateway has ended")
        for child in left:
            await asyncio.to_thread(child.wait_closed)
        self._spares.clear()
        await self._forks.close()
        self._forker.shutdown(wait=False)
        self._starter.shutdown(wait=False)
        await asyncio.to_thread(self._guard.close)


def _never_wanted(starting: asyncio.Future[ChildProcess]) -> None:
    """A child that was started for a load that is not wanted any more."""
    if not starting.cancelled() and starting.exception() is None:
        child = starting.result()
        child.begin()
        child.kill("it is not wanted any more")


@functools.cache
def package_of(module: str) -> str:
    """What to install for a module that belongs to a plugin; the module's name if unknown. Slow
    the first time."""
    top = module.partition(".")[0]
    return (importlib.metadata.packages_distributions().get(top) or [top])[0]


def preload_of(artifact: Artifact, runtime: Runtime) -> tuple[str, ...]:
    """What a spare imports beforehand; nothing where none is wanted."""
    return tuple(runtime.preload) if isolation_of(artifact.settings).spare else ()
