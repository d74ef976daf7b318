"""The conformance suite's client over ZeroRPC: the unmodified Python package, in a subprocess."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from loopline.testing.adapter import Driver, Refusal, Row, Said
from tests.clients import python

BRIDGE = Path(__file__).with_name("zerorpc_bridge.py")
BLOCK = 100


class Bridge:
    """A process that calls with the real client what it is told to.

    Args:
        endpoint: the server's.
        options: token, heartbeat and timeout, in seconds.
    """

    def __init__(self, endpoint: str, **options: Any) -> None:
        self._process = subprocess.Popen(
            [python("zerorpc"), "-I", BRIDGE, endpoint, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, method: str, *args: Any) -> Any:
        """Call a method that answers once."""
        return next(self.answers(method, *args))

    def answers(self, method: str, *args: Any) -> Iterator[Any]:
        """Call a method at once; then iterate its answer, or the items of its stream.

        Raises:
            Refusal: the server answered with an error.
            TimeoutError: the client gave up.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"method": method, "args": args}) + "\n")
        self._process.stdin.flush()
        return self._read(self._process.stdout)

    def _read(self, lines: IO[str]) -> Iterator[Any]:
        while True:
            told = json.loads(lines.readline())
            if "error" in told:
                assert told["traceback"] is None
                pointers = [each["pointer"] for each in told["errors"]]
                raise Refusal(told["code"] or told["error"], told["message"], pointers)
            if "lost" in told:
                raise TimeoutError(told["lost"])
            if "done" in told:
                return
            yield told["item"] if "item" in told else told["value"]
            if "value" in told:
                return

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


class ZerorpcDriver(Driver):
    """A client of `{model}_predict` and the other methods.

    Args:
        endpoint: the server's.
        token: sent in the header of every request.
    """

    name = "ZeroRPC"
    verbs = frozenset("predict null ids deadline stream learn outcome train describe".split())

    def __init__(self, endpoint: str, token: str | None = None) -> None:
        self._bridge = Bridge(endpoint, token=token, timeout=120)

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        """Predict one row or many."""
        given = {"ids": ids, "version": version, "timeout": timeout}
        options = {name: value for name, value in given.items() if value is not None}
        told = self._bridge.call(f"{model}_predict", rows, *([options] if options else []))
        return [_said(each) for each in (told if isinstance(told, list) else [told])]

    def stream(self, model: str, rows: Iterable[Row]) -> Iterator[Said]:
        """Predict rows as they come, a block of them in each call."""
        waiting = iter(rows)
        while block := list(islice(waiting, BLOCK)):
            yield from map(_said, self._bridge.answers(f"{model}_predict_stream", block))

    def learn(self, model: str, rows: Sequence[Row]) -> int:
        """Add labelled rows."""
        accepted: int = self._bridge.call(f"{model}_learn", rows)["accepted"]
        return accepted

    def outcome(self, model: str, items: Sequence[Row]) -> list[str]:
        """Tell outcomes."""
        told = self._bridge.call(f"{model}_outcome", items)
        return [each["status"] for each in told["results"]]

    def train(self, model: str) -> int:
        """Train, however long it takes."""
        version: int = self._bridge.call(f"{model}_train")["version"]
        return version

    def describe(self, model: str) -> Row:
        """The model's metadata, in the words of the suite."""
        told = self._bridge.call("get_model_metadata", model)
        inputs = list(told["input_schema"]["properties"])
        return {**told, "version": told["champion"], "inputs": inputs}

    def close(self) -> None:
        """End the client's process."""
        self._bridge.close()


def _said(told: Row) -> Said:
    return Said(told["id"], told["prediction"], told["version"])
