"""Files in model repositories of the Hugging Face Hub, each at one commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import unquote

import httpx

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import RemoteFile
from gateway.artifacts.http_client import request
from gateway.artifacts.listed import ListedOrigin
from gateway.artifacts.origins import PIECE, needed
from gateway.artifacts.pieces import range_header, rest_of
from gateway.errors import FetchError, printable

OTHER_KINDS: Final = ("datasets", "spaces", "buckets", "kernels")
EMPTY_COMMIT: Final = ".gitattributes"
"""What the Hub puts into every repository, and no model is made of."""


@dataclass(frozen=True)
class Repo:
    """A repository at a revision (empty: the default branch), and a path in it."""

    name: str
    revision: str = ""
    path: str = ""


@dataclass(frozen=True)
class HfOrigin(ListedOrigin):
    """A repository, or a folder or file in one. See `gateway.artifacts.base.Origin`."""

    def _look(self) -> Sequence[RemoteFile]:
        repo = repo_of(self.uri)
        found = list_repo(repo, commit_of(repo))
        if not found:
            raise FetchError(f"{self.uri} holds no files")
        return [replace(each, name=f"{self.folder}/{each.name}") for each in found]

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Origin.read`."""
        if 0 <= file.size <= start:
            return
        hub = needed("huggingface_hub", "hf", self.uri)
        commit, _, path = file.locator.partition(":")
        name = repo_of(self.uri).name
        url = hub.hf_hub_url(name, path, revision=commit, endpoint=_endpoint())
        headers = dict(hub.utils.build_hf_headers())
        headers |= range_header(start)
        where = f"hf://{name}@{commit[:12]}/{path}"
        # Large files are on other servers, which the Hub redirects to.
        with request("GET", httpx.URL(url), headers) as answer:
            if answer.status_code not in (200, 206):
                raise FetchError(
                    f"{where} was answered with {answer.status_code}",
                    final=answer.status_code in (401, 403, 404),
                )
            pieces = answer.iter_bytes(PIECE)
            yield from rest_of(pieces, answer.status_code, answer.headers, start, where)


def repo_of(uri: str) -> Repo:
    """What ``hf://OWNER/REPO[@REVISION][/PATH]`` names. Raises `FetchError`."""
    rest = uri.partition("://")[2].strip("/")
    owner, _, rest = rest.partition("/")
    if owner == "models" and rest.count("/"):
        owner, _, rest = rest.partition("/")
    named, _, path = rest.partition("/")
    name, _, revision = named.partition("@")
    if not owner or not name or owner in OTHER_KINDS:
        raise FetchError(
            f"'{printable(uri)}' names no model repository; write hf://OWNER/REPO, "
            "hf://OWNER/REPO@REVISION or hf://OWNER/REPO/PATH"
        )
    return Repo(f"{owner}/{name}", unquote(revision), path.strip("/"))


def commit_of(repo: Repo) -> str:
    """The commit that the revision leads to now; one request. Raises `FetchError`."""
    try:
        info = _api().repo_info(repo.name, revision=repo.revision or None, timeout=30.0)
    except Exception as error:
        raise _why(error, repo) from None
    if not info.sha:
        raise FetchError(f"hf://{repo.name} has no commit yet")
    return str(info.sha)


def list_repo(repo: Repo, commit: str) -> list[RemoteFile]:
    """The files at a commit, by their names below the repository's path; sorted. One that is
    named itself comes with its external data. Raises `FetchError`."""
    hub = needed("huggingface_hub", "hf", f"hf://{repo.name}")
    try:
        tree = list(_api().list_repo_tree(repo.name, recursive=True, revision=commit))
    except Exception as error:
        raise _why(error, repo) from None
    found = [each for each in tree if isinstance(each, hub.hf_api.RepoFile)]
    files: list[RemoteFile] = []
    for each in sorted(found, key=lambda one: str(one.path)):
        path = str(each.path)
        if path.rpartition("/")[2] == EMPTY_COMMIT:
            continue
        name = below(path, repo.path)
        if name:
            sha256 = each.lfs.sha256 if each.lfs is not None else ""
            identity = sha256 or str(each.blob_id)
            archive = path == repo.path and is_archive(path)
            files.append(RemoteFile(name, each.size, identity, sha256, f"{commit}:{path}", archive))
    return files


def below(path: str, prefix: str) -> str:
    """The name of `path` below a folder, or of a file that is named itself or that holds its
    external data (``model.onnx_data``); empty where it is neither."""
    if not prefix:
        return path
    if path.startswith(f"{prefix}/"):
        return path[len(prefix) + 1 :]
    own = prefix.rpartition("/")[2]
    if path == prefix or (own.endswith(".onnx") and path.startswith((f"{prefix}_", f"{prefix}."))):
        return path[len(prefix) - len(own) :]
    return ""


def read_small(uri: str, file: RemoteFile) -> bytes:
    """The whole of a small file. Raises `FetchError`."""
    return b"".join(HfOrigin(uri).read(file, 0))


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _api() -> Any:
    hub = needed("huggingface_hub", "hf", "hf://")
    return hub.HfApi(endpoint=_endpoint(), library_name="sluicegate")


def _why(error: Exception, repo: Repo) -> FetchError:
    if isinstance(error, FetchError):
        return error
    at = f"@{repo.revision}" if repo.revision else ""
    errors = needed("huggingface_hub.errors", "hf", f"hf://{repo.name}")
    if isinstance(error, errors.GatedRepoError):
        return FetchError(f"hf://{repo.name} is gated; ask for access, and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FetchError(f"hf://{repo.name} is not there, or private; for that set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"hf://{repo.name} has no revision '{printable(repo.revision)}'")
    return FetchError(f"hf://{repo.name}{at} cannot be read: {_text(error)}")


def _text(error: Exception) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__, 300)
