"""`FileBlobs`: bytes by digest in a directory."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopline.errors import Tampered, Unavailable
from loopline.records import new_id

_DIGEST = re.compile(r"[0-9a-f]{64}")


class FileBlobs:
    """`contracts.BlobStore` in a directory, for every process of one machine.

    The blob `abcdef...` is the file `ab/cdef...`. It is written under another name, flushed to
    the disk, and renamed, so a file under a digest is whole.

    Args:
        root: the directory; made if it is not there.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).expanduser().absolute()
        with _translated():
            self._root.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        with _translated():
            if not self._same(path, digest):
                self._write(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        with _translated():
            data = self._find(digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise Tampered(f"The bytes of the blob {digest} were changed on the disk.")
        return data

    def has(self, digest: str) -> bool:
        return _DIGEST.fullmatch(digest) is not None and self._path(digest).is_file()

    def delete(self, digest: str) -> None:
        if self.has(digest):
            with _translated():
                self._path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        with _translated():
            for path in sorted(self._root.glob("??/*")):
                digest = path.parent.name + path.name
                if _DIGEST.fullmatch(digest):
                    yield digest

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest[2:]

    def _find(self, digest: str) -> Path:
        # A digest may come from a request, and must not lead out of the directory.
        if _DIGEST.fullmatch(digest) is None:
            raise Unavailable(f"There is no blob {digest!r}.")
        return self._path(digest)

    def _same(self, path: Path, digest: str) -> bool:
        """Tell whether the file is there and sound; putting a damaged blob again mends it."""
        with suppress(FileNotFoundError), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
        return False

    def _write(self, path: Path, data: bytes) -> None:
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            _sync(self._root)
        fresh = path.parent / f".{new_id()}"
        try:
            with fresh.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a rename in a folder survive a power cut; Windows has no way to say so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Unavailable(f"There is no blob at {error.filename}.") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        detail = "The disk for blobs is full; free some space." if full else f"Blobs: {error}"
        raise Unavailable(detail) from error
