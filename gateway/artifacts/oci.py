"""Files in OCI registries, as ``oras push`` puts them there: one layer a file, or archives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from gateway.artifacts.base import RemoteFile
from gateway.artifacts.listed import ListedOrigin
from gateway.artifacts.oci_session import Guard, guarded
from gateway.artifacts.origins import PIECE, needed
from gateway.artifacts.pieces import range_header, rest_of
from gateway.errors import FetchError, printable

TITLE: Final = "org.opencontainers.image.title"
MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MOST_BYTES: Final = 4 * 1024 * 1024
"""Largest manifest, as registries limit it themselves."""
ARCHIVES: Final = {"tar+gzip": ".tar.gz", "tar.gzip": ".tar.gz", "tar+zstd": "", "tar": ".tar"}
"""End of a layer's media type → how its file must be called to be unpacked; empty: it cannot."""

_IMAGE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(?::[0-9]+)?|\[[0-9a-fA-F:]+\](?::[0-9]+)?)"
    r"/(?P<repo>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LOCAL = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?")


@dataclass(frozen=True)
class Image:
    """A repository in an OCI registry, and what of it is named."""

    host: str
    repo: str
    tag: str = ""
    digest: str = ""
    plain: bool = False
    """Spoken to without TLS."""


@dataclass(frozen=True)
class OciOrigin(ListedOrigin):
    """One manifest's layers. See `gateway.artifacts.base.Origin`."""

    def _look(self) -> Sequence[RemoteFile]:
        image = image_of(self.uri)
        layers = list_layers(image, manifest_of(image)[1])
        return [replace(each, name=f"{self.folder}/{each.name}") for each in layers]

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Origin.read`."""
        if 0 <= file.size <= start:
            return
        image = image_of(self.uri)
        headers = range_header(start)
        where = f"oci://{image.host}/{image.repo}@{file.locator}"
        try:
            answer = _ask(image, f"blobs/{file.locator}", headers, stream=True)
            with answer:
                if answer.status_code not in (200, 206):
                    raise FetchError(
                        f"{where} was answered with {answer.status_code}",
                        final=answer.status_code in (401, 403, 404),
                    )
                pieces = answer.iter_content(PIECE)
                yield from rest_of(pieces, answer.status_code, answer.headers, start, where)
        except FetchError:
            raise
        except Exception as error:
            raise FetchError(f"{where} cannot be read: {_text(error)}") from None


def image_of(uri: str) -> Image:
    """What ``oci://HOST[:PORT]/REPO[:TAG][@sha256:DIGEST]`` names (``oci+http://`` without TLS, as
    a registry on this machine always is). Raises `FetchError`."""
    scheme, _, rest = uri.partition("://")
    match = _IMAGE.fullmatch(rest.rstrip("/"))
    if match is None:
        raise FetchError(
            f"'{printable(uri)}' names no image; write oci://HOST/REPO:TAG, "
            "or oci://HOST/REPO@sha256:DIGEST"
        )
    plain = scheme == "oci+http" or bool(_LOCAL.fullmatch(match["host"]))
    return Image(match["host"], match["repo"], match["tag"] or "", match["digest"] or "", plain)


def manifest_of(image: Image) -> tuple[str, dict[str, Any]]:
    """Digest and content of the manifest that is named; one request. Raises `FetchError`."""
    reference = image.digest or image.tag or "latest"
    where = f"oci://{image.host}/{image.repo}:{reference}"
    try:
        answer = _ask(image, f"manifests/{reference}", {"Accept": ", ".join(MANIFESTS)})
        if answer.status_code == 404:
            raise FetchError(f"{where} is not there")
        if answer.status_code != 200:
            raise FetchError(f"{where} was answered with {answer.status_code}")
        content = answer.content
        if len(content) > MOST_BYTES:
            raise FetchError(f"{where} has a manifest of more than {MOST_BYTES} bytes")
        manifest = answer.json()
    except FetchError:
        raise
    except Exception as error:
        raise FetchError(f"{where} cannot be read: {_text(error)}") from None
    digest = f"sha256:{sha256(content).hexdigest()}"
    if image.digest and image.digest != digest:
        raise FetchError(f"{where} is not what its digest says; the registry answered another one")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("layers"), list):
        raise FetchError(f"{where} has no layers; an index of several platforms is not supported")
    return digest, manifest


def list_layers(image: Image, manifest: dict[str, Any]) -> list[RemoteFile]:
    """The layers as files, by their titles. Raises `FetchError` for one that is neither a file
    nor an archive that can be unpacked."""
    where = f"oci://{image.host}/{image.repo}"
    files: list[RemoteFile] = []
    for number, layer in enumerate(manifest["layers"]):
        try:
            digest, size = str(layer["digest"]), int(layer["size"])
            kind = str(layer.get("mediaType", ""))
            title = str((layer.get("annotations") or {}).get(TITLE, ""))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FetchError(f"{where}: layer {number} of the manifest is malformed") from None
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise FetchError(f"{where}: layer {number} has the digest '{printable(digest)}'")
        ending = next((ARCHIVES[end] for end in ARCHIVES if kind.endswith(end)), None)
        if ending == "":
            raise FetchError(f"{where}: layer {number} is compressed with zstd; push it with gzip")
        name = title or (f"layer-{number}" if ending else "")
        if not name:
            raise FetchError(
                f"{where}: layer {number} has no title and is no archive; push it with oras"
            )
        if ending and not name.endswith((ending, ".tgz", ".zip")):
            name += ending
        name = name.removeprefix("./")
        files.append(RemoteFile(name, size, digest, digest[7:], digest, bool(ending)))
    if not files:
        raise FetchError(f"{where} has no layers")
    return files


def numbered_tags(image: Image) -> list[str]:
    """The tags that are whole numbers. Raises `FetchError` where they cannot be listed."""
    where = f"oci://{image.host}/{image.repo}"
    try:
        registry = _registry(image.host, image.plain)
        container = registry.get_container(f"{image.host}/{image.repo}")
        registry.auth.load_configs(container)
        tags = registry.get_tags(container)
    except Exception as error:
        raise FetchError(f"the tags of {where} cannot be listed: {_text(error)}") from None
    return sorted((tag for tag in tags if re.fullmatch(r"[1-9][0-9]{0,17}", tag)), key=int)


def _ask(image: Image, what: str, headers: dict[str, str], *, stream: bool = False) -> Any:
    registry = _registry(image.host, image.plain)
    # Whoever logged in with docker or oras is known by it.
    registry.auth.load_configs(registry.get_container(f"{image.host}/{image.repo}"))
    url = f"{registry.prefix}://{image.host}/v2/{image.repo}/{what}"
    return registry.do_request(url, "GET", headers=headers, stream=stream)


@lru_cache(maxsize=64)
def _registry(host: str, plain: bool) -> Any:
    provider = needed("oras.provider", "oci", f"oci://{host}")

    class Impatient(provider.Registry):  # type: ignore[misc, name-defined]
        """Who polls or fetches tries again by itself."""

        do_request = getattr(
            provider.Registry.do_request, "__wrapped__", provider.Registry.do_request
        )

    registry = Impatient(hostname=host, insecure=plain)
    guarded(registry.session, Guard(host, plain=plain))
    return registry


def _text(error: Exception) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__, 300)
