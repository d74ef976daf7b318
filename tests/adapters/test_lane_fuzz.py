"""Random requests, and bytes that are nearly none.

`LOOPLINE_FUZZ=100 pytest tests/adapters/test_lane_fuzz.py` does a hundred times as much as usual,
and `LOOPLINE_FUZZ_SEED=7` something else than usual.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import msgspec
import pytest

from loopline.adapters.http_predict import Express
from loopline.loop import Loop
from tests.adapters.sockets import PING, PREDICT, Line, Served, cut, masked, post, served, until
from tests.adapters.speaking import FEATURES, SETOSA, VIRGINICA, running

TIMES = int(os.environ.get("LOOPLINE_FUZZ", "1"))
SEED = int(os.environ.get("LOOPLINE_FUZZ_SEED", "0"))
SEEDS = [f"{SEED}-{number}" for number in range(4)]
SINGLES, ODD, SEQUENCES = 360 * TIMES, 80 * TIMES, 75 * TIMES
MUTANTS = 3200 * TIMES
TOGETHER = 20
MAX_BODY = 3000
LATE = re.compile(rb"HTTP/1.1 504 ")
SIDE = b"-@@-"
"""Stands in ids that each of two servers has to see for the first time."""
ODD_IDS: list[Any] = ["a", [], None, {}, ["", 5], ["x" * 300]]
ODD_VALUES: list[Any] = [
    None,
    "1.5",
    "x",
    True,
    False,
    0.0,
    -1,
    10**30,
    10**400,
    [],
    {},
    "",
    "\ud800",
]

pytestmark = pytest.mark.timeout(120 + 60 * TIMES)


class Servers(NamedTuple):
    """Servers of one loop, of which only one may be asked at a time, and a token they know."""

    loop: Loop
    lane: Served
    plain: Served
    uvicorn: Served
    token: str

    def writer(self, chance: random.Random) -> Writer:
        """Somebody who writes requests for them."""
        return Writer(chance, self.token, self.loop.access.required)


@pytest.fixture(scope="module", params=["open", "guarded"])
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """With the lane, without it, and with Uvicorn's own protocol class."""
    guarded = request.param == "guarded"
    folder = tmp_path_factory.mktemp("random")
    with running(folder, max_body=MAX_BODY, token_required=guarded) as loop, ExitStack() as stack:
        token = loop.access.issue("app", ["predict"])
        one, two, three = (stack.enter_context(served(loop, lane)) for lane in (True, False, None))
        yield Servers(loop, one, two, three, token)
        for server in (one, two, three):
            server.at_rest()


class Writer:
    """Writes requests, most of them good, all of them well-formed unless asked otherwise.

    Args:
        chance: where it takes its decisions from.
        token: one that is good.
        guarded: whether one is needed.
    """

    def __init__(self, chance: random.Random, token: str, guarded: bool) -> None:
        self.chance = chance
        self.token = token
        self.guarded = guarded
        self.count = 0

    def path(self) -> str:
        """Most often the right one."""
        pick = self.chance.random()
        if pick < 0.5:
            return PREDICT
        if pick < 0.62:
            return "/v1/models/sales/predict"
        if pick < 0.68:
            return "/v1/models/moody/predict"
        return self.chance.choice(
            [
                "/v1/models/nope/predict",
                "/v1/models/Iris/predict",
                "/v1/models/iris/Predict",
                "/v1/models//predict",
                "/v1/models/iris/predict/",
                "//v1/models/iris/predict",
                "/v1//models/iris/predict",
                "/v1/models/iris//predict",
                "/v1/models/../models/iris/predict",
                "/v1/models/%69ris/predict",
                "/v1/models/iris%2Fpredict",
                "/v1/models/iris/predic%74",
                "/v1/models/i%20r/predict",
                "/v1/models/%/predict",
                "/v1/models/%zz/predict",
                "/v1/models/~i!$&'()*+,;=:@-._/predict",
                "/v1/models/iris;a=b/predict",
                '/v1/models/"<>^`{|}/predict',
                "/v1/models/" + "x" * 300 + "/predict",
                "/v1/models/iris/predict#here",
                "/v1/models/i#ris/predict",
                "http://here/v1/models/iris/predict",
                "http://elsewhere:81/v1/models/iris/predict?version=1",
                "/v1/models/iris/describe",
                "/v1/models",
                "/livez",
                "/nope",
                "/",
                "*",
            ]
        )

    def query(self) -> str:
        """Of known and unknown parameters, right and wrong ones."""
        pick = self.chance.random()
        if pick < 0.6:
            return ""
        parts = self.chance.choices(
            [
                "probabilities=true",
                "probabilities=1",
                "probabilities=FALSE",
                "probabilities=maybe",
                "probabilities=",
                "version=1",
                "version=99",
                "version=abc",
                "version=1.0",
                "version=%31",
                "version=+1",
                "alias=champion",
                "alias=previous",
                "alias=latest",
                "timeout=30",
                "timeout=0.001",
                "timeout=soon",
                "timeout=1e999",
                "stranger=1",
                "",
                "=",
                "a=b;version=99",
                "version",
                "x=%ff",
                "x=1#",
                "#",
                "?",
            ],
            k=self.chance.choice([1, 1, 1, 1, 2, 2, 3]),
        )
        return "?" + "&".join(parts)

    def headers(self) -> list[tuple[str, str]]:
        """All but those that say where the body ends."""
        held: list[tuple[str, str]] = []
        chance = self.chance

        def maybe(share: float, name: str, *values: str) -> None:
            if chance.random() < share:
                held.append((name, chance.choice(values)))

        maybe(
            0.6,
            "content-type",
            *["application/json"] * 12,
            *["application/json; charset=utf-8"] * 3,
            "application/json;charset=utf-8",
            "application/json; charset=latin-1",
            "APPLICATION/JSON",
            "application/problem+json",
            "application/msgpack",
            "application/x-ndjson",
            "application/x-www-form-urlencoded",
            "text/csv",
            "text/plain",
            "text/html",
            "multipart/form-data; boundary=x",
            "",
            "\xe9",
        )
        maybe(
            0.3,
            "accept",
            *["*/*"] * 4,
            *["application/json"] * 4,
            "application/msgpack",
            "application/x-ndjson",
            "text/html, application/json;q=0.9",
            "",
        )
        if chance.random() < 0.15:
            self.count += 1
            fresh = f"n{self.count}-@@-"
            id = chance.choice([fresh, fresh, "again-@@-", "x-@@-" * 50, "-@@-\xe9\xff", ""])
            held += [("prediction-id", id)] * chance.choice([1, 1, 1, 2])
        maybe(0.05, "origin", "http://here", "https://evil.example", "null", "")
        maybe(0.2, "x-request-id", "r-1", "r~2", "two words", "x" * 200, "<b>", "\xe9")
        maybe(0.03, "content-encoding", "gzip", "identity", "")
        maybe(0.1, "connection", "keep-alive", "close", "Keep-Alive", "close, te", "odd")
        maybe(0.05, "expect", "100-continue", "100-Continue", "200-ok")
        maybe(0.05, "x-long", "y" * 2000)
        maybe(0.05, "cookie", "a=b", "c")
        if self.guarded or chance.random() < 0.1:
            right = f"Bearer {self.token}"
            good = [right] * 12 + [f"bearer  {self.token} ", f"BEARER {self.token}"]
            bad = ["Bearer ll_wrong", "Bearer", "Basic bGw6bGw=", self.token, "Bearer \xe9", ""]
            maybe(0.97, "authorization", *good, *bad)
            maybe(0.02, "authorization", right, "Bearer ll_wrong")
        chance.shuffle(held)
        if chance.random() < 0.2:
            held = [(chance.choice([name.title(), name.upper()]), text) for name, text in held]
        return held

    def row(self, path: str) -> Any:
        """A row for the model of a path, most often a good one."""
        chance = self.chance
        if "sales" in path:
            return {"TV": chance.choice([50, 12.5, 0, -0.0, 1e300, "50", None, True])}
        if "moody" in path:
            return {"say": chance.choice([1, 1e308, None, [1, {"a": None}], "\xe9\u2028"])}
        row: dict[str, Any] = {name: round(chance.uniform(0.1, 8), 2) for name in FEATURES}
        pick = chance.random()
        if pick < 0.1:
            del row[chance.choice(FEATURES)]
        elif pick < 0.2:
            row["stranger"] = chance.choice([1, None, {"deep": [1]}])
        elif pick < 0.4:
            row[chance.choice(FEATURES)] = chance.choice(ODD_VALUES)
        elif pick < 0.45:
            row = dict(reversed(row.items()))
        return row

    def body(self, path: str) -> bytes:
        """Rows in every shape, and what is no row."""
        chance = self.chance
        pick = chance.random()
        row = self.row(path)
        if pick < 0.55:
            return json.dumps(row).encode()
        if pick < 0.85:
            rows = [self.row(path) for _ in range(chance.randrange(1, 5))]
            value: Any = chance.choice(
                [
                    rows,
                    [[*each.values()] for each in rows],
                    [*row.values()],
                    {key: [each.get(key) for each in rows] for key in row},
                    {"inputs": rows},
                    {"inputs": row},
                    {"inputs": rows, "ids": self.ids(len(rows))},
                    {"inputs": rows, "ids": self.ids(len(rows) + 1)},
                    {"inputs": rows, "ids": chance.choice(ODD_IDS)},
                    {"inputs": rows, "more": 1},
                    {"ids": ["a"]},
                ]
            )
            text = json.dumps(value, indent=chance.choice([None, None, 1]))
            return text.encode(chance.choice(["utf-8"] * 9 + ["utf-16"]))
        full = json.dumps(SETOSA).encode()
        return chance.choice(
            [
                b"",
                b" ",
                b" \r\n\t ",
                b"{",
                b"{}",
                b"[]",
                b"null",
                b"5",
                b'"text"',
                b"[NaN]",
                b'{"TV": NaN}',
                b'{"TV": Infinity}',
                b'{"TV": 1e999}',
                b'{"TV": 1, "TV": 2}',
                b'{"TV": 1} x',
                b'{"TV": 1}\x00',
                b'{"TV": "\xff"}',
                b'{"\xff": 1}',
                b'{"TV": "\\ud800"}',
                b'{"\\ud800": 1}',
                b'{"TV": 1' + b"0" * 400 + b"}",
                b"\xef\xbb\xbf" + full,
                b"\xff\xfe",
                b"[" * 500 + b"]" * 500,
                b'{"a":' * 400 + b"1" + b"}" * 400,
                b'{"TV":' + b"[" * 40 + b"]" * 40 + b"}",
                full + b" " * (MAX_BODY - len(full)),
                full + b" " * (MAX_BODY - len(full) + 1),
                b" " * (3 * MAX_BODY),
                full.replace(b"0.2", b"0.0"),
                full.replace(b"0.2", b"false"),
                b"a=1&b=2",
                b"sepal_length,sepal_width,petal_length,petal_width\n5.1,3.5,1.4,0.2\n",
                b"\n".join(msgspec.json.encode(each) for each in (SETOSA, VIRGINICA)),
                msgspec.msgpack.encode(SETOSA),
                chance.randbytes(20),
            ]
        )

    def ids(self, count: int) -> list[str]:
        """Ids for an envelope."""
        self.count += 1
        ids = [f"b{self.count}-@@-{index}" for index in range(count)]
        return ids if self.chance.random() < 0.8 else [ids[0]] * count

    def write(self) -> bytes:
        """One request that a parser takes for one."""
        chance = self.chance
        path = self.path()
        target = path + self.query()
        method, version = "POST", "1.1"
        if chance.random() < 0.08:
            method = chance.choice(["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "MKCOL"])
        if chance.random() < 0.05:
            version = "1.0"
        body, headers = self.body(path), self.headers()
        pick = chance.random()
        if pick < 0.7:
            size = str(len(body)) if chance.random() < 0.95 else f"0{len(body)}"
            headers.insert(chance.randrange(len(headers) + 1), ("content-length", size))
        elif pick < 0.95 and version == "1.1":
            headers.insert(chance.randrange(len(headers) + 1), ("transfer-encoding", "chunked"))
            body = self.chunked(body)
        else:
            body = b""
        if chance.random() < 0.97:
            headers.insert(0, ("host", "here"))
        lines = [f"{method} {target} HTTP/{version}", *(f"{n}: {v}" for n, v in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def chunked(self, body: bytes) -> bytes:
        """A body in parts."""
        chance = self.chance
        places = [chance.randrange(len(body) + 1) for _ in range(chance.randrange(5))]
        parts = cut(body, places)
        form = chance.choice([b"%x\r\n", b"%X\r\n", b"00%x\r\n", b"%x;a=b\r\n"])
        return b"".join(form % len(part) + part + b"\r\n" for part in parts) + b"0\r\n\r\n"

    def malformed(self) -> bytes:
        """Something that is nearly a request."""
        chance, good = self.chance, self.write()
        return chance.choice(
            [
                good.replace(b"HTTP/1", b"HTTP/3", 1),
                good.replace(b"HTTP/1.", b"HTTQ/1.", 1),
                good.replace(b": ", b" : ", 1),
                good.replace(b"host", b"ho st", 1),
                good.replace(b"host: here", b"host: he\x00re", 1),
                good.replace(b"host: here", b"content-length: 5\r\ncontent-length: 6", 1),
                good.replace(b"host: here", b"content-length: x", 1),
                good.replace(b"host: here", b"content-length: -1", 1),
                good.replace(b"host: here", b"content-length: 99999999999999999999999", 1),
                good.replace(b"host: here", b"transfer-encoding: chunked\r\ncontent-length: 9", 1),
                good.replace(b"host: here", b"transfer-encoding: gzip", 1),
                good.replace(b"POST /", b"POST \xe9/", 1),
                good.replace(b"iris", b"ir\xe9s", 1),
                good.replace(b"iris", b"ir is", 1),
                good.replace(b"predict", b"predict?\xe9", 1),
                good.replace(b"\r\n", b"\n"),
                good.replace(b"\r\n", b"\r", 1),
                good.replace(b"POST", b"post", 1),
                good.replace(b"POST", b"NONSENSE", 1),
                b"\r\n\r\n" + good,
                b"\x16\x03\x01\x02" + good,
                good[: chance.randrange(len(good))] + b"\r\n\r\n",
                good.replace(b" HTTP/1.1\r\nhost: here", b"", 1),
            ]
        )


def exchange(server: Served, side: bytes, sent: bytes, places: list[int]) -> bytes:
    """All that a server answers to some bytes, with what only it can say masked."""
    with server.line() as line:
        line.send(sent.replace(SIDE, b"-%b-" % side), places)
        return masked(line.rest()).replace(b"-%b-" % side, SIDE)


def compare(one: Served, two: Served, sent: bytes, places: list[int]) -> None:
    """Send the same to both; where a deadline of a millisecond is in it, it may have passed."""
    first, second = exchange(one, b"aa", sent, places), exchange(two, b"bb", sent, places)
    if not (b"timeout=0.001" in sent and (LATE.search(first) or LATE.search(second))):
        assert first == second, f"sent {sent!r} cut at {places}"


def places_of(chance: random.Random, sent: bytes) -> list[int]:
    """Where to cut what is sent, if at all."""
    count = 0 if chance.random() < 0.5 else chance.randrange(1, 6)
    return [chance.randrange(1, len(sent)) for _ in range(count)]


@pytest.mark.parametrize("seed", SEEDS)
def test_one_request_is_answered_as_without_the_lane(servers: Servers, seed: str) -> None:
    """Whatever it holds, and however it is cut up on its way: byte for byte."""
    chance = random.Random(seed)
    writer = servers.writer(chance)
    for _ in range(SINGLES):
        sent = writer.write() + PING
        compare(servers.lane, servers.plain, sent, places_of(chance, sent))


@pytest.mark.parametrize("seed", SEEDS)
def test_pipelined_requests_are_answered_as_without_the_lane(servers: Servers, seed: str) -> None:
    """All of them, in their order."""
    chance = random.Random(seed)
    writer = servers.writer(chance)
    for _ in range(SEQUENCES):
        sent = b"".join(writer.write() for _ in range(chance.randrange(1, 9))) + PING
        compare(servers.lane, servers.plain, sent, places_of(chance, sent))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_malformed_is_answered_as_without_the_lane(servers: Servers, seed: str) -> None:
    """In one piece, because what was read before the error decides what is answered.

    There are so many requests behind it that a body that is said to be longer than it is ends.
    """
    chance = random.Random(seed)
    writer = servers.writer(chance)
    for _ in range(ODD):
        compare(servers.lane, servers.plain, writer.malformed() + PING * 200, [])


@pytest.mark.parametrize("seed", SEEDS)
def test_without_the_lane_all_is_as_with_uvicorn_alone(servers: Servers, seed: str) -> None:
    """The lane's protocol class adds nothing to what it does not take."""
    chance = random.Random(seed)
    writer = servers.writer(chance)
    for _ in range(SEQUENCES // 3):
        sent = b"".join(writer.write() for _ in range(chance.randrange(1, 9))) + PING
        compare(servers.plain, servers.uvicorn, sent, places_of(chance, sent))
    for _ in range(ODD // 3):
        compare(servers.plain, servers.uvicorn, writer.malformed() + PING * 200, [])


@pytest.mark.parametrize(
    "headers",
    [
        [("connection", "upgrade"), ("upgrade", "websocket")],
        [("connection", "upgrade"), ("upgrade", "h2c")],
        [("upgrade", "websocket")],
        [("connection", "upgrade")],
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "CONNECT"])
def test_nobody_is_upgraded(servers: Servers, headers: list[tuple[str, str]], method: str) -> None:
    """Who wants another protocol is answered in this one, as without the lane."""
    known = ("authorization", f"Bearer {servers.token}")
    sent = [
        post(SETOSA, headers=[known]),
        post(SETOSA, headers=[known, *headers], method=method),
        post(SETOSA, headers=[known, *headers, ("connection", "close")], method=method),
    ]
    told: list[list[Any]] = []
    for server in (servers.lane, servers.plain):
        with server.line() as one, server.line() as two, server.line() as three:
            one.send(sent[0] + sent[1])
            two.send(sent[1])
            three.send(sent[0] + sent[2])
            answers = [one.answer(), one.answer(), two.answer()]
            told.append([each.status for each in answers] + [masked(three.rest())])
    assert told[0] == told[1]


@pytest.mark.parametrize("host", [": here", ":", "a:b:c", "\xe9", "[", "here:99999999", "a b", ""])
@pytest.mark.parametrize("path", [PREDICT, "/v1/models", "/ping"])
def test_a_host_that_is_none_is_no_error_of_ours(servers: Servers, host: str, path: str) -> None:
    """Whoever answers."""
    sent = post(SETOSA, path, [("authorization", f"Bearer {servers.token}")])
    sent = sent.replace(b"host: here", b"host: " + host.encode("latin-1"))
    assert servers.lane.ask(sent).status < 500


def test_most_requests_take_the_lane(servers: Servers) -> None:
    """Otherwise the comparisons would say little."""
    express, taken = Express(servers.loop), 0
    writer = servers.writer(random.Random(SEED))
    for _ in range(500):
        head = writer.write().partition(b"\r\n\r\n")[0]
        first, *lines = head.split(b"\r\n")
        method, url, _ = first.split(b" ")
        pairs = [line.partition(b": ") for line in lines]
        held = [(name.lower(), value) for name, _, value in pairs]
        taken += method == b"POST" and express.admit(url, held) is not None
    assert taken > 150


def mutant(chance: random.Random, writer: Writer) -> bytes:
    """A request or two after an accident."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(1, 300))
    data = bytearray(writer.write())
    if chance.random() < 0.3:
        data += writer.write()
    for _ in range(chance.choice([1, 1, 1, 2, 3, 10])):
        at, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + chance.choice([1, 2, 8, 100]))
        kind = chance.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at:at] = chance.choice(
                [b"\r\n", b"\0", b"\n", b" ", b":", b"\xff", b"0\r\n\r\n", b"%"]
            )
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 5))
        elif kind == 3:
            del data[at:end]
        elif kind == 4:
            data[at:at] = data[at:end] * chance.choice([1, 1, 3])
        elif kind == 5 and at:
            del data[at:]
        else:
            other = writer.write()
            data[at:] = other[chance.randrange(len(other)) :]
    return bytes(data)


def part(chance: random.Random, line: Line) -> None:
    """End a connection in one of the ways there are, and read what comes if that can be read."""
    way = chance.randrange(4)
    if way == 0:
        line.reset()
    elif way == 1:
        line.close()
    else:
        line.finish()
        stream = line.rest()
        assert stream == b"" or stream.startswith(b"HTTP/1.1 "), stream
        assert b"HTTP/1.1 500 " not in stream, stream
        line.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_is_sent_harms_the_server(servers: Servers, seed: str) -> None:
    """It answers or closes, serves the others, and keeps nothing of it."""
    chance = random.Random(seed)
    writer = servers.writer(chance)
    server = servers.lane
    good = post(SETOSA, headers=[("authorization", f"Bearer {servers.token}")])
    for _ in range(MUTANTS // TOGETHER // len(SEEDS)):
        with ExitStack() as stack:
            lines = [stack.enter_context(server.line()) for _ in range(TOGETHER)]
            for line in lines:
                sent = mutant(chance, writer)
                line.send(sent, places_of(chance, sent + b"  "))
            assert server.ask(good).json()["prediction"] == "setosa"
            for line in lines:
                part(chance, line)
    server.at_rest()
    until(lambda: not servers.loop.serving.service("moody").running, "no call is left over")
    assert server.ask(good).status == 200
