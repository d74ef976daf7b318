"""The conformance suite of an adapter: the same stories, told through a client of its protocol.

Subclass `AdapterSuite` and override its `driver` fixture. A `Driver` speaks the protocol as its
real clients do, and translates what they say into `Said` and `Refusal`, so that a test can
compare protocols by comparing values.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import pytest

from loopline.client import Client
from loopline.records import new_id

Row = dict[str, Any]


class Said(NamedTuple):
    """One row's answer."""

    id: str
    prediction: Any
    version: int


class Refusal(Exception):
    """The protocol's error, read as its clients would.

    Args:
        code: one of `errors.CODES`.
        detail: the sentence for the person who asked.
        pointers: the JSON Pointers of the fields complained of, where the protocol carries them.
    """

    def __init__(self, code: str, detail: str, pointers: Sequence[str] = ()) -> None:
        super().__init__(code, detail, tuple(pointers))
        self.code = code
        self.detail = detail
        self.pointers = tuple(pointers)


class Driver:
    """A client of one protocol; a verb that the protocol does not have stays as it is here.

    Args:
        token: sent with every request where the protocol carries tokens.
    """

    name = ""
    verbs: frozenset[str] = frozenset({"predict"})
    """Of predict, null, ids, deadline, stream, learn, outcome, train and describe."""
    eager = False
    """Whether `stream` reads all rows before it sends them."""

    def predict(
        self,
        model: str,
        rows: Sequence[Row] | Row,
        *,
        ids: Sequence[str] | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> list[Said]:
        """Predict rows, or one row that is not in a list."""
        raise NotImplementedError

    def stream(self, model: str, rows: Iterable[Row]) -> Iterator[Said]:
        """Predict rows as they come, yielding answers before all rows were read."""
        raise NotImplementedError

    def learn(self, model: str, rows: Sequence[Row]) -> int:
        """Add labelled rows; returns how many were accepted."""
        raise NotImplementedError

    def outcome(self, model: str, items: Sequence[Row]) -> list[str]:
        """Tell outcomes ({"id", "outcome"}); returns their statuses."""
        raise NotImplementedError

    def train(self, model: str) -> int:
        """Train and wait; returns the version."""
        raise NotImplementedError

    def describe(self, model: str) -> Row:
        """What the protocol tells of a model: at least {"name", "version", "inputs": [names]}."""
        raise NotImplementedError

    def close(self) -> None:
        """Hang up."""


APP = """
import json
import time

from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from typing import TypedDict

from loopline import Loopline


class Point(TypedDict):
    x: float
    y: float


def echo(text: str, number: float, flag: bool, count: int, maybe: float | None = None) -> str:
    return json.dumps([text, number, flag, count, maybe])


def moody(mood: str, seconds: float = 0.0) -> str:
    if mood == "bad":
        raise ZeroDivisionError("the moody model will not")
    time.sleep(seconds)
    return mood


bunch = load_iris(as_frame=True)
flowers = bunch.frame.rename(columns=lambda name: name.removesuffix(" (cm)").replace(" ", "_"))
flowers["species"] = [bunch.target_names[each].item() for each in flowers.pop("target")]
app = Loopline()
app.add("iris", LogisticRegression(max_iter=1000), data=flowers, target="species")
app.add("line", LinearRegression(), data=flowers[["petal_length", "petal_width"]],
        target="petal_width")
app.add("echo", echo)
app.add("moody", moody)
for name in ("blank", *(f"taught_{number}" for number in range(20))):
    app.add(name, LinearRegression(), schema=Point, target="y")
"""
"""What the server of the suite serves: `loopline serve app.py --token-required`."""

SETTINGS = {"LOOPLINE_MAX_ROWS": "2000", "LOOPLINE_MAX_QUEUE": "4", "LOOPLINE_OUTCOME_WAIT": "10"}
"""The environment of that server."""

FIELDS = ("sepal_length", "sepal_width", "petal_length", "petal_width")
SETOSA: Row = dict(zip(FIELDS, (1.1, 1.2, 1.4, 1.5), strict=True))
VIRGINICA: Row = dict(zip(FIELDS, (6.3, 3.3, 6.0, 2.5), strict=True))
ECHO: Row = {"text": "plain", "number": 1.5, "flag": True, "count": 7}

Speak = Callable[[str | None], Driver]


class AdapterSuite:
    """What holds for every adapter; where a protocol lacks a verb, its driver says so."""

    @pytest.fixture
    def speak(self) -> Speak:
        """Makes a driver with a token, or with none; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def client(self) -> Client:
        """An HTTP client of the same server, with all rights; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def token(self) -> str:
        """A token with all scopes; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def driver(self, speak: Speak, token: str) -> Iterator[Driver]:
        """A client of the protocol, with all rights."""
        driver = speak(token)
        yield driver
        driver.close()

    def lacks(self, driver: Driver, verb: str, attempt: Callable[[], Any]) -> bool:
        """Whether the protocol lacks a verb; then its driver must not have it either."""
        if verb in driver.verbs:
            return False
        with pytest.raises(NotImplementedError):
            attempt()
        return True

    def refused(self, code: str, attempt: Callable[[], Any]) -> Refusal:
        """The refusal that an attempt meets, which must have this code and say something."""
        with pytest.raises(Refusal) as caught:
            attempt()
        assert caught.value.code == code, caught.value
        assert caught.value.detail and "Traceback" not in caught.value.detail
        return caught.value

    def logged(self, client: Client, model: str, said: Said) -> Row:
        """The log row of an answer, which must hold the same."""
        row = client.prediction(model, said.id)
        assert (row["prediction"], row["version"]) == (said.prediction, said.version)
        found: Row = row["input"]
        return found

    # Predictions.

    def test_one_row(self, driver: Driver, client: Client) -> None:
        """One row has the champion's answer, an id of its own and a log row."""
        [said] = driver.predict("iris", SETOSA)
        assert said.prediction == "setosa"
        assert said.version == client.describe("iris")["champion"]
        assert self.logged(client, "iris", said) == SETOSA
        [other] = driver.predict("iris", SETOSA)
        assert other.id != said.id

    def test_many_rows(self, driver: Driver, client: Client) -> None:
        """Many rows are answered in their order, as one by one and as over plain HTTP."""
        rows = [{**SETOSA, "petal_length": 1.0 + step / 7} for step in range(40)]
        many = driver.predict("iris", rows)
        assert len({said.id for said in many}) == len(rows)
        assert [said.prediction for said in many] == [
            each.prediction for each in client.predict("iris", rows)
        ]
        assert [self.logged(client, "iris", said) for said in (many[0], many[-1])] == [
            rows[0],
            rows[-1],
        ]

    def test_numbers_are_the_same_to_the_last_bit(self, driver: Driver, client: Client) -> None:
        """A regression's answer is the same double as over plain HTTP."""
        rows = [{"petal_length": step / 3} for step in range(9)]
        found = [said.prediction for said in driver.predict("line", rows)]
        assert found == [each.prediction for each in client.predict("line", rows)]

    @pytest.mark.parametrize(
        "values",
        [
            {"text": 'a "quoted" ☃ line\nand\ttab \\ \U0001f40d'},
            {"text": ""},
            {"number": 0.0},
            {"number": -1.7976931348623157e308},
            {"flag": False},
            {"count": 0},
            {"count": 9007199254740993},
            {"count": -(2**63)},
            {"maybe": 0.0},
        ],
        ids=repr,
    )
    def test_values_arrive_as_they_are(self, driver: Driver, client: Client, values: Row) -> None:
        """Text, zero, false and large integers are values, neither changed nor taken for absent."""
        row = {**ECHO, **values}
        [said] = driver.predict("echo", row)
        assert json.loads(said.prediction) == [*row.values(), *[None][: 5 - len(row)]]
        assert self.logged(client, "echo", said) == {"maybe": None, **row}

    def test_null(self, driver: Driver, client: Client) -> None:
        """A null is taken where the schema allows one."""
        row = {**ECHO, "maybe": None}
        if not self.lacks(driver, "null", lambda: driver.predict("echo", row)):
            [said] = driver.predict("echo", row)
            assert json.loads(said.prediction)[4] is None
            self.refused("invalid-input", lambda: driver.predict("echo", {**row, "text": None}))

    def test_whole_numbers_are_numbers(self, driver: Driver) -> None:
        """An integer is accepted where a float is asked."""
        row = dict.fromkeys(FIELDS, 5) | {"petal_length": 0.0}
        assert driver.predict("iris", row)[0].prediction in ("setosa", "versicolor", "virginica")

    def test_given_ids(self, driver: Driver, client: Client) -> None:
        """The caller's ids are the predictions'; the first answer to an id stands."""
        ids = [new_id() for _ in range(3)]
        rows = [SETOSA, VIRGINICA, SETOSA]
        if self.lacks(driver, "ids", lambda: driver.predict("iris", rows, ids=ids)):
            return
        first = driver.predict("iris", rows, ids=ids)
        assert [said.id for said in first] == ids
        [alone] = driver.predict("iris", VIRGINICA, ids=[new := new_id()])
        assert alone.id == new
        self.logged(client, "iris", first[2])
        assert driver.predict("iris", rows[::-1], ids=ids) == first

    def test_chosen_version(self, driver: Driver, client: Client) -> None:
        """A version that is named answers, whoever is champion."""
        champion = client.describe("iris")["champion"]
        for number in (1, 2):
            [said] = driver.predict("iris", SETOSA, version=number)
            assert (said.version, said.prediction) == (number, "setosa")
            self.logged(client, "iris", said)
        assert client.describe("iris")["champion"] == champion
        self.refused("unknown-version", lambda: driver.predict("iris", SETOSA, version=77))

    def test_stream(self, driver: Driver, client: Client) -> None:
        """Rows are answered in order while others are still on their way."""
        read: list[int] = []

        def rows() -> Iterator[Row]:
            for step in range(1500):
                read.append(step)
                yield {**SETOSA, "petal_length": step / 1000}

        if self.lacks(driver, "stream", lambda: next(driver.stream("iris", rows()))):
            return
        answers = driver.stream("iris", rows())
        first = next(answers)
        assert driver.eager or len(read) < 1500
        said = [first, *answers]
        assert len({each.id for each in said}) == len(said) == 1500
        self.logged(client, "iris", said[1000])
        expected = client.predict("iris", [{**SETOSA, "petal_length": 1.499}])
        assert said[-1].prediction == expected[0].prediction

    # What follows a prediction.

    def test_outcome(self, driver: Driver, client: Client) -> None:
        """An outcome meets its prediction; a second one of the same value is a duplicate."""
        [said] = driver.predict("iris", SETOSA)
        items = [{"id": said.id, "outcome": "versicolor"}]
        if self.lacks(driver, "outcome", lambda: driver.outcome("iris", items)):
            return
        assert driver.outcome("iris", items) == ["joined"]
        assert driver.outcome("iris", [*items, {"id": new_id(), "outcome": "setosa"}]) == [
            "duplicate",
            "waiting",
        ]
        assert client.prediction("iris", said.id)["outcome"]["value"] == "versicolor"
        wrong = [{"id": "", "outcome": "setosa"}]
        self.refused("invalid-input", lambda: driver.outcome("iris", wrong))

    def test_learn_and_train(self, driver: Driver, client: Client) -> None:
        """Rows are taken, all or none; training on them makes a version, which answers."""
        rows: list[Row] = [{"x": float(step), "y": 1.0 + 2.0 * step} for step in range(5)]
        name = next(
            each["name"]
            for each in client.models()
            if each["name"].startswith("taught") and each["champion"] is None
        )
        if self.lacks(driver, "learn", lambda: driver.learn(name, rows)):
            return
        bad = [*rows, {"x": "abc", "y": 1.0}]
        self.refused("invalid-input", lambda: driver.learn(name, bad))
        self.refused("not-ready", lambda: driver.predict(name, {"x": 1.0}))
        assert driver.learn(name, rows) == 5
        if not self.lacks(driver, "train", lambda: driver.train(name)):
            assert driver.train(name) == 1
            [said] = driver.predict(name, {"x": 10.0})
            assert said.prediction == pytest.approx(21.0)

    def test_describe(self, driver: Driver, client: Client) -> None:
        """The protocol tells the model's name, version and inputs."""
        if not self.lacks(driver, "describe", lambda: driver.describe("iris")):
            told = driver.describe("iris")
            assert told["name"] == "iris"
            assert told["version"] == client.describe("iris")["champion"]
            assert {*told["inputs"]} == {*FIELDS}
            self.refused("unknown-model", lambda: driver.describe("nobody"))

    # Refusals.

    def test_every_bad_field_is_named(self, driver: Driver, client: Client) -> None:
        """What breaks the schema is refused, naming each field, and nothing is logged."""
        before = len([*client.predictions("iris")])
        row = {**SETOSA, "petal_width": "abc"}
        told = self.refused("invalid-input", lambda: driver.predict("iris", row))
        assert "petal_width" in f"{told.detail} {told.pointers}"
        missing = {name: value for name, value in SETOSA.items() if "sepal" not in name}
        told = self.refused("invalid-input", lambda: driver.predict("iris", [SETOSA, missing]))
        both = f"{told.detail} {told.pointers}"
        assert "sepal_length" in both and "sepal_width" in both
        assert len([*client.predictions("iris")]) == before

    @pytest.mark.parametrize(
        ("code", "model", "rows"),
        [
            ("unknown-model", "nobody", SETOSA),
            ("not-ready", "blank", {"x": 1.0}),
            ("model-failed", "moody", {"mood": "bad"}),
            ("too-large", "iris", [SETOSA] * 2001),
        ],
    )
    def test_refusals(self, driver: Driver, code: str, model: str, rows: Any) -> None:
        """Each has its code, and a sentence without a traceback."""
        self.refused(code, lambda: driver.predict(model, rows))
        assert driver.predict("iris", SETOSA)[0].prediction == "setosa"

    def test_wrong_state(self, driver: Driver) -> None:
        """A model without a target cannot learn, and one without `fit` cannot be trained."""
        if not self.lacks(driver, "learn", lambda: driver.learn("moody", [{"mood": "a"}])):
            self.refused("wrong-state", lambda: driver.learn("moody", [{"mood": "a"}]))
        if not self.lacks(driver, "train", lambda: driver.train("moody")):
            self.refused("wrong-state", lambda: driver.train("moody"))

    def test_deadline(self, driver: Driver) -> None:
        """A call that takes longer than its caller waits is a timeout."""
        row = {"mood": "slow", "seconds": 1.0}
        if not self.lacks(driver, "deadline", lambda: driver.predict("moody", row, timeout=0.2)):
            self.refused("timeout", lambda: driver.predict("moody", row, timeout=0.2))
        settled(driver)

    def test_overload(self, speak: Speak, token: str, driver: Driver) -> None:
        """Past the bound calls are refused at once; all others are answered."""
        row, crowd = {"mood": "slow", "seconds": 0.6}, 10
        drivers = [speak(token) for _ in range(crowd)]

        def call(each: Driver) -> str:
            try:
                return str(each.predict("moody", row)[0].prediction)
            except Refusal as refusal:
                return refusal.code

        with ThreadPoolExecutor(crowd) as pool:
            ends = Counter(pool.map(call, drivers))
        for each in drivers:
            each.close()
        assert set(ends) == {"slow", "overloaded"} and ends["slow"] >= 4, ends
        settled(driver)

    def test_tokens(self, speak: Speak, client: Client) -> None:
        """Without a token, or with one that lacks the scope, a call is refused and says so."""
        for code, token in (
            ("unauthorized", None),
            ("unauthorized", "ll_wrong"),
            ("forbidden", client.create_token(name := f"t{new_id()}", ["worker"])),
        ):
            with closing(speak(token)) as driver:
                self.refused(code, partial(driver.predict, "iris", SETOSA))
        client.revoke_token(name)

    def test_a_swap_in_the_middle(self, driver: Driver, client: Client) -> None:
        """While versions change, every call is answered by one of them, and soon by the new."""
        seen: Counter[int] = Counter()
        done = threading.Event()

        def swap() -> None:
            for target in (1, 2) * 3:
                if client.describe("iris")["champion"] != target:
                    client.promote("iris", target)
                time.sleep(0.15)
            done.set()

        thread = threading.Thread(target=swap)
        thread.start()
        while not done.is_set():
            many = driver.predict("iris", [SETOSA, SETOSA])
            assert {said.prediction for said in many} == {"setosa"}
            assert len({said.version for said in many}) == 1
            seen[many[0].version] += 1
        thread.join()
        assert set(seen) == {1, 2}, seen
        assert driver.predict("iris", SETOSA)[0].version == 2


def settled(driver: Driver) -> None:
    """Wait until the moody model answers again."""
    deadline = time.monotonic() + 20.0
    while True:
        try:
            assert driver.predict("moody", {"mood": "fine"})[0].prediction == "fine"
            return
        except Refusal:
            assert time.monotonic() < deadline
            time.sleep(0.05)
