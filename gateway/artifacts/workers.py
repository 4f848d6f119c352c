"""A few threads for the files of one version, in turn with those of all others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from gateway.errors import FetchError

Job = Callable[[], object]


def in_threads(
    jobs: Sequence[Job],
    most: int,
    turns: threading.Semaphore,
    meanwhile: Callable[[], object],
    over: threading.Event,
    stopped: threading.Event,
) -> None:
    """Does all jobs in at most `most` threads, each in a turn of its own; calls `meanwhile` in
    this thread five times a second. At the first error `over` is set, for the other jobs to end
    soon; when all threads have ended it is raised. Once `stopped` is set the threads are left
    behind, for they may hang in a read; the interpreter does not wait for them when it ends, as
    it would for a pool's. Raises `FetchError` then.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    errors: list[BaseException] = []
    ended = threading.Semaphore(0)

    def failed(error: BaseException) -> None:
        errors.append(error)
        over.set()

    def work() -> None:
        try:
            while not over.is_set():
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                with turns:
                    if not over.is_set():
                        job()
        except BaseException as error:
            failed(error)
        finally:
            ended.release()

    threads = min(most, len(jobs))
    for number in range(threads):
        threading.Thread(target=work, name=f"sluice-fetch-{number}", daemon=True).start()
    while threads:
        if ended.acquire(timeout=0.2):
            threads -= 1
        elif stopped.is_set():
            over.set()
            raise FetchError("the gateway stops", final=True)
        elif not over.is_set():
            try:
                meanwhile()
            except BaseException as error:
                failed(error)
    if errors:
        raise errors[0]
