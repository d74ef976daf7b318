"""The contract suite of a blob store: subclass `BlobSuite` and override its `blobs` fixture."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import pytest

from loopline.contracts import BlobStore
from loopline.errors import Unavailable


class BlobSuite:
    """What holds for every `contracts.BlobStore`."""

    @pytest.fixture
    def blobs(self) -> Iterator[BlobStore]:
        """An empty blob store; to be overridden."""
        raise NotImplementedError

    @pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)) * 4096])
    def test_put_and_get(self, blobs: BlobStore, data: bytes) -> None:
        """Bytes come back under the SHA-256 of their content."""
        digest = blobs.put(data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert blobs.has(digest)
        assert blobs.get(digest) == data

    def test_put_again(self, blobs: BlobStore) -> None:
        """Putting the same bytes again changes nothing."""
        assert blobs.put(b"same") == blobs.put(b"same")
        assert list(blobs.digests()) == [hashlib.sha256(b"same").hexdigest()]

    def test_digests(self, blobs: BlobStore) -> None:
        """All digests are listed, each once."""
        assert list(blobs.digests()) == []
        put = {blobs.put(str(number).encode()) for number in range(20)}
        listed = list(blobs.digests())
        assert set(listed) == put and len(listed) == 20

    def test_missing(self, blobs: BlobStore) -> None:
        """A blob that is not there is said to be unavailable."""
        digest = hashlib.sha256(b"never").hexdigest()
        assert not blobs.has(digest)
        with pytest.raises(Unavailable):
            blobs.get(digest)

    @pytest.mark.parametrize("digest", ["", "x", "../../etc/passwd", "A" * 64, "0" * 63 + "/"])
    def test_not_a_digest(self, blobs: BlobStore, digest: str) -> None:
        """Text that is not a digest names no blob, and leads nowhere else."""
        assert not blobs.has(digest)
        blobs.delete(digest)
        with pytest.raises(Unavailable):
            blobs.get(digest)

    def test_delete(self, blobs: BlobStore) -> None:
        """A removed blob is gone, the others stay, and it can be put again."""
        gone, kept = blobs.put(b"gone"), blobs.put(b"kept")
        blobs.delete(gone)
        blobs.delete(gone)
        assert not blobs.has(gone)
        assert list(blobs.digests()) == [kept]
        assert blobs.get(blobs.put(b"gone")) == b"gone"

    def test_many_threads_put_the_same(self, blobs: BlobStore) -> None:
        """Threads that put the same bytes at once all succeed, and the blob is whole."""
        data = b"x" * 300_000
        digests: list[str] = []
        start = threading.Barrier(4)

        def work() -> None:
            start.wait()
            digests.append(blobs.put(data))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(digests) == 4 and len(set(digests)) == 1
        assert blobs.get(digests[0]) == data
