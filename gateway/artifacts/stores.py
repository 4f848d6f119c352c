"""Files in object stores (S3, Google Cloud Storage, Azure), read with obstore."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import RemoteFile
from gateway.artifacts.listed import ListedOrigin
from gateway.artifacts.origins import BUCKETS, needed
from gateway.artifacts.stores_access import open_bucket
from gateway.errors import FetchError, printable

PIECE: Final = 1024 * 1024
MOST_OBJECTS: Final = 1_000_000
"""More objects below a prefix are taken for a mistake."""
_CODE = re.compile(r"<Code>(\w+)</Code>.*?<Message>(.*?)</Message>")
_NOISE = re.compile(r"Generic \w+ error: | in [0-9.]+[mµn]?s\b|Error performing \w+ (?=request)")


@dataclass(frozen=True)
class Bucket:
    """One bucket (on Azure: container), and the account it is in, where the URI says it."""

    scheme: str
    name: str
    account: str = ""


class Stored(NamedTuple):
    """One object: its whole key, size in bytes and ETag. (A tuple: there may be very many.)"""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class StoreOrigin(ListedOrigin):
    """A prefix or an object in a bucket. See `gateway.artifacts.base.Origin`."""

    def _look(self) -> Sequence[RemoteFile]:
        bucket, prefix = bucket_of(self.uri)
        found = list_objects(bucket, prefix)
        if not found:
            raise FetchError(f"{self.uri} holds no files")
        cut = len(prefix) + 1 if prefix else 0
        return [
            RemoteFile(
                f"{self.folder}/{each.key[cut:] or each.key.rpartition('/')[2]}",
                each.size,
                each.etag,
                locator=each.key,
                archive=each.key == prefix and is_archive(prefix),
            )
            for each in found
        ]

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Origin.read`."""
        bucket, _ = bucket_of(self.uri)
        options: dict[str, Any] = {"range": {"offset": start}} if start else {}
        if file.identity:
            options["if_match"] = file.identity
        if 0 <= file.size <= start:
            return  # no store answers an empty range
        try:
            answer = open_bucket(bucket.scheme, bucket.name, bucket.account).get(
                file.locator, options=options
            )
            for piece in answer.stream(min_chunk_size=PIECE):
                yield bytes(piece)
        except Exception as error:
            raise why(error, f"{shown(bucket)}/{file.locator}") from None


def bucket_of(uri: str) -> tuple[Bucket, str]:
    """Bucket and prefix (without ``/`` at its ends) of a URI. Raises `FetchError`."""
    scheme, _, rest = uri.partition("://")
    place, _, prefix = rest.partition("/")
    name, at, host = place.partition("@")
    store = BUCKETS[scheme]
    if at and store != "az":
        raise FetchError(
            f"'{scheme}://…@{host}': credentials do not belong into a URI; see docs/stores.md"
        )
    if not name or any(c in "?#" for c in uri):
        raise FetchError(f"'{printable(uri)}' names no bucket; write {scheme}://BUCKET/PREFIX")
    return Bucket(store, name, host.partition(".")[0] if at else ""), prefix.strip("/")


def shown(bucket: Bucket) -> str:
    """As people know it."""
    account = f"@{bucket.account}" if bucket.account else ""
    return f"{bucket.scheme}://{bucket.name}{account}"


def list_objects(bucket: Bucket, prefix: str) -> list[Stored]:
    """Every object below a prefix, or the one that it names; sorted. Raises `FetchError`."""
    where = f"{shown(bucket)}/{prefix}".rstrip("/")
    found: list[Stored] = []
    try:
        store = open_bucket(bucket.scheme, bucket.name, bucket.account)
        for chunk in store.list(prefix or None, chunk_size=1000):
            for each in chunk:
                # Consoles show a folder by an empty object of its name.
                path, size = each["path"], each["size"]
                if size or "." in path.rpartition("/")[2]:
                    found.append(Stored(path, size, each["e_tag"] or ""))
            if len(found) > MOST_OBJECTS:
                raise FetchError(f"{where} holds more than {MOST_OBJECTS} objects; name a prefix")
        if not found and prefix:
            try:
                one = store.head(prefix)
            except FileNotFoundError:
                return []
            return [Stored(one["path"], one["size"], one["e_tag"] or "")]
    except Exception as error:
        raise why(error, where) from None
    found.sort()
    return found


def read_object(bucket: Bucket, stored: Stored) -> bytes:
    """The whole of a small object. Raises `FetchError`."""
    try:
        store = open_bucket(bucket.scheme, bucket.name, bucket.account)
        options: Any = {"if_match": stored.etag} if stored.etag else {}
        return bytes(store.get(stored.key, options=options).bytes())
    except Exception as error:
        raise why(error, f"{shown(bucket)}/{stored.key}") from None


def write_object(bucket: Bucket, key: str, content: bytes, etag: str | None) -> str:
    """Puts an object and returns its new ETag. `etag` is what it must have; empty: it must not
    be there; `None`: whatever is there is replaced. Raises `FetchError`."""
    where = f"{shown(bucket)}/{key}"
    mode: Any = {"e_tag": etag} if etag else "overwrite" if etag is None else "create"
    try:
        store = open_bucket(bucket.scheme, bucket.name, bucket.account)
        return str(store.put(key, content, mode=mode, use_multipart=False)["e_tag"] or "")
    except Exception as error:
        raise why(error, where) from None


def why(error: Exception, where: str) -> FetchError:
    """What went wrong in a store, as one line."""
    if isinstance(error, FetchError):
        return error
    exceptions = needed("obstore.exceptions", "s3", where)
    text = " ".join(str(error).partition("\n\nDebug source:")[0].split())
    code = _CODE.search(text)
    if isinstance(error, exceptions.PreconditionError | exceptions.AlreadyExistsError):
        return FetchError(f"{where} changed since it was looked at", changed=True)
    if code is not None and code[1] in ("NoSuchBucket", "ContainerNotFound"):
        return FetchError(f"{where}: there is no such bucket", final=True)
    if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return FetchError(f"{where} is not there", changed=True)
    if (
        isinstance(
            error,
            PermissionError | exceptions.PermissionDeniedError | exceptions.UnauthenticatedError,
        )
        or "status code: 403" in text
    ):
        told = f" ({code[1]})" if code is not None else ""
        return FetchError(
            f"{where}: access is denied to these credentials{told}; see docs/stores.md",
            denied=True,
        )
    if "redirect" in text.lower():
        return FetchError(f"{where}: the bucket is in another region; set AWS_REGION to its own")
    if "error sending request" in text:
        return FetchError(f"{where} cannot be read: the store does not answer")
    text = _NOISE.sub("", text) if code is None else f"{code[1]}: {code[2]}"
    return FetchError(f"{where} cannot be read: {printable(text, 300)}")
