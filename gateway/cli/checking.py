"""Looks through sources for what would fail, or be ignored, when they are served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.batching.clock import LoopClock
from gateway.config import BatchingConfig, Config
from gateway.errors import SluiceError
from gateway.isolation.nursery import Nursery
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.loading import one_line
from gateway.registries.base import AspiredModel
from gateway.registries.sources import open_registry
from gateway.trust import Trust, local_sources
from runtimes.discovery import choose, load_runtimes
from runtimes.hosts import LoopHost
from runtimes.interface import Artifact, Runtime


@dataclass(frozen=True)
class Finding:
    """One line of the report: a model that is ok, something wrong, or something ignored."""

    state: str
    model: str
    text: str = ""
    versions: tuple[str, ...] = ()
    runtime: str = ""


def check_sources(sources: Iterable[str], *, load: bool) -> list[Finding]:
    """Everything about all models. Raises `RegistryError` for a source that cannot be one."""
    # What is ignored is in the report; no need to log it as well.
    logging.getLogger("sluice").setLevel(logging.ERROR)
    runtimes = load_runtimes()
    sources = tuple(sources)
    with LoopHost() as host:
        trust = Trust(local_sources(sources))
        clock = LoopClock(host.loop)
        config = BatchingConfig()
        nursery = Nursery(host.loop, config)
        loader = Loader(runtimes, config, clock, trust, host, nursery) if load else None
        try:
            return look_through(sources, runtimes, loader)
        finally:
            asyncio.run_coroutine_threadsafe(nursery.close(), host.loop).result()


def look_through(
    sources: Iterable[str], runtimes: dict[str, Runtime], loader: Loader | None
) -> list[Finding]:
    """The findings of all sources, in their order."""
    findings: list[Finding] = []
    owners: dict[str, str] = {}
    for source in sources:
        registry = open_registry(source, Config())
        snapshot = registry.scan()
        if not snapshot:
            text = f"{source} holds no model; one is <model>/<version>/model.onnx"
            findings.append(Finding("wrong", "", text))
        for name, model in snapshot.items():
            if name in owners:
                text = f"it is in {owners[name]} too, and only that one is served; rename one"
                findings.append(Finding("wrong", name, text))
                continue
            owners[name] = source
            findings += check_model(model, runtimes, loader)
        ignored: dict[str, str] = getattr(registry, "ignored", {})
        findings += [Finding("ignored", name, why) for name, why in ignored.items()]
    return findings


def check_model(
    model: AspiredModel, runtimes: dict[str, Runtime], loader: Loader | None
) -> list[Finding]:
    """What is wrong with one model, or that nothing is."""
    problems: list[str] = [model.error] if model.error else list(missing_versions(model))
    found: dict[str, None] = {}
    code: dict[str, None] = {}
    for version, aspired in model.versions.items():
        artifact = Artifact(model.name, version, aspired.path, model.settings)
        try:
            runtime = choose(artifact, runtimes)
            found[runtime.name] = None
            report = runtime.report()
            if not report.available:
                raise SluiceError(report.reason)
            if what := runtime.executes_code(artifact):
                code[f"runs {what} as code"] = None
            if loader is not None:
                loaded = loader.load(model.name, aspired, model.settings, lambda _: None)
                try:
                    problems += image_problem(model, [spec.name for spec in loaded.model.inputs])
                finally:
                    loaded.model.close()
        except SluiceError as error:
            problems.append(f"version {version}: {error}")
        except Exception as error:  # a runtime may fail in any way
            problems.append(f"version {version}: {type(error).__name__}: {one_line(error)}")
    names = ", ".join(found)
    if not problems:
        return [Finding("ok", model.name, "; ".join(code), tuple(model.versions), names)]
    once = dict.fromkeys(problems)
    return [Finding("wrong", model.name, text, tuple(model.versions), names) for text in once]


def missing_versions(model: AspiredModel) -> Iterator[str]:
    """Versions that documents name but no folder holds."""
    settings, traffic = model.settings, model.traffic
    named = {
        "traffic.yaml: weights": set(traffic.weights),
        "traffic.yaml: stable": {traffic.stable} if traffic.stable is not None else set(),
        "traffic.yaml: labels": set(traffic.labels.values()),
        "model.yaml: labels": set(settings.labels.values()),
        "version policy": set(map(str, settings.versions.specific)),
    }
    for where, versions in named.items():
        for version in sorted(versions - set(model.on_disk)):
            there = ", ".join(model.on_disk) or "none"
            yield f"{where}: there is no version {version} (there are: {there})"


def image_problem(model: AspiredModel, inputs: list[str]) -> list[str]:
    image = model.settings.image
    if image is None or image.input in inputs:
        return []
    return [f"model.yaml: image.input '{image.input}' is no input; known: {', '.join(inputs)}"]
