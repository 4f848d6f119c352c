"""Configuration: who wins, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.config import (
    Config,
    describe,
    is_loopback,
    load_config,
    section_keys,
    split_address,
)
from gateway.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "sluice.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(
    path: Path | None = None, flags: dict[str, Any] | None = None, **environment: str
) -> tuple[Config, dict[str, str]]:
    return load_config(path, flags, {f"SLUICE_{k}": v for k, v in environment.items()})


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "sources: [a, b]\ngrpc: {server: grpcio, io_threads: 2, trusted_network: true}\n"
        "drain:\n  grace: 1\n",
    )
    config, origin = load(
        path,
        {"grpc.server": "native"},
        GRPC__SERVER="auto",
        GRPC__IO_THREADS="3",
        LIMITS__MAX_IN_FLIGHT="7",
    )
    assert config.sources == ("a", "b")
    assert config.grpc.server == "native"
    assert config.grpc.io_threads == 3
    assert config.grpc.trusted_network is True
    assert config.drain.grace == 1.0
    assert config.limits.max_in_flight == 7
    assert config.http == Config().http
    assert origin == {
        "sources": str(path),
        "grpc.server": "command line",
        "grpc.io_threads": "environment variable SLUICE_GRPC__IO_THREADS",
        "grpc.trusted_network": str(path),
        "drain.grace": str(path),
        "limits.max_in_flight": "environment variable SLUICE_LIMITS__MAX_IN_FLIGHT",
    }


def test_nothing_set_gives_the_defaults(tmp_path: Path) -> None:
    for path in (None, write(tmp_path, "# nothing\n")):
        assert load(path) == (Config(), {})
    assert load_config(environment={"PATH": "/bin", "SLUICEGATE": "x"}) == (Config(), {})


def test_values_of_the_environment_become_what_the_key_is() -> None:
    config, _ = load(
        STRICT="true",
        SOURCES="a,b",
        TELEMETRY__ACCESS_LOG="0.5",
        REGISTRY__WATCH="false",
        ADMIN__TOKEN="123",
    )
    assert config.strict is True
    assert config.sources == ("a", "b")
    assert config.telemetry.access_log == 0.5
    assert config.registry.watch is False
    assert config.admin.token == "123"


def test_unknown_keys_of_the_file_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path, "grpc:\n  sever: native\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        f"unknown configuration key 'grpc.sever' ({path}); did you mean 'grpc.server'?"
    )


def test_unknown_keys_of_the_environment_are_refused_with_a_suggestion() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'limits.max_in_fligth' \(environment variable SLUICE_LIMITS__MAX_IN_FLIGTH\); "
        "did you mean 'limits.max_in_flight'",
    ):
        load(LIMITS__MAX_IN_FLIGTH="3")


def test_unknown_flags_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'http.adress' \(command line\); .*'http.address'"):
        load(flags={"http.adress": "x"})


@pytest.mark.parametrize("key", ["zzzz", "grpc", "grpc.server.native", "", "..", "1"])
def test_keys_near_nothing_are_refused_too(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown configuration key"):
        load(flags={key: "x"})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("grpc.server", "fast", "'grpc.server' .*'fast'"),
        ("limits.max_json_depth", "2000", "'limits.max_json_depth' .*<= 1000"),
        ("limits.max_in_flight", "0", "'limits.max_in_flight' .*>= 1"),
        ("http.keep_alive", "soon", "'http.keep_alive' .*float"),
        ("strict", "maybe", "'strict' .*bool"),
        ("telemetry.access_log", "1.5", "'telemetry.access_log' .*<= 1"),
    ],
)
def test_wrong_values_name_the_key_and_where_it_came_from(key: str, value: str, says: str) -> None:
    name = key.upper().replace(".", "__")
    with pytest.raises(ConfigError, match=says) as caught:
        load(**{name: value})
    assert f"(environment variable SLUICE_{name})" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is not YAML"),
        ("- a\n", "must hold keys and values, not a list"),
        ("grpc: 5\n", "unknown configuration key 'grpc'"),
        ("1: 2\n", "unknown configuration key '1'"),
        ("a: !!python/object:os.system {}\n", "is not YAML"),
    ],
)
def test_files_of_the_wrong_form_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("key", sorted(section_keys()))
def test_every_key_is_described_and_can_be_set(key: str) -> None:
    kind, description, default = describe(section_keys()[key])
    assert kind
    assert len(description) > 10 and description.endswith((".", ")"))
    config, origin = load(flags={key: default})
    assert config == Config()
    assert origin == {key: "command line"}


def test_addresses() -> None:
    assert split_address("127.0.0.1:80", "http.address") == ("127.0.0.1", 80)
    assert split_address("[::1]:0", "http.address") == ("::1", 0)
    assert split_address(":8080", "http.address") == ("0.0.0.0", 8080)
    for wrong in ("8080", "host:", "host:http", "host:70000", "host:-1"):
        with pytest.raises(ConfigError, match=r"http.address .*HOST:PORT"):
            split_address(wrong, "http.address")
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("10.0.0.1")
