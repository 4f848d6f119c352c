"""Opening buckets: credentials and endpoints as the stores' own tools take them."""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from gateway.artifacts.origins import needed
from gateway.errors import FetchError

# A whole download is one request, so only its silence is bounded.
CLIENT: Final = {"timeout": "24h", "connect_timeout": "5s", "read_timeout": "30s"}
RETRY: Final = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
"""Who fetches or polls tries again by itself."""
PREFIXES: Final = ("AWS_", "GOOGLE_", "AZURE_", "HOME")
ELSEWHERE: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""Variables that say where credentials are, so that no profile is looked at."""
BY_OTHERS: Final = (
    "sso_session",
    "sso_start_url",
    "role_arn",
    "credential_process",
    "login_session",
)
"""Keys of a profile whose credentials have to be got from somewhere."""


def open_bucket(scheme: str, name: str, account: str = "") -> Any:
    """obstore's store for a bucket, kept while the environment stays the same.

    Raises `FetchError`.
    """
    environment = tuple(
        sorted((k, v) for k, v in os.environ.items() if k.upper().startswith(PREFIXES))
    )
    return _opened(scheme, name, account, environment)


@lru_cache(maxsize=64)
def _opened(scheme: str, name: str, account: str, environment: tuple[tuple[str, str], ...]) -> Any:
    stores = needed("obstore.store", scheme, f"{scheme}://{name}")
    given = dict(environment)
    common: dict[str, Any] = {"client_options": dict(CLIENT), "retry_config": dict(RETRY)}
    try:
        if scheme == "s3":
            return stores.S3Store(name, **s3_options(given), **_plain(common, s3_endpoint(given)))
        if scheme == "gs":
            return stores.GCSStore(name, **common)
        named = {"account_name": account} if account else {}
        endpoint = given.get("AZURE_STORAGE_ENDPOINT") or given.get("AZURE_ENDPOINT", "")
        return stores.AzureStore(container_name=name, **named, **_plain(common, endpoint))
    except FetchError:
        raise
    except Exception as error:
        text = " ".join(str(error).partition("\n\nDebug source:")[0].split())
        raise FetchError(f"{scheme}://{name} cannot be opened: {text}") from None


def _plain(common: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """Who names an endpoint without TLS means it."""
    if endpoint.startswith("http://"):
        common["client_options"]["allow_http"] = True
    return common


def s3_endpoint(given: Mapping[str, str]) -> str:
    """The endpoint that is asked for, from the environment or the profile; empty: Amazon's."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        if given.get(name):
            return given[name]
    return profile(given).get("endpoint_url", "")


def s3_options(given: Mapping[str, str]) -> dict[str, Any]:
    """What obstore does not find by itself: profiles in the shared files. Raises `FetchError`."""
    values = profile(given)
    options: dict[str, Any] = {}
    if endpoint := s3_endpoint(given):
        options["endpoint"] = endpoint
    if "region" in values and not (given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION")):
        options["region"] = values["region"]
    if any(given.get(name) for name in ELSEWHERE):
        return options
    if "aws_access_key_id" in values and "aws_secret_access_key" in values:
        options["access_key_id"] = values["aws_access_key_id"]
        options["secret_access_key"] = values["aws_secret_access_key"]
        if "aws_session_token" in values:
            options["session_token"] = values["aws_session_token"]
    elif indirect := [key for key in BY_OTHERS if key in values]:
        options["credential_provider"] = _by_boto3(given, indirect[0])
    return options


def _by_boto3(given: Mapping[str, str], key: str) -> Any:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise FetchError(
            f"the AWS profile '{profile_name(given)}' has '{key}', which needs boto3: pip install "
            "boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    return Boto3CredentialProvider(boto3.Session(profile_name=profile_name(given)))


def profile_name(given: Mapping[str, str]) -> str:
    return given.get("AWS_PROFILE") or given.get("AWS_DEFAULT_PROFILE") or "default"


def profile(given: Mapping[str, str]) -> dict[str, str]:
    """The profile's keys, from the credentials file over the configuration file.

    Raises `FetchError` for one that is asked for and is nowhere.
    """
    home = Path(given.get("HOME", "~")).expanduser() / ".aws"
    name = profile_name(given)
    in_config = name if name == "default" else f"profile {name}"
    values: dict[str, str] = {}
    found = False
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", in_config),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        path = Path(given[variable]).expanduser() if given.get(variable) else home / file
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            raise FetchError(
                f"the AWS file '{path.name}' cannot be read: it is malformed"
            ) from None
        if parser.has_section(section):
            found = True
            values.update(parser.items(section))
    if not found and name != "default" and not given.get("AWS_ACCESS_KEY_ID"):
        raise FetchError(f"AWS_PROFILE is '{name}', but the AWS files have no such profile")
    return values
