"""How a registry is reached, and where its word may send us."""

from __future__ import annotations

from pathlib import Path

from gateway.artifacts.mlflow import Rules
from gateway.registries.mlflow.client import Client, RestClient
from gateway.registries.mlflow.uri import Place


def open_client(place: Place) -> Client:
    """What reads and writes a registry. Raises `RegistryError`."""
    if place.kind == "http":
        return RestClient(place)
    from gateway.registries.mlflow.sql import SqlClient

    return SqlClient(place)


def rules(place: Place, allowed: tuple[str, ...]) -> Rules:
    """Where a registry's word may send us: for files of this machine, only below directories that
    the operator has named, as a database by its path is."""
    roots = [Path(each).expanduser().resolve() for each in allowed]
    if place.file is not None:
        roots.append(place.file.resolve().parent)
    return Rules(tuple(roots))
