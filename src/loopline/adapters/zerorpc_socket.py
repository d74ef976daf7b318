"""The ROUTER socket under a ZeroRPC server, its CURVE keys, and a door for clients without any.

A folder of keys holds `server.key_secret` and `server.key`, made when they are first needed, and
`clients/*.key`: the public keys of those who may call. With none there, nobody may. They are read
at every handshake, so a key that is added counts at once, and one that is removed does when its
client connects the next time.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopline.errors import InvalidInput, MissingExtra, Unavailable

try:
    import zmq
    from zmq.auth import create_certificates, load_certificate
    from zmq.utils import z85
    from zmq.utils.monitor import parse_monitor_message
except ImportError as error:
    raise MissingExtra("ZeroRPC needs pyzmq: pip install 'loopline[zerorpc]'") from error

ENDPOINT = re.compile(r"(ipc|inproc)://.+|tcp://[^/]+:(\d{1,5}|\*)")
LOCAL = re.compile(r"(ipc|inproc)://.+|tcp://(127\.[\d.]+|localhost|\[::1\]):.+")
LINGER = 500
"""Milliseconds that answers have to leave after the end."""
FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
MORE = int(zmq.SNDMORE | zmq.NOBLOCK)
NOW = int(zmq.NOBLOCK)
Folder = str | os.PathLike[str]
Route = list[bytes]


class Socket:
    """The socket, not open yet.

    Args:
        endpoint: where to listen.
        keys: the folder of CURVE keys, None or "" for none.
        insecure: whether to do without where others can reach it.
        heartbeat: seconds between two of ZeroMQ's own, which find connections that are gone.
        largest: bytes of a message that gets its sender disconnected.

    Raises:
        InvalidInput: the endpoint is none, or needs keys, or those there cannot be read.
    """

    def __init__(
        self, endpoint: str, keys: Folder | None, insecure: bool, heartbeat: float, largest: int
    ) -> None:
        check(endpoint, bool(keys) or insecure)
        self.endpoint = endpoint.replace("//localhost:", "//127.0.0.1:")
        self._keys = Path(keys) if keys else None
        self._pair = key_pair(self._keys, "server") if self._keys else None
        self._options = {
            zmq.ROUTER_MANDATORY: 1,
            zmq.MAXMSGSIZE: largest,
            zmq.HEARTBEAT_IVL: int(1000 * heartbeat),
            zmq.HEARTBEAT_TIMEOUT: int(3000 * heartbeat),
            zmq.IPV6: int("[" in endpoint),
        }

    def open(self, look: Callable[[], None], complain: Callable[[str], None]) -> None:
        """Listen on this event loop.

        Args:
            look: called when there may be something to receive.
            complain: called with a sentence about a client whose handshake failed.

        Raises:
            Unavailable: it is not possible there.
        """
        self._complain = complain
        self._context = zmq.Context()
        self._socket = socket = self._context.socket(zmq.ROUTER)
        for option, value in self._options.items():
            socket.setsockopt(option, value)
        self._monitor = socket.get_monitor_socket(FAILED)
        self._watched: list[tuple[Any, Callable[[], None]]] = [
            (socket, look),
            (self._monitor, self._on_failure),
        ]
        if self._keys is not None:
            self._open_curve()
        running = asyncio.get_running_loop()
        try:
            socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            self._watched, self._running = [], running
            self.close()
            self.end()
            raise Unavailable(
                f"cannot listen at {self.endpoint}: {os.strerror(error.errno)}"
            ) from error
        self.endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        self._running = running
        for each, act in self._watched:
            running.add_reader(each.get(zmq.FD), act)
            act()  # the descriptor tells nothing of a socket in which nobody has looked yet

    def _open_curve(self) -> None:
        assert self._pair is not None
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        self._watched.append((self._zap, self._admit))
        socket = self._socket
        socket.curve_server = 1
        socket.zap_domain = b"loopline"
        socket.curve_publickey, socket.curve_secretkey = self._pair

    def _admit(self) -> None:
        """Answer libzmq's questions (ZAP, RFC 27) who may come in."""
        assert self._keys is not None
        while True:
            try:
                version, id, _, address, _, _, *proof = self._zap.recv_multipart(NOW)
            except zmq.Again:
                return
            key = z85.encode(proof[0]) if proof else b""
            known = key in client_keys(self._keys / "clients")
            status = (b"200", b"OK") if known else (b"400", b"unknown key")
            self._zap.send_multipart([version, id, *status, key if known else b"", b""])
            if not known:
                told = f"{address.decode()} has the key {key.decode()}, which is not in the folder"
                self._complain(f"{told} {self._keys / 'clients'}")

    def _on_failure(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(NOW))
            except zmq.Again:
                return
            if event["event"] != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                what = "one with CURVE and the right server key" if self._keys else "a plain one"
                self._complain(f"a client at {self.endpoint} is not {what}")

    def receive(self) -> list[bytes] | None:
        """The frames of one message, None when there is none."""
        take, more = self._socket.recv, self._socket.getsockopt
        try:
            frames: list[bytes] = [take(NOW), take(NOW)]
        except zmq.Again:
            return None
        while more(zmq.RCVMORE):
            frames.append(take(NOW))
        return frames

    def send(self, route: Route, payload: bytes) -> bool | None:
        """Send without waiting; False if the peer takes nothing now, None if it is gone."""
        put = self._socket.send
        try:
            put(route[0], MORE)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            return None
        for hop in route[1:]:
            put(hop, MORE)
        put(b"", MORE)
        put(payload, NOW)
        return True

    def close(self) -> None:
        """Let go, after giving answers a moment to leave; the rest of it is `end`."""
        for each, _ in self._watched:
            self._running.remove_reader(each.get(zmq.FD))
        self._socket.disable_monitor()
        self._monitor.close(0)
        if self._keys is not None:
            self._zap.close(0)
        self._socket.close(LINGER)

    def end(self) -> None:
        """Wait until the last answer has left, or its time is over."""
        self._context.term()


def check(endpoint: str, protected: bool) -> None:
    """Raise `InvalidInput` unless this is an endpoint that may be open."""
    if not ENDPOINT.fullmatch(endpoint):
        told = f"{endpoint!r} is not an endpoint such as tcp://127.0.0.1:4242 or ipc:///path"
        raise InvalidInput.at(told, "/zerorpc")
    if not (protected or LOCAL.fullmatch(endpoint)):
        told = (
            f"{endpoint} can be reached by others: give a folder of CURVE keys (--zerorpc-keys), "
            "or say --insecure if that is meant"
        )
        raise InvalidInput.at(told, "/zerorpc")


def key_pair(folder: Path, name: str) -> tuple[bytes, bytes]:
    """The public and the secret key of `NAME.key_secret`, made if it is not there.

    Raises:
        InvalidInput: the file holds none, or the folder cannot be used.
    """
    path = folder / f"{name}.key_secret"
    try:
        if not path.exists():
            (folder / "clients").mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            create_certificates(folder, name)
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the CURVE keys in {folder} cannot be used: {error}") from error
    if secret is None:
        raise InvalidInput(f"{path} holds no secret key")
    return public, secret


def client_keys(folder: Path) -> set[bytes]:
    """The public keys in a folder; a file that holds none counts for nothing."""
    found = set()
    for path in folder.glob("*.key"):
        try:
            found.add(load_certificate(path)[0])
        except (OSError, ValueError):
            continue
    return found


def forward(listen: str, to: str, keys: Folder) -> None:
    """Let clients that know nothing of CURVE call a server that wants it; returns on no account.

    Args:
        listen: a local endpoint for them.
        to: the server's.
        keys: a folder with the server's public key, `server.key`, and a pair of the forwarder's
            own, `client.key_secret`, which is made if it is not there.

    Raises:
        InvalidInput: others can reach `listen`, or a key is missing.
        Unavailable: `listen` is in use.
    """
    check(listen, False)
    folder = Path(keys)
    pair = key_pair(folder, "client")
    try:
        server, _ = load_certificate(folder / "server.key")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the server's public key is missing: {error}") from error
    with zmq.Context() as context:
        front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        back.curve_serverkey, (back.curve_publickey, back.curve_secretkey) = server, pair
        front.sndhwm = 0
        try:
            front.bind(listen.replace("//localhost:", "//127.0.0.1:"))
            back.connect(to)
            zmq.proxy(front, back)
        except zmq.ZMQError as error:
            raise Unavailable(f"cannot forward {listen} to {to}: {error.strerror}") from error
        finally:
            front.close(0)
            back.close(0)
