"""A limited child process spoken to over pipes: one piece of work, its progress, its result.

The parent writes one JSON line to the child's standard input and keeps that pipe open: when it
closes, because the parent stopped or died, the child kills its own process group and is gone.
The child answers with JSON lines: `{"progress": …}`, then `{"result": …}` or `{"error": …}`.
Whatever the work prints goes to standard error, whose tail the parent keeps.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from loopline.errors import LooplineError

Progress = Callable[[int, int, str], None]
Entry = Callable[[dict[str, Any], Progress], dict[str, Any]]

_POSIX = os.name == "posix"


class Child:
    """One child process at work.

    Args:
        entry: `module:function`; called in the child as `function(arguments, progress)`.
        arguments: JSON-able.
        memory: address-space limit in bytes, 0 for none (POSIX only).
        nice: how much lower its priority is (POSIX only).
        tail: how many lines of standard error are kept.
    """

    def __init__(
        self,
        entry: str,
        arguments: dict[str, Any],
        *,
        memory: int = 0,
        nice: int = 10,
        tail: int = 200,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loopline.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=_POSIX,
        )
        self.pid = self._process.pid
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._tail: deque[str] = deque(maxlen=tail)
        self._threads = [
            threading.Thread(target=self._read, name=f"child-{self.pid}-out", daemon=True),
            threading.Thread(target=self._listen, name=f"child-{self.pid}-err", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        order = {"entry": entry, "arguments": arguments, "memory": memory, "nice": nice}
        with contextlib.suppress(BrokenPipeError):
            self._input.write(msgspec.json.encode(order) + b"\n")
            self._input.flush()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(msgspec.json.decode(line))
        self._messages.put(None)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._tail.append(line.decode("utf-8", "replace").rstrip()[:2000])

    def poll(self, timeout: float) -> dict[str, Any] | None:
        """Wait for the next message.

        Args:
            timeout: seconds.

        Returns:
            A message; None when none came in time. A child that died without a last word gives
            an error that says how it ended.
        """
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        return self._died() if message is None else message

    def _died(self) -> dict[str, Any]:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        detail = f"the process of this attempt {how}"
        return {"error": {"code": "model-failed", "type": "ProcessDied", "detail": detail}}

    def log(self) -> str:
        """The last lines of its standard error."""
        return "\n".join(self._tail)

    def stop(self, grace: float = 2.0) -> None:
        """End the child and everything it started: ask, wait `grace` seconds, then kill."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL if _POSIX else signal.SIGTERM)
        self._signal(signal.SIGKILL if _POSIX else signal.SIGTERM)
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if _POSIX:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)


def _watch_parent(stdin: IO[bytes]) -> None:
    stdin.read()
    if _POSIX:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _limit(memory: int, nice: int) -> None:
    if not _POSIX:
        return
    import resource

    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    os.nice(nice)
    # Linux may rank whole sessions instead of processes, and this child leads one.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


def _describe(error: BaseException) -> dict[str, Any]:
    """An exception as the plain data that travels to the parent."""
    plain: dict[str, Any] = {"type": type(error).__name__, "traceback": traceback.format_exc()}
    if isinstance(error, LooplineError):
        plain |= {"code": error.code, "detail": error.detail}
        plain["errors"] = [{"pointer": f.pointer, "detail": f.detail} for f in error.fields]
    else:
        plain |= {"code": "model-failed", "detail": f"{type(error).__name__}: {error}"}
    return plain


def main() -> None:
    """Run in the child: read the order, do the work, say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    order = msgspec.json.decode(sys.stdin.buffer.readline())
    threading.Thread(target=_watch_parent, args=(sys.stdin.buffer,), daemon=True).start()
    _limit(order["memory"], order["nice"])

    def say(message: dict[str, Any]) -> None:
        out.write(msgspec.json.encode(message) + b"\n")

    def progress(step: int, of: int, message: str) -> None:
        say({"progress": {"step": step, "of": of, "message": message}})

    try:
        module, _, name = order["entry"].partition(":")
        entry: Entry = getattr(importlib.import_module(module), name)
        say({"result": entry(order["arguments"], progress)})
    except BaseException as error:  # the loop's top: whatever it was, the parent hears of it
        say({"error": _describe(error)})
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
