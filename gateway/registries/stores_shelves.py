"""What the kinds of stores do differently: listing, reading and writing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from gateway.artifacts.base import Origin, RemoteFile
from gateway.artifacts.origins import BUCKETS, origin_of
from gateway.errors import FetchError, RegistryError

if TYPE_CHECKING:
    from gateway.artifacts.stores import Stored

Files = tuple[RemoteFile, ...]

EXTERNAL: Final = ("_data", ".data")
"""Endings of the files in which an ONNX model keeps its weights."""


class Shelf(Protocol):
    """One store, at one place in it. All of it blocks."""

    uri: str
    """The place as people know it, without secrets."""
    name: str
    """What a model is called that has no folder of its own."""
    writable: bool
    """Whether documents can be put there at all."""
    loose: bool
    """Whether folders that hold no versions are parts of one model (as in a repository of code),
    not models to be."""

    def files(self) -> Files:
        """Every file, by its name below the place; best the same tuple where nothing has changed,
        and the same objects for files that have not. Raises `FetchError`."""

    def is_file(self, files: Files) -> bool:
        """Whether the place, of which these are all files, is a file itself."""

    def read(self, file: RemoteFile) -> bytes:
        """The whole of a document. Raises `FetchError`."""

    def write(self, name: str, content: bytes, etag: str) -> str:
        """Puts a document where there is one with `etag` (empty: none), and returns its new
        ETag. Raises `FetchError`."""

    def origin(self, uri: str, folder: str, files: Files) -> Origin:
        """A version whose `files` have their names in the tree."""


class BucketShelf:
    """A prefix, or one object, in an object store."""

    writable = True
    loose = False

    def __init__(self, uri: str) -> None:
        from gateway.artifacts import stores

        origin_of(uri)
        self._stores = stores
        self.uri = uri.rstrip("/")
        self._bucket, self._prefix = stores.bucket_of(uri)
        self.name = (self._prefix or self._bucket.name).rpartition("/")[2]
        self._companions = self._prefix.endswith(".onnx")
        self._listed: list[stores.Stored] = []
        self._files: Files = ()

    def files(self) -> Files:
        """See `Shelf.files`. What has not changed is the same object as before."""
        found = self._stores.list_objects(self._bucket, self._prefix)
        if len(found) == 1 and found[0].key == self._prefix and self._companions:
            for ending in EXTERNAL:
                found += self._stores.list_objects(self._bucket, self._prefix + ending)
        if found != self._listed:
            known = dict(zip(self._listed, self._files, strict=True))
            self._files = tuple(known.get(each) or self._file(each) for each in found)
            self._listed = found
        return self._files

    def _file(self, stored: Stored) -> RemoteFile:
        key = stored.key
        if not self._prefix:
            name = key
        elif key.startswith(f"{self._prefix}/"):
            name = key[len(self._prefix) + 1 :]
        else:  # the prefix is a file itself
            name = key.rpartition("/")[2]
        return RemoteFile(name, stored.size, stored.etag, locator=key)

    def is_file(self, files: Files) -> bool:
        """See `Shelf.is_file`."""
        return any(file.locator == self._prefix for file in files)

    def read(self, file: RemoteFile) -> bytes:
        """See `Shelf.read`."""
        stored = self._stores.Stored(file.locator, file.size, file.identity)
        return self._stores.read_object(self._bucket, stored)

    def write(self, name: str, content: bytes, etag: str) -> str:
        """See `Shelf.write`."""
        key = f"{self._prefix}/{name}" if self._prefix else name
        return self._stores.write_object(self._bucket, key, content, etag)

    def origin(self, uri: str, folder: str, files: Files) -> Origin:
        """See `Shelf.origin`."""
        return self._stores.StoreOrigin(uri, folder, files)


class HubShelf:
    """A model repository of the Hugging Face Hub: one commit at a time."""

    writable = False
    loose = True

    def __init__(self, uri: str) -> None:
        from gateway.artifacts import hf

        origin_of(uri)
        self._hf = hf
        self.uri = uri
        self._repo = hf.repo_of(uri)
        self._commit = ""
        self._files: Files = ()
        self.name = self._repo.name.partition("/")[2]

    def files(self) -> Files:
        """See `Shelf.files`. One request where the commit is the same."""
        commit = self._hf.commit_of(self._repo)
        if commit != self._commit:
            self._files = tuple(self._hf.list_repo(self._repo, commit))
            self._commit = commit
        return self._files

    def is_file(self, files: Files) -> bool:
        """See `Shelf.is_file`."""
        path = self._repo.path
        return bool(path) and any(file.locator.endswith(f":{path}") for file in files)

    def read(self, file: RemoteFile) -> bytes:
        """See `Shelf.read`."""
        return self._hf.read_small(self.uri, file)

    def write(self, name: str, content: bytes, etag: str) -> str:
        """See `Shelf.write`."""
        raise FetchError(f"{self.uri} cannot be written")

    def origin(self, uri: str, folder: str, files: Files) -> Origin:
        """See `Shelf.origin`."""
        return self._hf.HfOrigin(self.uri, folder, files)


class ImageShelf:
    """A repository in an OCI registry: a tag or digest is one version; without either, the tags
    that are whole numbers are versions, or else ``latest`` is the only one."""

    writable = False
    loose = True

    def __init__(self, uri: str) -> None:
        from gateway.artifacts import oci

        origin_of(uri)
        self._oci = oci
        self.uri = uri
        self._image = oci.image_of(uri)
        self._layers: dict[str, Files] = {}
        self.name = self._image.repo.rpartition("/")[2]

    def files(self) -> Files:
        """See `Shelf.files`. One request a tag where nothing has changed."""
        if self._image.tag or self._image.digest:
            return self._layers_of(self._image)
        files: list[RemoteFile] = []
        tags = self._oci.numbered_tags(self._image)
        for tag in tags:
            for each in self._layers_of(replace(self._image, tag=tag)):
                files.append(replace(each, name=f"{tag}/{each.name}"))
        return tuple(files) if tags else self._layers_of(replace(self._image, tag="latest"))

    def _layers_of(self, image: object) -> Files:
        digest, manifest = self._oci.manifest_of(image)  # type: ignore[arg-type]
        if digest not in self._layers:
            self._layers[digest] = tuple(
                self._oci.list_layers(image, manifest)  # type: ignore[arg-type]
            )
        return self._layers[digest]

    def is_file(self, files: Files) -> bool:
        """See `Shelf.is_file`."""
        return False

    def read(self, file: RemoteFile) -> bytes:
        """See `Shelf.read`."""
        return b"".join(self._oci.OciOrigin(self.uri).read(file, 0))

    def write(self, name: str, content: bytes, etag: str) -> str:
        """See `Shelf.write`."""
        raise FetchError(f"{self.uri} cannot be written")

    def origin(self, uri: str, folder: str, files: Files) -> Origin:
        """See `Shelf.origin`."""
        return self._oci.OciOrigin(self.uri, folder, files)


class WebShelf:
    """One file or archive on a web server."""

    writable = False
    loose = True

    def __init__(self, uri: str) -> None:
        from gateway.artifacts.http import HttpOrigin

        self._origin = HttpOrigin(uri)
        self.uri = self._origin.uri
        self.name = self._origin.file_name

    def files(self) -> Files:
        """See `Shelf.files`."""
        cut = len(self._origin.folder) + 1
        return tuple(replace(each, name=each.name[cut:]) for each in self._origin.files())

    def is_file(self, files: Files) -> bool:
        """See `Shelf.is_file`."""
        return True

    def read(self, file: RemoteFile) -> bytes:
        """See `Shelf.read`."""
        return b"".join(self._origin.read(file, 0))

    def write(self, name: str, content: bytes, etag: str) -> str:
        """See `Shelf.write`."""
        raise FetchError(f"{self.uri} cannot be written")

    def origin(self, uri: str, folder: str, files: Files) -> Origin:
        """See `Shelf.origin`."""
        return self._origin


def shelf_of(uri: str) -> Shelf:
    """The store of a source. Raises `RegistryError`."""
    scheme = uri.partition("://")[0]
    try:
        if scheme in BUCKETS:
            return BucketShelf(uri)
        if scheme == "hf":
            return HubShelf(uri)
        if scheme in ("oci", "oci+http"):
            return ImageShelf(uri)
        return WebShelf(uri)
    except FetchError as error:
        raise RegistryError(str(error)) from None
