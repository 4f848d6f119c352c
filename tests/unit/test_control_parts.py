"""Who may, which files, and where a rollback leads to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.control.callers import Caller, check_caller, grpc_peer
from gateway.control.files import Uploads, check_files
from gateway.control.rollback import Start, target
from gateway.errors import Conflict, InvalidRequest, NotAllowed, NotFound, RequestTooLarge
from gateway.history.base import Change, Served
from gateway.registries.traffic import Traffic
from gateway.state import StateDir

HERE = "127.0.0.1"


def test_who_a_caller_is() -> None:
    assert Caller(HERE).who == HERE
    assert Caller.of(HERE, [("x-sluice-actor", " ada@box ")]).who == f"ada@box ({HERE})"
    assert Caller.of("", [("x-sluice-actor", "a\nb")]).who == "a?b (an unknown address)"
    assert len(Caller.of(HERE, [("x-sluice-actor", "x" * 5000)]).who) < 120


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:4711", HERE),
        ("ipv6:[::1]:4711", "::1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("unix:/tmp/x.sock", ""),
        ("unix:", ""),
        ("", ""),
    ],
)
def test_grpc_peers(peer: str, address: str) -> None:
    assert grpc_peer(peer) == address


@pytest.mark.parametrize(
    ("caller", "token", "fine"),
    [
        (Caller(HERE), "", True),
        (Caller("::1"), "", True),
        (Caller("10.0.0.1"), "", False),
        (Caller(""), "", False),
        (Caller.of(HERE, [("x-forwarded-for", "1.2.3.4")]), "", False),
        (Caller.of(HERE, [("x-forwarded-for", ""), ("x-forwarded-for", "1.2.3.4")]), "", False),
        (Caller.of(HERE, [("Forwarded", "")]), "", False),
        (Caller.of(HERE, [("x-real-ip", "")]), "", False),
        (Caller.of(HERE, [("via", "1.1 proxy")]), "", False),
        (Caller.of(HERE, [("host", "localhost:80")]), "", True),
        (Caller.of(HERE, [("host", "localhost"), ("host", "evil.example")]), "", False),
        (Caller.of(HERE, [("origin", "http://[::1]:80"), ("origin", "null")]), "", False),
        (Caller.of(HERE, [("origin", "https://evil.example")]), "", False),
        (Caller.of(HERE, [("host", "evil.example")]), "", False),
        (Caller(HERE), "t", False),
        (Caller.of("10.0.0.1", [("authorization", "Bearer t")]), "t", True),
        (Caller.of(HERE, [("authorization", "Bearer T")]), "t", False),
        (Caller.of(HERE, [("authorization", "Bearer \xff")]), "t", False),
    ],
)
def test_who_may(caller: Caller, token: str, fine: bool) -> None:
    def check() -> None:
        check_caller(caller, token, what="it", key="some.token")

    if not token:
        assert caller.local is fine
    if fine:
        check()
    else:
        with pytest.raises(NotAllowed, match=r"some\.token"):
            check()


PARTS = st.text(alphabet="a1._-/\\ \0~%:é", max_size=12)


@given(st.dictionaries(PARTS, st.binary(max_size=3), max_size=4))
@example({"1/a": b"x", "1/b/c-1.a": b"", "a": b"y"})
def test_files_that_are_accepted_stay_below_their_folder(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    try:
        check_files(files, 1000)
    except (InvalidRequest, RequestTooLarge):
        return
    root = tmp_path_factory.mktemp("state")
    uploads = Uploads(StateDir(root))
    name = uploads.write("m", files)
    folder = uploads.folder("m") / name
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    assert found == files


def test_a_load_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(StateDir(tmp_path))
    monkeypatch.setattr("gateway.control.files.os.fsync", full)
    with pytest.raises(Exception, match="cannot keep the files of a load: no space"):
        uploads.write("m", {"1/model.onnx": b"x"})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def full(handle: int) -> None:
    raise OSError(28, "no space")


def test_old_files_are_deleted(tmp_path: Path) -> None:
    uploads = Uploads(StateDir(tmp_path))
    first, second = (uploads.write("m", {"1/a": b""}) for _ in range(2))
    other = uploads.write("other", {"1/a": b""})
    assert list(uploads.versions("m", second)) == ["1"]
    uploads.keep("m", [second])
    assert uploads.versions("m", first) == {}
    uploads.keep_all({"other": other})
    assert not uploads.folder("m").exists()
    assert list(uploads.versions("other", other)) == ["1"]
    uploads.keep("other", [])
    assert not uploads.folder("other").exists()


# --- roll back

NEWEST = Traffic()


def split(**weights: float) -> Traffic:
    return Traffic(weights={name.removeprefix("v"): weight for name, weight in weights.items()})


def entry(
    number: int,
    before: Traffic,
    after: Traffic,
    shares: tuple[dict[str, float], dict[str, float]] = ({}, {}),
) -> Change:
    old = Served(shares[0], next(iter(shares[0]), None), traffic=before)
    new = Served(shares[1], next(iter(shares[1]), None), traffic=after)
    return Change("m", "split", "ada", "", old, new, float(number), number)


KNOWN = ("1", "2", "3")


def test_back_to_before_the_latest_change_of_the_declaration() -> None:
    changes = [
        entry(3, split(v2=1), split(v2=1), ({"1": 100.0}, {"2": 100.0})),  # it only became ready
        entry(2, split(v1=1), split(v2=1)),
        entry(1, NEWEST, split(v1=1)),
    ]
    assert target("m", changes, KNOWN, None) == split(v1=1)
    assert target("m", changes, KNOWN, 1) == split(v1=1)
    with pytest.raises(NotFound, match="no entry 9 among its latest 3"):
        target("m", changes, KNOWN, 9)


def test_back_to_before_a_new_version_took_over() -> None:
    changes = [entry(1, NEWEST, NEWEST, ({"2": 100.0}, {"3": 100.0}))]
    back = target("m", changes, KNOWN, None)
    assert (back.weights, back.stable) == ({"2": 100.0}, "2")


def test_the_newest_again_only_where_that_is_the_same_version() -> None:
    promoted = [entry(1, NEWEST, split(v1=1), ({"3": 100.0}, {"1": 100.0}))]
    assert target("m", promoted, KNOWN, None) == NEWEST
    back = target("m", promoted, (*KNOWN, "4"), None)
    assert (back.weights, back.stable) == ({"3": 100.0}, "3")


def test_there_must_be_something_to_go_back_to() -> None:
    for changes in (
        [],
        [entry(1, split(v1=1), split(v1=1), ({}, {"1": 100.0}))],  # the start
        [entry(1, NEWEST, NEWEST, ({}, {"3": 100.0}))],
        [entry(1, NEWEST, NEWEST, ({"3": 100.0}, {}))],
    ):
        with pytest.raises(Conflict, match="nothing to roll back"):
            target("m", changes, KNOWN, None)
    with pytest.raises(Conflict, match="version 1 is not there any more; it has: 2, 3"):
        target("m", [entry(1, split(v1=1), split(v2=1))], ("2", "3"), None)


def test_what_answers_while_a_gateway_starts_is_nothing_to_go_back_to() -> None:
    takeover = entry(60, NEWEST, NEWEST, ({"2": 100.0}, {"3": 100.0}))
    first = entry(50, NEWEST, NEWEST, ({}, {"2": 100.0}))
    own = Start(at=40.0, settled=60.0)
    for start, older in ((own, [first]), (Start(at=100.0, settled=110.0), [first])):
        with pytest.raises(Conflict, match="nothing to roll back"):
            target("m", [takeover, *older], KNOWN, None, start)
    for start, older in (
        (Start(at=40.0, settled=59.0), [first]),
        (Start(at=100.0, settled=110.0), [entry(20, NEWEST, NEWEST, ({}, {"2": 100.0}))]),
    ):
        assert target("m", [takeover, *older], KNOWN, None, start).weights == {"2": 100.0}
