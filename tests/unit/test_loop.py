"""The verbs over an installation inside this process: the whole loop, and every refusal."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression

from loopline import Every, Loopline
from loopline.access import Caller
from loopline.asks import Answered, Ask
from loopline.errors import (
    Forbidden,
    InvalidInput,
    LooplineError,
    ModelFailed,
    NotReady,
    Overloaded,
    TimedOut,
    UnknownModel,
    UnknownPrediction,
    UnknownVersion,
    WrongState,
)
from loopline.loop import Loop
from loopline.records import JobState


def line() -> pandas.DataFrame:
    """y = 2x, without noise."""
    x = numpy.arange(40.0)
    return pandas.DataFrame({"x": x, "y": 2 * x})


def kinds() -> pandas.DataFrame:
    """Two classes that x tells apart."""
    x = numpy.arange(60.0)
    return pandas.DataFrame({"x": x, "kind": numpy.where(x < 30, "low", "high")})


class Moody:
    """A class of somebody's: fails, sleeps or answers, as the row says."""

    def predict(self, X: Any) -> list[float]:
        values = [float(row[0]) for row in numpy.asarray(X)]
        if any(value == 666.0 for value in values):
            raise RuntimeError("the number of the beast")
        if any(value == 999.0 for value in values):
            time.sleep(3)
        return values


class X:
    """The input of `Moody`, declared."""

    x: float


MOODY = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """An installation with three models, trained."""
    app = Loopline(tmp_path_factory.mktemp("data"), max_queue=50)
    app.add("line", LinearRegression(), data=line, target="y")
    app.add("kinds", LogisticRegression(), data=kinds, target="kind")
    app.add("moody", Moody(), schema=MOODY)
    app.add("bare", LinearRegression(), schema=MOODY, target="y")
    with app:
        wait_for_first_versions(app.loop, "line", "kinds")
        yield app.loop


def wait_for_first_versions(loop: Loop, *models: str) -> None:
    """Wait for the first trainings."""
    for model in models:
        (job,) = loop.store.jobs(model=model)
        assert loop.job(job.id, wait=60)["state"] == "done", loop.job(job.id)
    loop.serving.refresh()


def test_the_whole_loop_once(tmp_path: Path) -> None:
    """Predict, tell the outcomes, retrain by itself, gate, swap, roll back."""
    app = Loopline(tmp_path, outcome_wait=20.0)
    app.add(
        "line",
        LinearRegression(),
        data=line,
        target="y",
        retrain=Every(outcomes=80, mode="auto", minimum=20),
    )
    with app:
        loop = app.loop
        wait_for_first_versions(loop, "line")
        xs = [float(x) for x in range(80)]
        answered = loop.predict("line", {"x": xs})
        told = [
            {"id": p.id, "outcome": 5.0 * x + 1 + (x % 3)}
            for p, x in zip(answered.predictions, xs, strict=True)
        ]
        counts = loop.outcome("line", told)
        assert counts["joined"] == 80
        deadline = time.monotonic() + 60
        while loop.store.aliases("line").champion != 2:
            assert time.monotonic() < deadline, loop.jobs()
            loop.doorbell.wait(0.1)
        (job, _) = loop.store.jobs(model="line")
        assert job.payload["k"] == 1 and job.result is not None and job.result["promoted"]
        loop.serving.refresh()
        assert loop.predict("line", {"x": 10}).version == 2
        decision = loop.decisions("line")[-1]
        assert (decision["verdict"], decision["candidate"], decision["champion"]) == (
            "promote",
            2,
            1,
        )
        assert decision["evidence"]["rows"] == 80
        assert loop.version("line", 2)["upto"] == 80
        back = loop.rollback("line")
        assert (back.verdict, back.candidate) == ("rollback", 1)
        answer = loop.predict("line", {"x": 10})
        assert (answer.version, answer.predictions[0].output) == (1, pytest.approx(20.0))
        scores = loop.scores("line")
        assert "coverage" in str(scores)


def test_a_prediction_can_be_read_back(loop: Loop) -> None:
    """By id with its input, its answer and its outcome; and by time."""
    before = time.time()
    answer = loop.predict("kinds", {"x": 3}, ids=["mine-1"])
    (made,) = answer.predictions
    assert (made.id, made.output) == ("mine-1", "low")
    assert loop.outcome("kinds", [{"id": "mine-1", "outcome": "low"}])["joined"] == 1
    back = loop.prediction("kinds", "mine-1")
    assert back["input"] == {"x": 3.0}
    assert back["outcome"]["value"] == "low"
    assert "mine-1" in {p["id"] for p in loop.predictions("kinds", since=before)}
    assert not list(loop.predictions("kinds", until=before - 3600))
    with pytest.raises(UnknownPrediction):
        loop.prediction("kinds", "nobody's")


def test_an_id_given_twice_is_answered_as_the_first_time(loop: Loop) -> None:
    """The first row stands, in the answer and in the log."""
    first = loop.predict("line", {"x": 1}, ids=["twice"]).predictions[0]
    deadline = time.monotonic() + 10
    while not loop.log.find("line.predictions", ["twice"]):
        assert time.monotonic() < deadline
    again = loop.predict("line", {"x": 2}, ids=["twice"]).predictions[0]
    assert again.output == pytest.approx(first.output)
    assert loop.prediction("line", "twice")["input"] == {"x": 1.0}


def test_versions_and_aliases_pick_who_answers(loop: Loop) -> None:
    """A named version answers; an unknown one is refused by name."""
    assert loop.predict("line", {"x": 1}, version=1).version == 1
    assert loop.predict("line", {"x": 1}, alias="champion").version == 1
    with pytest.raises(UnknownVersion):
        loop.predict("line", {"x": 1}, version=9)
    with pytest.raises(UnknownVersion):
        loop.predict("line", {"x": 1}, alias="challenger")
    with pytest.raises(InvalidInput):
        loop.predict("line", {"x": 1}, alias="winner")
    with pytest.raises(InvalidInput):
        loop.predict("line", {"x": 1}, alias="champion", version=1)


def test_every_refusal_has_its_own_error(loop: Loop) -> None:
    """Unknown, not ready, wrong state, invalid: nothing of it changes anything."""
    revision = loop.store.revision()
    with pytest.raises(UnknownModel, match="line"):
        loop.predict("nobody", {"x": 1})
    with pytest.raises(NotReady, match="train"):
        loop.predict("bare", {"x": 1})
    with pytest.raises(WrongState, match="no data yet"):
        loop.train("bare")
    with pytest.raises(WrongState, match="fit"):
        loop.train("moody")
    with pytest.raises(WrongState):
        loop.rollback("line")
    with pytest.raises(WrongState, match="already"):
        loop.promote("line", 1)
    with pytest.raises(UnknownVersion):
        loop.promote("line", 7)
    with pytest.raises(InvalidInput) as caught:
        loop.predict("line", {"x": 1}, ids=["a", "b"])
    assert caught.value.fields[0].pointer == "/ids"
    for ids in ([""], ["a" * 201], [7]):
        with pytest.raises(InvalidInput):
            loop.predict("line", {"x": 1}, ids=ids)  # type: ignore[arg-type]
    assert loop.store.revision() == revision


def test_bad_outcomes_are_all_named_and_none_is_taken(loop: Loop) -> None:
    """One wrong item refuses the call; the pointers say which and why."""
    id = loop.predict("line", {"x": 1}).predictions[0].id
    items = [
        {"id": id, "outcome": 2.0},
        {"id": "", "outcome": 1.0},
        {"id": "x", "outcome": "much"},
        {"id": "x", "outcome": 1.0, "at": "yesterday"},
        {"outcome": 1.0, "when": 3},
        "nonsense",
        {"id": "x"},
    ]
    with pytest.raises(InvalidInput) as caught:
        loop.outcome("line", items)
    pointers = {field.pointer for field in caught.value.fields}
    assert pointers == {"/1/id", "/2/outcome", "/3/at", "/4/id", "/4/when", "/5", "/6/outcome"}
    assert "outcome" not in loop.prediction("line", id)
    with pytest.raises(InvalidInput):
        loop.outcome("line", [])


def test_scopes_are_checked_at_the_verb(loop: Loop) -> None:
    """A caller with one scope can do that and nothing else."""
    reader = Caller(name="reader", scopes=frozenset({"predict"}))
    assert loop.predict("line", {"x": 1}, caller=reader).version == 1
    for act in (
        lambda: loop.outcome("line", [{"id": "a", "outcome": 1.0}], caller=reader),
        lambda: loop.learn("line", {"x": 1, "y": 2}, caller=reader),
        lambda: loop.train("line", caller=reader),
        lambda: loop.promote("line", 1, caller=reader),
        lambda: loop.rollback("line", caller=reader),
        lambda: loop.remove("line", caller=reader),
        lambda: loop.add("other", {"model": "linear"}, caller=reader),
    ):
        with pytest.raises(Forbidden):
            act()
    nobody = Caller(name="nobody", scopes=frozenset())
    with pytest.raises(Forbidden):
        loop.predict("line", {"x": 1}, caller=nobody)


def test_training_by_hand_promotes_and_can_be_waited_for(tmp_path: Path) -> None:
    """Without a policy the new version goes live; parameters reach the recipe."""
    app = Loopline(tmp_path).add("kinds", LogisticRegression(), data=kinds, target="kind")
    with app:
        loop = app.loop
        wait_for_first_versions(loop, "kinds")
        job = loop.train("kinds", parameters={"C": 0.5}, wait=60)
        assert job.state is JobState.DONE and job.result is not None
        assert job.result["version"] == 2 and job.result["promoted"]
        assert loop.version("kinds", 2)["parameters"]["C"] == 0.5
        failed = loop.train("kinds", parameters={"nonsense": 1}, wait=60)
        assert failed.state is JobState.FAILED and failed.error is not None
        assert failed.error["code"] == "invalid-input"
        assert "nonsense" in str(failed.error)
        assert loop.store.aliases("kinds").champion == 2


# Micro-batches on the event loop.


def ask(loop: Loop, value: Any, model: str = "line", seconds: float = 30.0) -> Ask:
    """A request with a deadline."""
    return Ask(model, value, deadline=time.monotonic() + seconds)


async def gather(loop: Loop, asks: list[Ask]) -> list[Answered | LooplineError]:
    """Submit all in one turn of the event loop; return each one's answer or error."""
    futures = [loop.serving.submit(one) for one in asks]
    done = await asyncio.gather(*futures, return_exceptions=True)
    return list(done)  # type: ignore[arg-type]


good = st.floats(-1e6, 1e6).map(lambda x: {"x": x})
bad = st.sampled_from([{"x": "abc"}, {}, {"x": None}, {"x": 1, "z": 2}, [], "text", 7, [[1, 2]]])
several = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4).map(lambda xs: {"x": xs})


@pytest.mark.parametrize("with_target", [True, False])
def test_a_declared_model_is_taught_from_nothing(tmp_path: Path, with_target: bool) -> None:
    """Without data, a declared input and the target's name are enough to learn and be trained."""
    properties = {name: {"type": "number"} for name in ("x", "y")[: 1 + with_target]}
    declared = {"type": "object", "properties": properties, "required": [*properties]}
    app = Loopline(tmp_path, store="memory:", log="memory:")
    with app.add("line", LinearRegression(), schema=declared, target="y"):
        taken = app.loop.learn("line", [{"x": float(x), "y": 1.0 + 2.0 * x} for x in range(5)])
        assert (taken["accepted"], taken["rows"]) == (5, 5)
        assert app.loop.train("line", wait=60).state is JobState.DONE
        assert app.loop.predict("line", {"x": 10.0}).predictions[0].output == pytest.approx(21.0)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(st.one_of(good, bad, several), min_size=1, max_size=20))
def test_each_caller_gets_exactly_its_own_answer(loop: Loop, values: list[Any]) -> None:
    """Answers are never mixed, a bad row fails only its own request, and batch equals single."""
    answers = asyncio.run(gather(loop, [ask(loop, value) for value in values]))
    for value, answer in zip(values, answers, strict=True):
        if isinstance(answer, LooplineError):
            assert isinstance(answer, InvalidInput)
            with pytest.raises(InvalidInput):
                loop.predict("line", value)
            continue
        wanted = value["x"] if isinstance(value["x"], list) else [value["x"]]
        outputs = [prediction.output for prediction in answer.predictions]
        assert outputs == pytest.approx([2 * x for x in wanted], abs=1e-6)
        assert answer.many == isinstance(value["x"], list)


def test_a_row_that_breaks_the_model_fails_alone(loop: Loop) -> None:
    """The batch is bisected: neighbours are answered, the culprit gets the model's own words."""
    asks = [ask(loop, {"x": x}, "moody") for x in (1, 666, 2, 3)]
    first, second, third, fourth = asyncio.run(gather(loop, asks))
    assert isinstance(second, ModelFailed)
    assert "RuntimeError" in second.detail and "beast" in second.detail
    for answer, x in ((first, 1.0), (third, 2.0), (fourth, 3.0)):
        assert isinstance(answer, Answered) and answer.predictions[0].output == x


def test_a_hung_call_times_out_alone_and_comes_back(loop: Loop) -> None:
    """Its caller gets `timeout`, its model is not ready meanwhile, other models go on."""

    async def story() -> None:
        late = loop.serving.submit(ask(loop, {"x": 999}, "moody", 0.3))
        with pytest.raises(TimedOut):
            await late
        with pytest.raises(NotReady, match="not come back"):
            loop.serving.submit(ask(loop, {"x": 1}, "moody"))
        assert (await loop.serving.submit(ask(loop, {"x": 4}))).predictions
        while True:
            try:
                answer = await loop.serving.submit(ask(loop, {"x": 5}, "moody"))
                break
            except NotReady:
                await asyncio.sleep(0.05)
        assert answer.predictions[0].output == 5.0

    asyncio.run(story())


def test_a_deadline_that_has_passed_is_honoured_before_the_model_is_called(loop: Loop) -> None:
    """No work is done for a caller who has gone."""
    (answer,) = asyncio.run(gather(loop, [ask(loop, {"x": 1}, seconds=-1.0)]))
    assert isinstance(answer, TimedOut)


def test_the_queue_is_bounded(loop: Loop) -> None:
    """One more than the bound is refused at once; the others are answered."""

    async def story() -> None:
        futures = [loop.serving.submit(ask(loop, {"x": n})) for n in range(50)]
        with pytest.raises(Overloaded):
            loop.serving.submit(ask(loop, {"x": 51}))
        answers = await asyncio.gather(*futures)
        assert [a.predictions[0].output for a in answers] == pytest.approx(
            [2.0 * n for n in range(50)]
        )

    asyncio.run(story())


def test_a_swap_in_the_middle_fails_nobody(tmp_path: Path) -> None:
    """Every answer comes whole from one version, and the version it says is the one it used."""
    app = Loopline(tmp_path).add("line", LinearRegression(), data=line, target="y")
    with app:
        loop = app.loop
        wait_for_first_versions(loop, "line")
        loop.learn("line", [{"x": float(x), "y": 5.0 * x} for x in range(2000)])
        stop = threading.Event()
        seen: list[tuple[int, float]] = []

        def client() -> None:
            while not stop.is_set():
                answer = loop.predict("line", {"x": 10.0})
                seen.append((answer.version, answer.predictions[0].output))

        thread = threading.Thread(target=client)
        thread.start()
        job = loop.train("line", wait=60)
        assert job.state is JobState.DONE
        for _ in range(4):
            loop.rollback("line")
        stop.set()
        thread.join()
        truth = {
            n: loop.predict("line", {"x": 10.0}, version=n).predictions[0].output for n in (1, 2)
        }
    assert {version for version, _ in seen} == {1, 2}
    assert truth[2] - truth[1] > 10
    assert all(output == truth[version] for version, output in seen)


def test_a_model_that_works_in_threads_of_its_own_leaves_the_event_loop(loop: Loop) -> None:
    """Its caller only waits, but the event loop would have to wait as well."""
    loaded = loop.serving.loaded("line")
    native, adopted = loaded.adopted, loaded.adopted.answer

    def slow(schema: Any, rows: Any) -> Any:
        def burn() -> None:
            began = time.thread_time()
            while time.thread_time() - began < 0.03:
                pass

        worker = threading.Thread(target=burn)
        worker.start()
        worker.join()
        return adopted(schema, rows)

    seconds = loaded.seconds
    native.answer = slow  # type: ignore[method-assign]
    try:
        for _ in range(3):
            loaded.call([(1.0,)])
        assert not loaded.inline
    finally:
        native.answer = adopted  # type: ignore[method-assign]
        loaded.seconds = seconds
