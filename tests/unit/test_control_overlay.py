"""People's decisions over what a registry wants."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ControlConfig
from gateway.control.controls import Controls
from gateway.control.documents import Control, Documents, Pause
from gateway.control.overlay import overlaid, overridden, pins
from gateway.errors import InvalidModelSettings
from gateway.model_settings import ImageSettings, LimitSettings, ModelSettings, VersionPolicy
from gateway.registries.base import AspiredModel, AspiredVersion
from gateway.registries.config_json import config_text
from gateway.registries.traffic import Traffic
from gateway.state import StateDir


def model(*versions: str, **more: object) -> AspiredModel:
    made = {v: AspiredVersion(v, Path(v), ("files", v)) for v in versions}
    fields: dict[str, object] = {"on_disk": ("1", "2", "3", "4"), **more}
    return AspiredModel("m", made, **fields)  # type: ignore[arg-type]


def control(**fields: object) -> Control:
    return msgspec.structs.replace(Control(model="m"), **fields)


def test_no_decision_changes_nothing() -> None:
    aspired = model("3", "4", stand_ins={"2": AspiredVersion("2", Path("2"), 2)})
    assert overlaid(aspired, control()) is aspired
    assert pins(aspired, control()) == frozenset()
    assert control().empty


def test_unloaded_wants_nothing_and_says_so() -> None:
    aspired = model("3", error="broken")
    for wanted in (
        overlaid(aspired, control(loaded=False)),
        overlaid(aspired, control(), explicit=True),
    ):
        assert (wanted.versions, wanted.error) == ({}, "")
        assert "sluice load m" in wanted.unloaded
        assert wanted.traffic == aspired.traffic
    assert overlaid(aspired, control(loaded=True), explicit=True) == aspired


@given(st.sets(st.sampled_from("1234")), st.sets(st.sampled_from("1234")))
def test_versions_left_out_are_never_wanted(without: set[str], with_: set[str]) -> None:
    aspired = model("1", "2", "3", stand_ins={"4": AspiredVersion("4", Path("4"), 4)})
    document = control(without_versions=tuple(without), with_versions=tuple(with_))
    wanted = overlaid(aspired, document)
    assert not without & (wanted.versions.keys() | wanted.stand_ins.keys())
    assert set(wanted.versions) == {"1", "2", "3"} - without
    assert pins(aspired, document) == with_


def test_a_configuration_loads_anew_and_keeps_what_it_cannot_say() -> None:
    image = ImageSettings(input="x", width=1, height=1)
    own = ModelSettings(
        labels={"a": "1"}, image=image, limits=LimitSettings(max_rows=9), runtime="onnx",
        max_batch_size=4,
    )  # fmt: skip
    aspired = model("3", settings=own)
    document = control(config=config_text('{"max_batch_size": 8}', "m"))
    wanted = overlaid(aspired, document)
    settings = wanted.settings
    assert (settings.max_batch_size, settings.runtime, settings.labels) == (8, "onnx", {"a": "1"})
    assert (settings.image, settings.limits) == (image, own.limits)
    assert settings.versions == own.versions
    assert wanted.versions["3"].fingerprint != aspired.versions["3"].fingerprint
    again = overlaid(aspired, document)
    assert again == wanted


def test_a_configuration_may_choose_versions() -> None:
    text = config_text('{"versionPolicy": {"specific": {"versions": [1, 2]}}}', "m")
    document = control(config=text)
    assert pins(model("4"), document) == {"1", "2"}
    wanted = overlaid(model("1", "2", "4"), document)
    assert set(wanted.versions) == {"1", "2"}
    assert wanted.settings.versions == VersionPolicy(specific=(1, 2))


def test_zero_rows_are_not_forgotten() -> None:
    for name in ("max_batch_size", "maxBatchSize"):
        text = config_text(json.dumps({name: 0}), "m")
        assert overridden(ModelSettings(), control(config=text), "m").max_batch_size == 0
    text = config_text("{}", "m")
    settings = overridden(ModelSettings(max_batch_size=7), control(config=text), "m")
    assert settings.max_batch_size is None


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "not JSON"),
        ("1", "must be a JSON object, not int"),
        ('{"instance_groups": []}', "did you mean 'instance_group'"),
        ('{"input": [{"nam": "x"}]}', "did you mean 'name'"),
        ('{"max_batch_size": 1.5}', "config:"),
        ('{"ensemble_scheduling": {}}', "not supported"),
        ("[" * 100_000, "config:"),
        (" " * 2_000_000, "longer than"),
    ],
)
def test_what_is_no_configuration(document: str, words: str) -> None:
    with pytest.raises(InvalidModelSettings, match=words):
        config_text(document, "m")


def test_files_stand_for_all_versions() -> None:
    document = control(files="load", config=config_text('{"max_batch_size": 2}', "m"))
    files = {"2": Path("f/2"), "10": Path("f/10")}
    aspired = model("3", traffic=Traffic(weights={"3": 1}), error="unreadable")
    wanted = overlaid(aspired, document, files=files)
    assert list(wanted.versions) == ["10"]
    assert wanted.versions["10"].path == Path("f/10")
    # Whose code is trusted goes by where it came from, not by where it lies.
    assert wanted.versions["10"].source == "upload://m/10"
    assert (wanted.traffic, wanted.error, wanted.on_disk) == (Traffic(), "", ("2", "10"))
    other = overlaid(aspired, msgspec.structs.replace(document, files="another"), files=files)
    assert other.versions["10"].fingerprint != wanted.versions["10"].fingerprint
    assert pins(aspired, document) == frozenset()


def test_paused_at_the_start_is_as_at_the_pause() -> None:
    pause = Pause(who="ada", at=1.0, versions=("1", "9"), traffic=Traffic(weights={"1": 1}))
    aspired = model(
        "1", "4", traffic=Traffic(weights={"4": 1}), settings=ModelSettings(instances=2)
    )
    document = control(pause=pause)
    wanted = overlaid(aspired, document)
    assert (set(wanted.versions), wanted.traffic, wanted.settings.instances) == (
        {"1"}, pause.traffic, 0,
    )  # fmt: skip
    assert pins(aspired, document) == {"1", "9"}


def test_paused_at_the_start_has_the_stand_in_of_the_pause() -> None:
    """Nothing else may be there to answer."""
    pause = Pause(who="ada", at=1.0, versions=("4",), stand_ins=("3", "1", "9"))
    document = control(pause=pause)
    assert pins(model("4"), document) == {"1", "3", "4", "9"}
    # What is pinned is among the registry's versions.
    for aspired in (
        model("3", "4", stand_ins={"1": AspiredVersion("1", Path("1"), 1)}),
        model("1", "3", "4"),
    ):
        wanted = overlaid(aspired, document)
        assert (list(wanted.versions), list(wanted.stand_ins)) == (["4"], ["3", "1"])


def test_documents_survive_and_garbage_does_not_hurt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documents = Documents(StateDir(tmp_path))
    assert documents.read() == {}
    pause = Pause(who="ada", at=1.0, settings=ModelSettings(labels={"a": "1"}))
    one = control(loaded=False, pause=pause)
    other = Control(model="../odd name", with_versions=("3",))
    documents.write(one)
    documents.write(other)
    (tmp_path / "control" / "x.json").write_text('{"model": ')
    assert documents.read() == {"m": one, "../odd name": other}
    assert "x.json cannot be read" in caplog.text
    documents.write(control())
    assert list(documents.read()) == ["../odd name"]
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / "control"}


class Pinned:
    source = "here"

    def __init__(self) -> None:
        self.pins: list[tuple[str, frozenset[str]]] = []
        self.hints = 0

    def pin(self, model: str, versions: frozenset[str]) -> None:
        self.pins.append((model, versions))

    def hint(self) -> None:
        self.hints += 1


def test_a_registry_is_told_of_versions_once(tmp_path: Path) -> None:
    registry = Pinned()
    controls = Controls(ControlConfig(), StateDir(tmp_path), lambda name: registry)  # type: ignore[arg-type,return-value]
    controls.documents.write(control(with_versions=("1",)))
    controls.start([registry])  # type: ignore[list-item]
    assert registry.pins == [("m", frozenset({"1"}))]
    for _ in range(2):
        controls.take([model("1", "4")], [])
    assert len(registry.pins) == 1
    controls.put(control())
    controls.now("m")
    assert registry.pins[1:] == [("m", frozenset())]
    assert registry.hints == 1


def test_a_paused_model_is_held_whatever_the_registry_says(tmp_path: Path) -> None:
    controls = Controls(ControlConfig(), StateDir(tmp_path), lambda name: Pinned())  # type: ignore[arg-type,return-value]
    ((held,), _) = controls.take([model("4")], [])
    controls.hold(held)
    controls.put(control(pause=Pause(who="ada", at=1.0, versions=("4",))))
    assert controls.take([model("1", "2", traffic=Traffic(weights={"1": 1}))], []) == ([held], [])
    assert controls.take([], ["m"]) == ([held], [])
    controls.put(control())
    assert controls.now("m") == ([], ["m"])


def test_only_what_is_new_of_a_registry_is_handed_on(tmp_path: Path) -> None:
    controls = Controls(ControlConfig(), StateDir(tmp_path), lambda name: Pinned())  # type: ignore[arg-type,return-value]
    first = model("4")
    assert controls.take([first], []) == ([first], [])
    assert controls.take([first], []) == ([], [])
    assert controls.take([model("4")], []) == ([], [])
    assert controls.take([model("5")], []) == ([model("5")], [])
    assert controls.take([], ["m"]) == ([], ["m"])
    assert controls.take([model("5")], []) == ([model("5")], [])


def test_a_registry_that_cannot_be_told_of_versions_is_told_again(tmp_path: Path) -> None:
    registry = Pinned()
    away = True

    def owner(name: str) -> Pinned:
        if away:
            raise KeyError(name)
        return registry

    controls = Controls(ControlConfig(), StateDir(tmp_path), owner)  # type: ignore[arg-type]
    controls.put(control(with_versions=("1",)))
    controls.take([model("4")], [])
    away = False
    controls.take([model("4")], [])
    assert registry.pins == [("m", frozenset({"1"}))]
    assert controls.take([model("4")], []) == ([], [])


def test_a_look_that_began_before_a_split_does_not_undo_it(tmp_path: Path) -> None:
    controls = Controls(ControlConfig(), StateDir(tmp_path), lambda name: Pinned())  # type: ignore[arg-type,return-value]
    old, new = Traffic(weights={"1": 1}), Traffic(weights={"2": 1})
    before = model("1", "2", traffic=old)
    controls.take([before], [])
    began = controls.moment
    controls.set_traffic("m", new)
    assert controls.take([before], [], began) == ([], [])
    newer = model("1", "2", "3", traffic=old)
    ((wanted,), _) = controls.take([newer], [], began)
    assert (set(wanted.versions), wanted.traffic) == ({"1", "2", "3"}, new)
    # Whoever looks after it says what is there now.
    ((wanted,), _) = controls.take([newer], [], controls.moment)
    assert wanted.traffic == old
