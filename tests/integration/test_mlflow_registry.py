"""A gateway over a real MLflow server: aliases, splits, webhooks, and MLflow gone."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.registries.mlflow.webhook import sign
from tests.support.gateway import PATIENCE, GatewayProcess, wait_until
from tests.support.load import Load
from tests.support.mlflow_server import (
    MlflowServer,
    interpreter,
    log_adder,
    log_iris,
    log_twice,
)

pytest.importorskip("torch")
SECRET = "a secret between the two"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        for added in (1, 2):
            assert log_adder(server.url, "add", added) == str(added)
        log_iris(server.url, "iris")
        log_twice(server.url, "twice")
        client = server.client()
        for name in ("iris", "twice"):
            client.set_registered_model_alias(name, "champion", "1")
        client.create_registered_model("not served")
        yield server
    finally:
        server.kill()


@pytest.fixture
def add(server: MlflowServer) -> Any:
    """The model ``add`` as every test finds it: champion is version 1. MLflow's client."""
    client = server.client()
    found = client.get_registered_model("add")
    for alias in found.aliases:
        client.delete_registered_model_alias("add", alias)
    for tag in found.tags:
        client.delete_registered_model_tag("add", tag)
    client.set_registered_model_alias("add", "champion", "1")
    return client


def gateway_on(folder: Path, source: str, **settings: object) -> GatewayProcess:
    own = {
        "registry.poll_seconds": 0.3,
        "state_dir": str(folder / "state"),
        "mlflow.models": "add",
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    folder.mkdir(exist_ok=True)
    return GatewayProcess(folder, [source], settings=own)


def ask(gateway: GatewayProcess, model: str, inputs: list[Any], version: str = "") -> Any:
    tensors = [
        dict(zip(("name", "datatype", "shape", "data"), each, strict=True)) for each in inputs
    ]
    path = f"{model}/versions/{version}" if version else model
    body = json.dumps({"inputs": tensors}).encode()
    request = urllib.request.Request(f"{gateway.http}/v2/models/{path}/infer", body)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def added(gateway: GatewayProcess, version: str = "") -> float:
    answer = ask(gateway, "add", [("x", "FP32", [1, 4], [0, 0, 0, 0])], version)
    return float(answer["outputs"][0]["data"][0])


def admin(gateway: GatewayProcess, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{gateway.http}/admin/v1/{path}", data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def aliases(client: Any) -> dict[str, str]:
    """Those of ``add``; a server gives versions as text, a database as numbers."""
    found = client.get_registered_model("add").aliases
    return {alias: str(version) for alias, version in found.items()}


def hint(gateway: GatewayProcess) -> None:
    """A webhook as MLflow sends it."""
    sent = str(int(time.time()))
    headers = {
        "X-MLflow-Signature": f"v1,{sign(SECRET, 'id', sent, b'{}')}",
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Delivery-Id": "id",
    }
    request = urllib.request.Request(f"{gateway.http}/hooks/mlflow", b"{}", headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 202


def weights(gateway: GatewayProcess) -> dict[str, float]:
    return dict(gateway.get("/admin/v1/models/add")["weights"])


def ready(gateway: GatewayProcess) -> set[str]:
    versions = gateway.get("/admin/v1/models/add")["versions"]
    return {each["version"] for each in versions if each["state"] == "ready"}


def test_an_alias_moves_there_and_back_under_load(
    server: MlflowServer, add: Any, tmp_path: Path
) -> None:
    async def swaps(gateway: GatewayProcess) -> None:
        load = Load(gateway.http, gateway.grpc, "add", lambda version, more: more == float(version))
        async with load:
            for version in ("2", "1"):
                await asyncio.to_thread(add.set_registered_model_alias, "add", "champion", version)
                await asyncio.to_thread(
                    wait_until, lambda v=version: load.last() == {v}, f"answers of {version}"
                )
        load.check()
        assert load.sent > 100

    with gateway_on(tmp_path, server.source) as gateway:
        asyncio.run(swaps(gateway))
        assert gateway.get("/v2/models")["models"] == ["add"]


def test_a_challenger_gets_what_the_tag_says(
    server: MlflowServer, add: Any, tmp_path: Path
) -> None:
    with gateway_on(tmp_path, server.source) as gateway:
        assert weights(gateway) == {"1": 100}
        add.set_registered_model_alias("add", "challenger", "2")
        wait_until(lambda: ready(gateway) == {"1", "2"}, "the challenger")
        # Without a weight it answers those who ask for it, and nobody else.
        assert added(gateway, "challenger") == 2
        assert {added(gateway) for _ in range(20)} == {1}
        add.set_registered_model_tag("add", "sluice.traffic", "champion=50, challenger=50")
        wait_until(lambda: weights(gateway) == {"1": 50, "2": 50}, "the split")
        wait_until(lambda: added(gateway) == 2, "an answer of the challenger")
        # A tag that cannot be read keeps what was good, and is told of.
        add.set_registered_model_tag("add", "sluice.traffic", "champion: 90")
        wait_until(lambda: gateway.get("/admin/v1/models/add")["error"] != "", "the error")
        error = gateway.get("/admin/v1/models/add")["error"]
        assert error == (
            "tag sluice.traffic: 'champion: 90' must be NAME=WEIGHT; "
            "write it as 'champion=90, challenger=10'"
        )
        assert weights(gateway) == {"1": 50, "2": 50}
        add.delete_registered_model_tag("add", "sluice.traffic")
        wait_until(lambda: weights(gateway) == {"1": 100}, "the split to be gone")
        assert "ERROR" in gateway.log()
        gateway.stop()
        gateway.log_path.write_text("")


def test_splits_and_promotions_are_written_to_mlflow(
    server: MlflowServer, add: Any, tmp_path: Path
) -> None:
    def state() -> tuple[Any, Any]:
        return aliases(add), add.get_registered_model("add").tags

    add.set_registered_model_alias("add", "challenger", "2")
    with gateway_on(tmp_path, server.source) as gateway:
        admin(gateway, "PUT", "models/add/split", {"weights": {"1": 90, "2": 10}})
        split = {"sluice.traffic": "champion=90, challenger=10"}
        assert state() == ({"champion": "1", "challenger": "2"}, split)
        # At once another: what was written by ourselves is nobody else's change.
        admin(gateway, "PUT", "models/add/split", {"weights": {"1": 80, "2": 20}})
        assert state()[1] == {"sluice.traffic": "champion=80, challenger=20"}
        answer = admin(gateway, "POST", "models/add/promote", {"version": "2"})
        assert answer["stable"] == "2"
        assert answer["labels"] == {"stable": "2", "champion": "2"}  # before the next poll
        assert state() == ({"champion": "2"}, {})
        admin(gateway, "POST", "models/add/rollback", {"message": "it was better before"})
        split = {"sluice.traffic": "champion=80, challenger=20"}
        assert state() == ({"champion": "1", "challenger": "2"}, split)
        admin(gateway, "POST", "models/add/rollback", {})
        assert state() == ({"champion": "2"}, {})
        wait_until(lambda: ready(gateway) == {"2"}, "version 1 to be unloaded")
        assert added(gateway) == 2
        admin(gateway, "PUT", "models/add/labels", {"labels": {"blue": "2"}})
        assert state() == ({"champion": "2", "blue": "2"}, {})
        assert added(gateway, "blue") == 2
        answer = admin(gateway, "PUT", "models/add/labels", {"labels": {}})
        assert state() == ({"champion": "2"}, {})


def test_somebody_elses_change_is_not_overwritten(
    server: MlflowServer, add: Any, tmp_path: Path
) -> None:
    add.set_registered_model_alias("add", "challenger", "2")
    with gateway_on(tmp_path, server.source, registry__poll_seconds=600) as gateway:
        add.set_registered_model_tag("add", "owner", "the other team")
        split = {"weights": {"1": 90, "2": 10}}
        _, error = admin(gateway, "PUT", "models/add/split", split)
        assert "have just been changed in MLflow; nothing was written" in error
        assert add.get_registered_model("add").tags == {"owner": "the other team"}
        # It looks at once, so that trying again is enough.
        wait_until(
            lambda: not isinstance(admin(gateway, "PUT", "models/add/split", split), tuple),
            "the split to be taken",
        )
        assert aliases(add) == {"champion": "1", "challenger": "2"}


def test_a_webhook_makes_it_look(server: MlflowServer, add: Any, tmp_path: Path) -> None:
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

    more = {"registry__poll_seconds": 600, "mlflow__webhook_secret": SECRET}
    with gateway_on(tmp_path, server.source, **more) as gateway:
        event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
        hook = add.create_webhook(
            name="sluice", url=f"{gateway.http}/hooks/mlflow", events=[event], secret=SECRET
        )
        try:

            def moved() -> bool:
                # Set again: MLflow remembers for a second that it had no webhooks.
                add.set_registered_model_alias("add", "champion", "2")
                return added(gateway) == 2

            wait_until(moved, "answers of version 2")
        finally:
            add.delete_webhook(hook.webhook_id)
        request = urllib.request.Request(f"{gateway.http}/hooks/mlflow", b"{}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE)
        assert refused.value.code == 403
        assert "is not signed" in json.load(refused.value)["error"]


def test_code_runs_only_when_trusted_and_then_apart(server: MlflowServer, tmp_path: Path) -> None:
    folder = tmp_path / "untrusted"
    gateway = gateway_on(folder, server.source, mlflow__models="*")
    try:
        # Native flavours execute none, and there is no need to trust anybody for them.
        twice = ask(gateway, "twice", [("input-0", "FP32", [1, 3], [1, 2, 3])])
        assert twice["outputs"][0]["data"] == [2, 4, 6]
        match = gateway.wait_for(re.compile(r"iris/1 failed to load: (.*) \(next"))
        assert f"set trust.code: ['{server.source}'] in the configuration file" in match[1]
        assert gateway.log().count("not serving model 'not served': a model's name") == 1
    finally:
        gateway.stop()
    more = {"mlflow__models": "iris", "trust__code": server.source}
    with gateway_on(tmp_path / "trusted", server.source, **more) as gateway:
        from sklearn.datasets import load_iris

        data = load_iris(as_frame=True).data.iloc[[0, 60, 120]]
        inputs = [(name, "FP64", [3, 1], data[name].tolist()) for name in data.columns]
        answer = ask(gateway, "iris", inputs)["outputs"][0]["data"]
        assert np.array_equal(answer, [0, 1, 2])
        tasks = Path(f"/proc/{gateway.pid}/task").iterdir()
        assert any((task / "children").read_text() for task in tasks)
        assert "the input example does not run" not in gateway.log()


def test_one_model_by_its_uri(server: MlflowServer, add: Any, tmp_path: Path) -> None:
    add.set_registered_model_alias("add", "blue", "2")
    kept = {"MLFLOW_TRACKING_URI": server.url}
    settings = {"registry.poll_seconds": 0.3, "state_dir": str(tmp_path / "state")}
    with GatewayProcess(
        tmp_path, ["models:/add@blue"], settings=settings, environment=kept
    ) as gateway:
        assert added(gateway) == 2
        assert gateway.get("/admin/v1/status")["sources"] == [f"{server.source}/models:/add@blue"]
        _, error = admin(gateway, "POST", "models/add/promote", {"version": "2"})
        assert "is one version and has no split" in error
        add.set_registered_model_alias("add", "blue", "1")
        wait_until(lambda: added(gateway) == 1, "the alias to be followed")


@pytest.mark.filterwarnings("ignore")  # SQLAlchemy's, about mlflow
def test_a_database_itself(server: MlflowServer, add: Any, tmp_path: Path) -> None:
    if interpreter() != sys.executable:
        pytest.skip("needs all of mlflow")
    from mlflow import MlflowClient

    file = server.folder / "copy.db"
    shutil.copy(server.database, file)
    url = f"sqlite:///{file}"
    client = MlflowClient(tracking_uri=url, registry_uri=url)
    for version in ("1", "2"):
        place = add.get_model_version_download_uri("add", version)
        path = server.folder / "artifacts" / place.removeprefix("mlflow-artifacts:/")
        client.create_model_version("add", path.as_uri())
    client.set_registered_model_alias("add", "champion", "3")
    with gateway_on(tmp_path, f"mlflow+{url}") as gateway:
        assert added(gateway) == 1
        client.set_registered_model_alias("add", "champion", "4")
        wait_until(lambda: added(gateway) == 2, "the alias to be followed")
        client.set_registered_model_alias("add", "challenger", "3")
        wait_until(lambda: ready(gateway) == {"3", "4"}, "the challenger")
        admin(gateway, "POST", "models/add/promote", {"version": "3"})
        assert aliases(client) == {"champion": "3"}


def test_mlflow_killed_and_back(server: MlflowServer, add: Any, tmp_path: Path) -> None:
    gateway = gateway_on(tmp_path, server.source)
    try:
        server.kill()
        gateway.wait_for(re.compile("cannot be reached: .*; serving goes on with what is loaded"))
        assert added(gateway) == 1
        assert server.source in gateway.get("/admin/v1/status")["unreachable"]
        _, error = admin(gateway, "POST", "models/add/promote", {"version": "1"})
        assert "cannot be reached" in error and "nothing was written" in error
    finally:
        gateway.stop()
    gateway = gateway_on(tmp_path, server.source, mlflow__webhook_secret=SECRET)
    try:
        assert added(gateway) == 1
        assert re.search(r"serving what it said at [0-9:+ -]+, from the cache", gateway.log())
        assert "from the cache" in gateway.get("/admin/v1/status")["unreachable"][server.source]
        server.start()
        hint(gateway)  # else it would look after its pause, which has grown
        gateway.wait_for(re.compile("can be read again"))
        assert gateway.get("/admin/v1/status")["unreachable"] == {}
        add.set_registered_model_alias("add", "champion", "2")
        wait_until(lambda: added(gateway) == 2, "the alias to be followed")
    finally:
        server.kill()
        gateway.stop()
    # Nothing is remembered elsewhere: then it must be there for the first start.
    with pytest.raises(AssertionError, match="must be there for the first start"):
        gateway_on(tmp_path / "elsewhere", server.source)
