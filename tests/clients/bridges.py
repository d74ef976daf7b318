"""Other people's Python clients, called from here: JSON lines to a script in their environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.clients import HERE, python


class Told(Exception):
    """What a client raised.

    Args:
        text: its message.
        status: what it says of the protocol's status, if anything.
    """

    def __init__(self, text: str, status: str) -> None:
        super().__init__(text, status)
        self.text = text
        self.status = status


class Bridge:
    """A process in a client's environment, which makes one call after another.

    Args:
        client: the name of the environment.
        script: the file here that it runs.
        arguments: what the script takes.
    """

    def __init__(self, client: str, script: str, *arguments: str) -> None:
        command = [str(python(client)), str(HERE / script), *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, call: str, **given: Any) -> Any:
        """Make a call.

        Raises:
            Told: the client raised.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"call": call, **given}) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, "the client's process is gone"
        answer = json.loads(line)
        if "error" in answer:
            raise Told(answer["error"], answer["status"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@contextmanager
def bridge(client: str, script: str, *arguments: str) -> Iterator[Bridge]:
    """A bridge for a while."""
    found = Bridge(client, script, *arguments)
    try:
        yield found
    finally:
        found.close()
