"""The blob suite over memory and files, and what only files can do wrong."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopline.backends.files import FileBlobs
from loopline.backends.memory_store import MemoryBlobs
from loopline.errors import Tampered, Unavailable
from loopline.testing.blobs import BlobSuite


class TestMemoryBlobs(BlobSuite):
    """The suite over the reference."""

    @pytest.fixture
    def blobs(self) -> Iterator[MemoryBlobs]:
        """An empty one."""
        yield MemoryBlobs()


class TestFileBlobs(BlobSuite):
    """The suite over a directory, and its own promises."""

    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Iterator[FileBlobs]:
        """An empty directory."""
        yield FileBlobs(tmp_path / "deep" / "blobs")

    def test_layout(self, tmp_path: Path) -> None:
        """The digest's first two letters are the folder, the others the file."""
        digest = FileBlobs(tmp_path).put(b"hello")
        assert (tmp_path / digest[:2] / digest[2:]).read_bytes() == b"hello"

    def test_other_process_reads(self, tmp_path: Path) -> None:
        """What was put is there for every other opener of the directory."""
        digest = FileBlobs(tmp_path).put(b"hello")
        assert FileBlobs(tmp_path).get(digest) == b"hello"

    def test_tampered(self, tmp_path: Path) -> None:
        """Changed bytes are refused, and putting the right ones again mends the blob."""
        blobs = FileBlobs(tmp_path)
        digest = blobs.put(b"hello")
        (tmp_path / digest[:2] / digest[2:]).write_bytes(b"hellO")
        with pytest.raises(Tampered):
            blobs.get(digest)
        blobs.put(b"hello")
        assert blobs.get(digest) == b"hello"

    def test_torn_write_is_not_visible(self, tmp_path: Path) -> None:
        """A writer that dies before the rename leaves nothing under a digest."""
        blobs = FileBlobs(tmp_path)
        digest = blobs.put(b"hello")
        (tmp_path / digest[:2] / ".unfinished").write_bytes(b"hel")
        (tmp_path / "notes.txt").write_bytes(b"")
        assert list(blobs.digests()) == [digest]

    def test_full_disk(self, tmp_path: Path) -> None:
        """A write that does not fit is unavailable, leaves no rest, and reads go on."""
        blobs = FileBlobs(tmp_path)
        digest = blobs.put(b"hello")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            with pytest.raises(Unavailable):
                blobs.put(b"x" * 100_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, former)
        assert blobs.get(digest) == b"hello"
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
            tmp_path / digest[:2] / digest[2:]
        ]

    def test_file_in_the_way(self, tmp_path: Path) -> None:
        """A root that is not a directory is said to be unavailable."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(Unavailable):
            FileBlobs(tmp_path / "file")


def test_import_is_light() -> None:
    """The module brings neither NumPy nor SQLAlchemy into the process."""
    code = (
        "import sys, loopline.backends.files; "
        "print(sorted({'numpy', 'pandas', 'sqlalchemy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
