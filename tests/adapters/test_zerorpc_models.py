"""The models of a loop over ZeroRPC: the same answers, errors and log rows as over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from loopline.adapters.zerorpc_models import Service, create, tell
from loopline.errors import InvalidInput
from loopline.loop import Loop
from tests.adapters.speaking import FEATURES, SETOSA, VIRGINICA, Http, running
from tests.adapters.zerorpc_raw import Err, Raw, Served, client, served, wait_until

COLUMNS = {name: [SETOSA[name], VIRGINICA[name]] for name in FEATURES}


def serving(loop: Loop, **options: Any) -> Any:
    """The loop's models at an endpoint, for a while."""
    return served(Service(loop), tell=tell, **options)


@pytest.fixture(scope="module")
def shared(loop: Loop) -> Iterator[Served]:
    """A server of the shared loop."""
    with serving(loop) as running:
        yield running


@pytest.fixture
def raw(shared: Served) -> Iterator[Raw]:
    """A client of it."""
    with client(shared.endpoint) as raw:
        yield raw


def refused(raw: Raw, name: str, *args: Any) -> Err:
    """The error that a call ends with."""
    with pytest.raises(Err) as error:
        raw.ask(name, *args)
    return error.value


def test_a_row_answers_what_http_answers(raw: Raw, http: Http) -> None:
    """The same members, version and output; the id finds the logged row on either side."""
    told = raw.ask("iris_predict", SETOSA)
    same = http.post("/v1/models/iris/predict", SETOSA).json()
    assert told.keys() == same.keys()
    assert {**told, "id": 0} == {**same, "id": 0}
    row = http.get(f"/v1/models/iris/predictions/{told['id']}").json()
    assert (row["input"], row["prediction"], row["version"]) == (SETOSA, "setosa", 1)


def test_many_rows_answer_in_a_list_in_every_shape(raw: Raw) -> None:
    """Maps, lists in field order, columns, an envelope with ids, and JavaScript's typed arrays."""
    rows = [SETOSA, VIRGINICA]
    arrays = {
        name: msgpack.ExtType(0x18, np.array(values, "<f8").tobytes())
        for name, values in COLUMNS.items()
    }
    for given in (rows, [list(row.values()) for row in rows], COLUMNS, {"inputs": rows}, arrays):
        told = raw.ask("iris_predict", given)
        assert [each["prediction"] for each in told] == ["setosa", "virginica"]
    told = raw.ask("iris_predict", {"inputs": rows, "ids": ["zr-a", "zr-b"]})
    assert [each["id"] for each in told] == ["zr-a", "zr-b"]


def test_options_are_those_of_http(raw: Raw) -> None:
    """Ids, a version, an alias, a deadline and probabilities, in a last argument."""
    told = raw.ask("iris_predict", SETOSA, {"ids": ["zr-c"], "version": 1, "probabilities": True})
    assert (told["id"], told["version"]) == ("zr-c", 1)
    assert sum(told["probabilities"].values()) == pytest.approx(1.0)
    again = raw.ask("iris_predict", VIRGINICA, {"ids": ["zr-c"], "alias": "champion"})
    assert again["prediction"] == "setosa", "the first answer to an id stands"
    assert raw.ask("iris_predict", SETOSA, {"timeout": 5, "version": 1})["version"] == 1


@pytest.mark.parametrize(
    ("path", "body", "name", "args"),
    [
        (
            "iris/predict",
            {**SETOSA, "petal_width": "abc"},
            "iris_predict",
            [{**SETOSA, "petal_width": "abc"}],
        ),
        ("iris/predict", [SETOSA, {}], "iris_predict", [[SETOSA, {}]]),
        ("iris/predict?version=9", SETOSA, "iris_predict", [SETOSA, {"version": 9}]),
        ("iris/predict?alias=previous", SETOSA, "iris_predict", [SETOSA, {"alias": "previous"}]),
        ("nope/predict", SETOSA, "nope_predict", [SETOSA]),
        ("nope/learn", SETOSA, "nope_learn", [SETOSA]),
        ("moody/learn", {"a": 1}, "moody_learn", [{"a": 1}]),
        ("moody/train", {}, "moody_train", []),
        ("moody/predict", {"raise": True}, "moody_predict", [{"raise": True}]),
        ("sales/learn", [[1.0]], "sales_learn", [[[1.0]]]),
        ("iris/outcomes", [{"id": "zr"}], "iris_outcome", [[{"id": "zr"}]]),
        ("sales/predict", {"TV": 1e400}, "sales_predict", [{"TV": float("inf")}]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_those_of_http(
    raw: Raw, http: Http, path: str, body: Any, name: str, args: list[Any]
) -> None:
    """The same code, sentence and fields, with the class as name and no traceback."""
    sent = json.dumps(body).encode()
    answer = http.post(
        f"/v1/models/{path}", content=sent, headers={"content-type": "application/json"}
    )
    error = refused(raw, name, *args)
    told = answer.json()
    assert error.header["code"] == told["code"]
    assert error.name.lower() == told["code"].replace("-", "")
    assert told["detail"] in error.message
    assert error.header.get("errors", []) == told.get("errors", [])


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"version": "x"}, "?version"),
        ({"timeout": 0}, "?timeout"),
        ({"nonsense": 1}, ""),
        ([1], ""),
        ({"probabilities": 5}, "?probabilities"),
        ({"alias": "best"}, "?alias"),
        ({"ids": ["a", "b"]}, "/ids"),
    ],
)
def test_wrong_options_are_named(raw: Raw, options: Any, pointer: str) -> None:
    """Nothing is guessed."""
    error = refused(raw, "iris_predict", SETOSA, options)
    assert error.name == "InvalidInput"
    assert pointer in [each["pointer"] for each in error.header["errors"]]
    assert refused(raw, "moody_predict", {}, {"probabilities": True}).name == "InvalidInput"


def test_what_is_nested_without_end_is_refused_and_what_is_unknown_named(raw: Raw) -> None:
    """Deep lists are the caller's mistake; so is a method that no model has."""
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    assert refused(raw, "moody_predict", {"deep": deep}).name == "InvalidInput"
    assert refused(raw, "iris_fly", 1).name == "NameError"
    assert refused(raw, "_predict", 1).name == "NameError"
    assert refused(raw, "iris_predict").name == "TypeError"


def test_the_methods_are_what_the_models_can_do(raw: Raw) -> None:
    """A function can neither learn nor be trained; introspection names the model."""
    names = set(raw.ask("_zerorpc_list"))
    own = {name.removeprefix("iris_") for name in names if name.startswith("iris_")}
    assert own == {"predict", "predict_stream", "learn", "train", "outcome", "score"}
    moody = {name.removeprefix("moody_") for name in names if name.startswith("moody_")}
    assert moody == {"predict", "predict_stream", "outcome"}
    assert {"get_models", "get_model_metadata", "learn", "train", "predict"} <= names
    told = raw.ask("_zerorpc_inspect")["methods"]
    assert told["iris_predict"]["doc"].startswith("Predict with the Iris Model.")
    assert told["iris_predict"]["args"] == [
        {"name": "data"},
        {"name": "options", "default": None},
    ]
    assert told["iris_predict_stream"]["stream"] and not told["iris_predict"]["stream"]


def test_models_and_their_metadata(raw: Raw, http: Http) -> None:
    """By the names of services of this kind, and by ours."""
    found = {each["qualified_name"]: each for each in raw.ask("get_models")}
    assert found.keys() == {"iris", "sales", "moody"}
    assert found["iris"]["display_name"] == "Iris Model"
    told = raw.ask("get_model_metadata", "iris")
    same = http.get("/v1/models/iris").json()
    assert {name: told[name] for name in same} == same
    assert told["input_schema"] == same["schema"]
    assert told["output_schema"]["enum"] == ["setosa", "versicolor", "virginica"]
    assert refused(raw, "get_model_metadata", "nope").name == "UnknownModel"


def test_the_plain_verbs_are_those_of_the_first_model(raw: Raw) -> None:
    """A bare answer for one row, however it is written; a list for many."""
    assert raw.ask("predict", SETOSA) == "setosa"
    assert raw.ask("predict", {name: [value] for name, value in SETOSA.items()}) == "setosa"
    assert raw.ask("predict", [SETOSA, VIRGINICA]) == ["setosa", "virginica"]


def test_learning_scoring_and_outcomes(tmp_path: Path) -> None:
    """Rows in column order may be spelled as text in the plain `learn`, and nowhere else."""
    with running(tmp_path) as loop, serving(loop) as server, client(server.endpoint) as raw:
        row = [*SETOSA.values(), "setosa"]
        told = json.loads(raw.ask("learn", [str(each) for each in row]))
        assert told["sepal_length"]["count"] == 151
        assert json.loads(raw.ask("learn", row))["sepal_length"]["count"] == 152
        error = refused(raw, "learn", [*"abcd", "setosa"])
        assert error.name == "InvalidInput"
        assert {each["pointer"] for each in error.header["errors"]} == {f"/{i}" for i in range(4)}
        assert refused(raw, "learn", [1, 2]).name == "InvalidInput"
        assert refused(raw, "iris_learn", [str(each) for each in row]).name == "InvalidInput"
        told = raw.ask("iris_learn", [{**SETOSA, "species": "setosa"}])
        assert (told["accepted"], told["rows"]) == (1, 153)
        id = raw.ask("iris_predict", SETOSA)["id"]
        told = raw.ask("iris_outcome", {"id": id, "outcome": "setosa"})
        assert told["results"] == [{"id": id, "status": "joined"}]
        assert raw.ask("iris_score", [{**SETOSA, "species": "setosa"}])["metrics"]["accuracy"] == 1
        assert raw.ask("iris_train", None, 0)["state"] in ("queued", "running")


# Streams.


def test_a_stream_answers_each_row_in_order_as_it_is_asked_for(raw: Raw, loop: Loop) -> None:
    """The first answers come long before the last rows are predicted."""
    rows = [SETOSA, VIRGINICA] * 500
    before = loop.log.count("iris.predictions")
    id = raw.call("iris_predict_stream", rows, {"ids": [f"st-{n}" for n in range(1000)]})
    raw.go_on(id, "_zpc_more", [9])
    first = raw.collect(0.5)
    assert [event.args["id"] for event in first] == [f"st-{n}" for n in range(10)]
    assert loop.log.count("iris.predictions") - before <= 200
    raw.go_on(id, "_zpc_more", [2000])
    rest = [event.args for event in raw.collect(1.5) if event.name == "STREAM"]
    assert len(rest) == 990
    assert [each["prediction"] for each in rest] == ["setosa", "virginica"] * 495


def test_a_stream_with_a_bad_row_is_refused_as_a_whole(raw: Raw) -> None:
    """The place of the row is that in the request."""
    rows = [SETOSA] * 250 + [{**SETOSA, "petal_width": "abc"}]
    error = refused(raw, "iris_predict_stream", rows)
    assert error.header["errors"][0]["pointer"] == "/250/petal_width"
    assert refused(raw, "iris_predict_stream", SETOSA).name == "InvalidInput"
    assert refused(raw, "nope_predict_stream", [SETOSA]).name == "UnknownModel"


def test_a_stream_that_nobody_reads_any_more_is_cancelled(loop: Loop) -> None:
    """Its client's heartbeats have stopped, and so does the prediction of its rows."""
    with serving(loop, heartbeat=0.1) as server, client(server.endpoint) as raw:
        before = loop.log.count("iris.predictions")
        raw.call("iris_predict_stream", [SETOSA] * 5000)
        assert raw.receive() is not None
        wait_until(lambda: server.open_calls() == 0)
        assert loop.log.count("iris.predictions") - before <= 200
        assert raw.ask("iris_predict", SETOSA)["prediction"] == "setosa"


# Around it.


def test_calls_of_many_clients_are_answered_while_one_model_computes(
    shared: Served, tmp_path: Path
) -> None:
    """Another model's call holds up nobody, and has its heartbeats."""
    with client(shared.endpoint) as slow, client(shared.endpoint) as quick:
        id = slow.call("moody_predict", {"sleep": str(tmp_path / "go"), "say": "done"})
        slow.go_on(id, "_zpc_hb", [0])
        for _ in range(20):
            assert quick.ask("iris_predict", SETOSA)["prediction"] == "setosa"
        event = slow.receive()
        assert event is not None and event.name == "_zpc_hb"
        (tmp_path / "go").touch()
        assert slow.answer(id)["prediction"] == "done"


def test_concurrent_calls_each_get_their_own_answer(shared: Served) -> None:
    """Batched together, split to the right callers."""
    wrong: list[Any] = []

    def work(offset: int) -> None:
        with client(shared.endpoint) as raw:
            asked = {raw.call("sales_predict", {"TV": float(n)}): n for n in range(offset, 150, 3)}
            for id, n in asked.items():
                asked[id] = n
            for _ in asked:
                event = raw.receive()
                assert event is not None
                n = asked[event.header["response_to"]]
                if abs(event.args[0]["prediction"] - (7.0 + 0.05 * n)) > 0.5:
                    wrong.append((n, event.args))

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_models_come_and_go_while_it_runs(tmp_path: Path) -> None:
    """Methods follow the models; those of a model that has left say that it is unknown."""
    with running(tmp_path) as loop, serving(loop) as server, client(server.endpoint) as raw:
        assert raw.ask("sales_predict", {"TV": 50.0})["version"] == 1
        loop.remove("sales")
        assert "sales_predict" not in raw.ask("_zerorpc_list")
        assert refused(raw, "sales_predict", {"TV": 50.0}).name == "UnknownModel"
        loop.add("line", {"model": "linear"})
        assert "line_predict" in raw.ask("_zerorpc_list")
        assert refused(raw, "line_predict", {"x": 1}).header["code"] == "not-ready"


def test_a_token_comes_in_the_header(tmp_path: Path) -> None:
    """Where one is required, it is asked for, and its scopes count."""
    with running(tmp_path, token_required=True) as loop:
        good, poor = loop.access.issue("good", ["predict"]), loop.access.issue("poor", ["learn"])
        with serving(loop) as server, client(server.endpoint) as raw:
            for token in (None, "", 5, ["x"], "wrong"):
                with pytest.raises(Err) as error:
                    raw.ask("iris_predict", SETOSA, auth=token)
                assert error.value.header["code"] == "unauthorized"
            for _ in range(2):
                assert raw.ask("iris_predict", SETOSA, auth=good)["prediction"] == "setosa"
            assert len(raw.ask("get_models", auth=good)) == 3
            with pytest.raises(Err) as error:
                raw.ask("iris_predict", SETOSA, auth=poor)
            assert error.value.header["code"] == "forbidden"
            with pytest.raises(Err) as error:
                raw.ask("learn", [*SETOSA.values(), "setosa"], auth=good)
            assert error.value.header["code"] == "forbidden"


def test_what_goes_wrong_here_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """Unless debugging."""
    told = tell(KeyError("secret"))
    assert (told.name, told.header) == ("InternalError", {"code": "internal-error"})
    assert "secret" not in told.message and told.traceback is None
    assert "secret" in caplog.text
    assert "secret" in (tell(KeyError("secret"), debug=True).traceback or "")


def test_a_successor_listens_as_soon_as_its_predecessor_has_left(
    tmp_path: Path, free_port: int
) -> None:
    """Both belong to one installation; the endpoint changes hands without a failure to bind."""
    endpoint = f"tcp://127.0.0.1:{free_port}"

    async def main(loop: Loop, raw: Raw) -> None:
        ask = partial(asyncio.to_thread, raw.ask, "predict", SETOSA)
        first, second = create(loop), create(loop)
        await first.start()
        await second.start()
        assert await ask() == "setosa"
        await first.stop(1.0)
        assert await ask() == "setosa"
        third = create(loop)
        await third.start()
        await third.stop(1.0)
        assert await ask() == "setosa"
        await second.stop(1.0)

    with running(tmp_path, zerorpc=endpoint) as loop, client(endpoint) as raw:
        asyncio.run(main(loop, raw))


def test_an_endpoint_beyond_this_machine_needs_keys(tmp_path: Path) -> None:
    """Whether or not tokens are required, since they would travel in clear."""
    with running(tmp_path, zerorpc="tcp://0.0.0.0:4242", token_required=True) as loop:
        with pytest.raises(InvalidInput, match="zerorpc-keys"):
            create(loop)
