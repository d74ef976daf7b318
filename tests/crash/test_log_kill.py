"""`kill -9` of the log's writer and of its clients: what was handed over or answered is there."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from loopline.backends.handover import LogClient
from loopline.backends.sqlite import LogFile
from loopline.errors import LooplineError
from loopline.testing.log import OTHER, TOPIC, keys, made
from tests.writers import Writer

ROUNDS = 20

CLIENT = """
import sys
from pathlib import Path
from loopline.backends.handover import LogClient
from loopline.testing.log import keys, made

client = LogClient(Path(sys.argv[1]), sys.argv[2])
while True:
    events = made(20)
    client.offer(events)
    sys.stdout.write("".join(f"{key}\\n" for key in keys(events)))
    sys.stdout.flush()
"""


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    """Acknowledged appends are there exactly once; offers are once the writer is back."""
    chance = random.Random(11)
    appended: list[str] = []
    offered: list[str] = []
    stop = threading.Event()

    def load(client: LogClient) -> None:
        while not stop.is_set():
            events, outcomes = made(7), made(2, OTHER)
            try:
                client.offer(events)
                offered.extend(keys(events))
                client.append(outcomes)
                appended.extend(keys(outcomes))
            except LooplineError:
                time.sleep(0.01)

    with Writer(tmp_path) as writer:
        client = LogClient(writer.path, writer.address)
        threads = [threading.Thread(target=load, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0.02, 0.25))
            writer.kill()
            writer.start()
        stop.set()
        for thread in threads:
            thread.join()
        client.append(made(1, OTHER))
        client.close()
    reader = LogFile(tmp_path / "log.db")
    assert len(appended) > ROUNDS and len(offered) > ROUNDS
    assert len(reader.find(OTHER, appended)) == len(appended) == len(set(appended))
    assert len(reader.find(TOPIC, offered)) == len(offered)
    reader.close()


def test_a_killed_client_loses_nothing_it_has_handed_over(tmp_path: Path) -> None:
    """The writer takes in everything that was in the socket."""
    with Writer(tmp_path) as writer:
        for _ in range(5):
            process = subprocess.Popen(
                [sys.executable, "-c", CLIENT, str(writer.path), writer.address],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            told = [process.stdout.readline().strip() for _ in range(400)]
            process.kill()
            told += [line.strip() for line in process.stdout if line.endswith("\n")]
            process.wait()
            process.stdout.close()
            reader = LogFile(tmp_path / "log.db")
            deadline = time.monotonic() + 30
            while len(reader.find(TOPIC, told)) < len(told):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            reader.close()
