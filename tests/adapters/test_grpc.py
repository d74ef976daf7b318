"""Our own gRPC service, spoken to by real clients over real sockets."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import grpc
import grpc_tools
import pandas as pd
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from loopline import errors
from loopline.adapters import grpc_messages
from loopline.adapters.grpc import create
from loopline.adapters.status import GRPC
from loopline.errors import FieldError, InvalidInput, LooplineError
from loopline.opening import open_store
from loopline.records import ModelRecord
from loopline.registry import Definition
from loopline.schema import Field, Output, Schema
from loopline.testing.adapter import Refusal
from tests.adapters.calling import Served, calling
from tests.adapters.drivers.grpc_service import (
    GrpcService,
    key,
    refusal,
    refusals,
    varint,
)
from tests.adapters.speaking import SETOSA, VIRGINICA, iris
from tests.servers import Server

Ports = Callable[[int], list[int]]
ROOT = Path(__file__).parents[2]

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LooplineError) and kind is not LooplineError
]
APP = """
import json
from typing import Literal, TypedDict

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression, LogisticRegression

from loopline import Loopline

class Odd(TypedDict, total=False):
    number: float
    whole: int
    flag: bool
    note: str | None
    grade: Literal["a", "b"]
    class_: int | str

flowers = pd.read_csv("iris.csv")
names = list(flowers.columns[:4])
x = np.linspace(0.0, 1.0, 50)
app = Loopline()
app.add("iris", LogisticRegression(max_iter=1000).fit(flowers[names], flowers["species"]),
        data=flowers, target="species")
app.add("line", LinearRegression().fit(pd.DataFrame({"x": x}), 3 * x + 1),
        data=pd.DataFrame({"x": x, "y": 3 * x + 1}), target="y")
app.add("odd", lambda row: json.dumps(row, sort_keys=True), schema=Odd)
app.add("any_thing", lambda row: row)
app.add("unfitted", LinearRegression(), schema={"type": "object", "required": ["x"],
        "properties": {"x": {"type": "number"}}}, target="y")
"""
SCRIPT = """
import json, sys
import grpc
import loopline_pb2 as pb
import loopline_pb2_grpc as stubs

iris = stubs.IrisServiceStub(grpc.insecure_channel(sys.argv[1]))
row = pb.IrisRow(sepal_length=1.1, sepal_width=1.2, petal_length=1.4, petal_width=1.5)
one = iris.Predict(pb.IrisPredictRequest(row=row, probabilities=True), timeout=20)
zero = pb.IrisRow(sepal_length=5, sepal_width=0.0, petal_length=1.4, petal_width=1.5)
many = iris.PredictMany(pb.IrisPredictManyRequest(rows=[row, zero], ids=["a", "b"]), timeout=20)
told = iris.Outcome(pb.IrisOutcomeRequest(outcomes=[pb.IrisOutcome(id="a", outcome="setosa")]))
replies = list(iris.PredictStream(iter([pb.IrisPredictRequest(row=row)] * 3)))
print(json.dumps([one.prediction, sorted(one.probabilities), [p.id for p in many.predictions],
                  [r.status for r in told.results], [r.prediction.prediction for r in replies]]))
"""


def proto(folder: Path, text: str, *outputs: str) -> int:
    """Compile the text of a `.proto` file with the official compiler."""
    folder.mkdir(exist_ok=True)
    (folder / "loopline.proto").write_text(text, "utf-8")
    google = Path(grpc_tools.__file__).parent / "_proto"
    paths = [f"-I{folder}", f"-I{google}"]
    code: int = protoc.main(["protoc", *paths, *outputs, str(folder / "loopline.proto")])
    return code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, free_ports: Ports) -> Iterator[Server]:
    """A real server with gRPC beside HTTP."""
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "app.py").write_text(APP)
    iris().to_csv(folder / "iris.csv", index=False)
    port, speaks = free_ports(2)
    served = Server(folder, port, "app.py", "--workers", "1", "--grpc", f"127.0.0.1:{speaks}")
    served.start()
    yield served
    code = served.stop()
    assert code == 0, served.log()
    assert "Traceback" not in served.log()


@pytest.fixture(scope="module")
def address(server: Server) -> str:
    """Where the server speaks gRPC."""
    return server.command[server.command.index("--grpc") + 1]


@pytest.fixture
def client(address: str) -> Iterator[GrpcService]:
    """A client of the real server."""
    found = GrpcService(address)
    yield found
    found.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, free_ports: Ports) -> Iterator[Served]:
    """A server of this process."""
    port = free_ports(1)[0]
    with calling(tmp_path_factory.mktemp("served"), port, max_body=100_000) as found:
        yield found


@pytest.fixture
def near(served: Served) -> Iterator[GrpcService]:
    """A client of the server of this process."""
    found = GrpcService(served.address)
    yield found
    found.close()


# The contract.


def test_a_generated_client_works(server: Server, address: str, tmp_path: Path) -> None:
    """What the official compiler makes of our text calls a real server."""
    store = open_store(f"sqlite:///{server.data}/store.db")
    text = grpc_messages.render_proto(store.models())
    store.close()
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    assert proto(tmp_path, text, *outputs) == 0
    (tmp_path / "client.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "client.py"), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    one, classes, ids, statuses, streamed = json.loads(done.stdout)
    assert one == "setosa" and classes == ["setosa", "versicolor", "virginica"]
    assert (ids, statuses, streamed) == (["a", "b"], ["joined"], ["setosa"] * 3)


REFLECT = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True) | st.sampled_from(
    "iris iris_row iris_predict iris_service outcome problem train a_b a__b ab a_1 a1".split()
)
COLUMNS = st.text(max_size=8) | st.sampled_from(
    ["a_b", "aB", "A B", "_a", "a", "größe", "1st", "class", "message", "[x]", "\0", '"', "\\"]
)
FIELDS = st.builds(
    Field,
    name=COLUMNS,
    kind=st.sampled_from(["number", "integer", "boolean", "text", "category", "any"]),
    nullable=st.booleans(),
    categories=st.sampled_from([None, ("a", "b"), (1, "b"), (True, False), (1, 2.5)]),
)


@st.composite
def records(draw: st.DrawFn) -> ModelRecord:
    """Models of any name, with fields of any name."""
    fields = draw(st.lists(FIELDS, max_size=5, unique_by=lambda field: field.name))
    output = draw(st.none() | st.just(Output(name="\n target", kind="number")))
    schema = Schema(fields=tuple(fields), output=output, open=draw(st.booleans()) and not fields)
    told = json.loads(grpc_messages.msgspec.json.encode(schema))
    return ModelRecord(name=draw(NAMES), schema=told, capabilities=("predict",))


@settings(max_examples=30, deadline=None)
@given(models=st.lists(records(), max_size=4, unique_by=lambda record: record.name))
def test_the_text_and_the_running_descriptors_are_the_same(
    models: list[ModelRecord], session_dir: Path
) -> None:
    """For models and columns of any name the text compiles, into what the server runs with."""
    folder = session_dir / "contract"
    out = folder / "set.pb"
    text = grpc_messages.render_proto(models)
    assert proto(folder, text, f"--descriptor_set_out={out}") == 0, text
    (compiled,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    grpc_messages.pool_of(compiled)
    own = grpc_messages.describe(models)
    grpc_messages.pool_of(own)
    assert shape(compiled) == shape(own)


def shape(file: descriptor_pb2.FileDescriptorProto) -> Any:
    """All that matters of a file, with the JSON names that go without saying."""
    pool = grpc_messages.pool_of(file)
    messages = {
        name: [
            (f.name, f.number, f.type, f.json_name, f.has_presence, f.message_type is None)
            for f in pool.FindMessageTypeByName(f"{file.package}.{name}").fields
        ]
        for name in (each.name for each in file.message_type)
    }
    services = {
        service.name: [
            (m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming)
            for m in service.method
        ]
        for service in file.service
    }
    return messages, services


@given(names=st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_a_service_tells_its_model(names: list[str]) -> None:
    """No two models share a service, and none's is taken for another's."""
    one, two = map(grpc_messages.service_of, names)
    assert one != two
    assert grpc_messages.model_of(one) == names[0]


@given(service=st.text() | st.from_regex(r"loopline\.v1\.\w*Service", fullmatch=True))
def test_what_is_no_service_has_no_model(service: str) -> None:
    """Any text can be asked for; only what `service_of` gives is a model's."""
    model = grpc_messages.model_of(service)
    assert model is None or grpc_messages.service_of(model) == service


# Values.

ROWS: list[dict[str, Any]] = [
    {"number": 0.0, "whole": 0, "flag": False, "note": "", "grade": "a", "class_": 0},
    {"number": 5, "whole": 2**63 - 1, "flag": True, "note": "größe 🌸 \0", "grade": "b"},
    {"number": -1e300, "whole": -(2**63), "note": None, "class_": "x"},
    {"class_": None} | {"note": "only"},
    {},
]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_values_arrive_as_over_http(server: Server, client: GrpcService, row: Any) -> None:
    """Zero, false, empty, absent, null, unicode and large whole numbers are what they are."""
    row = {name: value for name, value in row.items() if name == "note" or value is not None}
    (said,) = client.predict("odd", row)
    assert said.prediction == server.post("/v1/models/odd/predict", row)["prediction"]


def test_rows_without_a_schema_are_any_object(server: Server, client: GrpcService) -> None:
    """A model that takes anything gets a Struct, and answers with a Value."""
    row = {"a": [1, 2.5, None, {"b": "ü"}], "c": True, "d": {}}
    for each in (row, {"inputs": [row, row]}, {}):
        (said,) = client.predict("any_thing", each)
        (told,) = server.post("/v1/models/any_thing/predict", [each])["predictions"]
        assert said.prediction == told["prediction"]


@pytest.mark.parametrize(
    "row",
    [
        {"petal_width": "abc"},
        {"petal_width": float("nan")},
        {"petal_width": float("inf")},
        {},
    ],
    ids=str,
)
def test_what_is_wrong_is_told_as_over_http(
    server: Server, client: GrpcService, row: dict[str, Any]
) -> None:
    """The code, the sentence and the pointers of a refusal are those of HTTP."""
    wrong = {name: SETOSA[name] for name in list(SETOSA)[:3]} | row
    with pytest.raises(Refusal) as refused:
        client.predict("iris", wrong)
    body = json.dumps(wrong).encode()
    told = server.client.post("/v1/models/iris/predict", content=body).json()
    assert refused.value.code == told["code"] == "invalid-input"
    assert refused.value.detail == told["detail"]
    assert refused.value.pointers == tuple(each["pointer"] for each in told["errors"])
    with pytest.raises(Refusal) as refused:
        client.predict("iris", [SETOSA, wrong])
    assert refused.value.pointers == tuple(f"/1{each['pointer']}" for each in told["errors"])


def test_a_field_of_another_contract_is_named(client: GrpcService) -> None:
    """Who was generated from an older text hears of the field that is gone."""
    data = client.request("iris", SETOSA).row.SerializeToString() + key(99, 0) + varint(1)
    request = key(1, 2) + varint(len(data)) + data
    with pytest.raises(Refusal, match="is not a field of this model") as refused:
        client.call("iris", "Predict", request)
    assert refused.value.pointers == ("/#99",)


def test_ids_and_versions_are_those_of_http(server: Server, client: GrpcService) -> None:
    """A given id keeps its first answer; a version can be named; both protocols know both."""
    (said,) = client.predict("iris", SETOSA, ids=["mine ü"], version=1)
    assert said == ("mine ü", "setosa", 1)
    found = server.get("/v1/models/iris/predictions/mine%20%C3%BC")
    assert found["input"] == SETOSA and found["prediction"] == "setosa"
    (again,) = client.predict("iris", [VIRGINICA], ids=["mine ü"])
    assert again.prediction == "setosa"
    for wrong in ({"version": 99}, {"ids": ["a", "a"]}, {"ids": [""]}):
        with pytest.raises(Refusal) as refused:
            client.predict("iris", [SETOSA, SETOSA], **wrong)
        assert refused.value.code == ("unknown-version" if "version" in wrong else "invalid-input")


def test_an_alias_and_probabilities_can_be_asked_for(client: GrpcService) -> None:
    """The champion by its alias, with probabilities by class; a regression has none."""
    asked = client.request("iris", SETOSA, alias="champion", probabilities=True)
    chances = client.call("iris", "Predict", asked).probabilities
    assert sum(chances.values()) == pytest.approx(1.0) and max(chances, key=chances.get) == "setosa"
    for model, row, options, code in [
        ("line", {"x": 1.0}, {"probabilities": True}, "invalid-input"),
        ("iris", SETOSA, {"alias": "nobody"}, "invalid-input"),
        ("iris", SETOSA, {"alias": "challenger"}, "unknown-version"),
        ("unfitted", {"x": 1.0}, {}, "not-ready"),
    ]:
        with pytest.raises(Refusal) as refused:
            client.call(model, "Predict", client.request(model, row, **options))
        assert refused.value.code == code


# The other verbs.


def test_the_loop_closes(server: Server, client: GrpcService) -> None:
    """Predict, outcome, learn, score, train: the same counts and statuses as over HTTP."""
    (said,) = client.predict("line", {"x": 0.5})
    assert said.prediction == pytest.approx(2.5)
    outcomes = [{"id": said.id, "outcome": 2.5, "at": 1.5e9}, {"id": "early", "outcome": 0.0}]
    assert client.outcome("line", outcomes) == ["joined", "waiting"]
    assert client.outcome("line", outcomes[:1]) == ["duplicate"]
    assert client.learn("line", [{"x": 0.0, "y": 1.0}, {"x": 2.0, "y": 7}]) == 2
    before = server.get("/v1/models/line")["champion"]
    assert client.train("line") == server.get("/v1/models/line")["champion"] == before + 1
    _, takes, _ = client.method("line", "Score")
    scored = client.call("line", "Score", takes(rows=client.rows(takes, [{"x": 0.0, "y": 1.0}])))
    assert (scored.rows, scored.version, scored.on) == (1, before + 1, "given rows")
    assert client.call("line", "Score", takes()).rows > 0
    told = client.describe("line")
    assert told == {"name": "line", "version": before + 1, "inputs": ["x"]}


@pytest.mark.parametrize(
    ("method", "rows"),
    [("learn", [{"x": 1.0}]), ("learn", []), ("outcome", [{"id": "a"}]), ("outcome", [{}])],
    ids=str,
)
def test_a_bad_row_changes_nothing(client: GrpcService, method: str, rows: Any) -> None:
    """What is missing is named, and no row is taken."""
    with pytest.raises(Refusal) as refused:
        getattr(client, method)("line", rows)
    assert refused.value.code == "invalid-input"


def test_a_model_has_the_methods_that_it_can_do(client: GrpcService) -> None:
    """The contract has no others; they are told from what no model can do."""
    assert client.method("odd", "Learn")[1] is None
    for name in ("Learn", "Score", "Train", "Nonsense"):
        with pytest.raises(Refusal) as refused:
            client.call("odd", name, b"")
        assert refused.value.code == ("UNIMPLEMENTED" if name == "Nonsense" else "wrong-state")
    assert client.outcome("odd", [{"id": "x", "outcome": [1, "a"]}]) == ["waiting"]


# Streams.


def test_the_first_answers_come_before_the_last_row_is_read(client: GrpcService) -> None:
    """5,000 rows, in order; the stream is not gathered first."""
    seen: list[int] = []
    heard = threading.Event()

    def rows() -> Iterator[dict[str, float]]:
        for number in range(5_000):
            if number == 4_999:
                assert heard.wait(60)
            yield {"x": float(number)}

    for said in client.stream("line", rows()):
        heard.set()
        seen.append(round((said.prediction - 1) / 3))
    assert seen == list(range(5_000))


def test_a_bad_row_does_not_end_a_stream(client: GrpcService) -> None:
    """Its place has its problem, and the others have their answers."""
    path, _, gives = client.method("line", "PredictStream")
    invoke = client.channel.stream_stream(path, None, gives.FromString)
    good = client.request("line", {"x": 0.0}).SerializeToString()
    bad = client.request("line", {}).SerializeToString()
    replies = list(invoke(iter([good, bad, b"\xff garbage", good]), timeout=30))
    assert [each.WhichOneof("result") for each in replies] == [
        *("prediction", "problem", "problem", "prediction")
    ]
    assert [(e.pointer, e.detail) for e in replies[1].problem.errors] == [("/x", "is required")]
    assert [each.problem.code for each in replies[1:3]] == ["invalid-input", "unreadable"]


def test_a_stream_can_be_left(served: Served, near: GrpcService) -> None:
    """Who hangs up in the middle of a stream leaves nothing behind."""
    for _ in range(3):
        stream = near.stream("sales", ({"TV": 1.0} for _ in iter(int, 1)))
        assert [next(stream).prediction for _ in range(3)]
        stream.close()
    assert until(lambda: not served.server._readers)
    assert near.predict("sales", {"TV": 1.0})


ENDLESS = """
import sys
import grpc
from tests.adapters.drivers.grpc_service import GrpcService
for said in GrpcService(sys.argv[1]).stream("sales", ({"TV": 1.0} for _ in iter(int, 1))):
    print(said.id, flush=True)
"""


def test_a_client_that_dies_leaves_nothing_behind(served: Served, near: GrpcService) -> None:
    """A process killed in the middle of its stream takes its tasks and its queue with it."""
    command = [sys.executable, "-c", ENDLESS, served.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert served.server._readers
        process.kill()
    assert until(lambda: not served.server._readers)
    assert until(lambda: not served.loop.serving.service("sales").queue)
    assert near.predict("sales", {"TV": 1.0})


# Time.


def test_a_deadline_is_kept(near: GrpcService, tmp_path: Path) -> None:
    """A call ends at its own deadline, while the model is still at it; others go on."""
    try:
        with pytest.raises(Refusal) as refused:
            near.predict("moody", {"sleep": str(tmp_path / "go")}, timeout=0.3)
        assert refused.value.code == "timeout"
        assert near.predict("sales", {"TV": 10.0})
    finally:
        (tmp_path / "go").touch()
    assert until(lambda: near.predict("moody", {"say": "back"})[0].prediction == "back")


def until(check: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something becomes true in time; a refusal means not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if check():
                return True
        except (Refusal, AssertionError):
            pass
        time.sleep(0.02)
    return False


def test_the_settings_deadline_holds_for_calls_without_one(tmp_path: Path, free_port: int) -> None:
    """A call without a deadline gets the server's."""
    with calling(tmp_path, free_port, timeout=0.2) as served:
        client = GrpcService(served.address)
        path, _, _ = client.method("moody", "Predict")
        asked = client.request("moody", {"sleep": str(tmp_path / "go")}).SerializeToString()
        with pytest.raises(grpc.RpcError) as failed:
            client.channel.unary_unary(path)(asked)
        assert refusal(failed.value).code == "timeout"
        (tmp_path / "go").touch()
        client.close()


def test_a_cancelled_call_frees_its_place(
    served: Served, near: GrpcService, tmp_path: Path
) -> None:
    """While the model sleeps, calls that wait for it can be cancelled; nobody waits then."""
    path, _, gives = near.method("moody", "Predict")
    invoke = near.channel.unary_unary(path, lambda m: m.SerializeToString(), gives.FromString)
    asked = near.request("moody", {"sleep": str(tmp_path / "go")})
    service = served.loop.serving.service("moody")
    try:
        calls = [invoke.future(asked)]
        assert until(lambda: service.running > 0)
        calls += [invoke.future(asked) for _ in range(20)]
        assert until(lambda: len(service.queue) == 20)
        for call in calls:
            call.cancel()
        assert until(lambda: all(waiter.gone for waiter in service.queue))
    finally:
        (tmp_path / "go").touch()
    assert near.predict("moody", {"say": "on"})[0].prediction == "on"
    assert until(lambda: not service.queue and not service.running)


# Who calls.


def test_tokens_are_asked_for(tmp_path: Path, free_port: int) -> None:
    """No token, a wrong one, one without the scope, and one that may."""
    with calling(tmp_path, free_port, token_required=True) as served:
        texts = {scope: served.loop.access.issue(scope, [scope]) for scope in ("predict", "learn")}
        teller = GrpcService(served.address, texts["predict"])
        request = key(1, 2) + varint(9) + key(1, 1) + struct.pack("<d", 1.0)
        for token, code in [
            (None, "unauthorized"),
            ("ll_wrong", "unauthorized"),
            (texts["learn"], "forbidden"),
        ]:
            client = GrpcService(served.address, token)
            with pytest.raises(Refusal) as refused:
                client.call("sales", "Predict", request, described=False)
            assert refused.value.code == code
            if code == "unauthorized":
                for method in ("loopline.v1.SalesService/PredictStream", REFLECT):
                    stream = client.channel.stream_stream(f"/{method}")
                    with pytest.raises(Refusal) as refused, refusals():
                        list(stream(iter([request])))
                    assert refused.value.code == code
            client.close()
        assert teller.predict("sales", {"TV": 1.0})
        with pytest.raises(Refusal) as refused:
            teller.learn("sales", [{"TV": 1.0, "Sales": 1.0}])
        assert refused.value.code == "forbidden"
        served.loop.access.revoke("predict")
        with pytest.raises(Refusal) as refused:
            teller.predict("sales", {"TV": 1.0})
        assert refused.value.code == "unauthorized"
        teller.close()


@pytest.mark.parametrize(
    ("address", "options", "good"),
    [
        ("127.0.0.1:1", {}, True),
        ("localhost:65535", {}, True),
        ("[::1]:8002", {}, True),
        ("0.0.0.0:8002", {}, False),
        ("0.0.0.0:8002", {"token_required": True}, True),
        ("0.0.0.0:8002", {"insecure": True}, True),
        ("8002", {}, False),
        ("127.0.0.1:0", {}, False),
        ("127.0.0.1:70000", {}, False),
        ("127.0.0.1:http", {}, False),
    ],
)
def test_an_address_has_to_be_safe(
    served: Served, address: str, options: dict[str, Any], good: bool
) -> None:
    """Beyond loopback a token is required, or somebody says that none is meant."""
    from msgspec.structs import replace

    loop = served.loop
    before = loop.settings
    loop.settings = replace(before, grpc=address, **options)
    try:
        if good:
            create(loop)
        else:
            with pytest.raises(InvalidInput):
                create(loop)
    finally:
        loop.settings = before


# Errors.


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_status_and_details(kind: type[LooplineError]) -> None:
    """Code, sentence, fields and waiting time are there for programs."""
    error = kind("größe", fields=[FieldError("/a/0", "is odd")], retry_after=1.5)
    found = grpc_messages.status(GRPC[error.code], error, {"instance": "x"})
    assert found.code == grpc.StatusCode[GRPC[error.code]].value[0]
    assert found.message == "größe"
    info, wait, request = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.BadRequest(),
    )
    for message, packed in zip((info, wait, request), found.details, strict=True):
        assert packed.Unpack(message)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        *(error.code, "loopline"),
        {"instance": "x"},
    )
    assert wait.retry_delay.ToMilliseconds() == 1500
    assert [(e.field, e.description) for e in request.field_violations] == [("/a/0", "is odd")]


def test_many_complaints_fit_into_the_headers(client: GrpcService) -> None:
    """A hundred wrong rows with long sentences are cut short, not lost."""
    with pytest.raises(Refusal) as refused:
        client.predict("odd", [{"grade": "ü" * 39} for _ in range(100)])
    assert refused.value.code == "invalid-input"
    assert 5 < len(refused.value.pointers) <= 100 and refused.value.pointers[0] == "/0/grade"


def test_a_model_that_raises_tells_no_secrets(served: Served, near: GrpcService) -> None:
    """Its own type and message are told, the traceback goes to the log."""
    with pytest.raises(Refusal, match="ZeroDivisionError") as refused:
        near.predict("moody", {"raise": True})
    assert refused.value.code == "model-failed" and "Traceback" not in refused.value.detail


def test_our_own_mistakes_are_logged_and_not_told(
    served: Served, near: GrpcService, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Whatever goes wrong here is internal, and has an id that the log has too."""

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("the secret")

    monkeypatch.setattr(served.loop.serving, "enqueue", broken)
    path, _, _ = near.method("sales", "Predict")
    with pytest.raises(grpc.RpcError) as failed:
        near.channel.unary_unary(path)(near.request("sales", {"TV": 1.0}).SerializeToString())
    error: Any = failed.value
    assert error.code() == grpc.StatusCode.INTERNAL and "secret" not in error.details()
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(error).details[0].Unpack(info)
    assert info.metadata["instance"] in caplog.text and "traceback" not in info.metadata


def test_unknown_names(client: GrpcService) -> None:
    """A model that is not there is not found; a service that is none is unimplemented."""
    with pytest.raises(Refusal, match="there is no model 'nobody'") as refused:
        client.predict("nobody", {"x": 1})
    assert refused.value.code == "unknown-model"
    for path in ("/loopline.v1.Nobody/Predict", "/x/y", "/loopline.v1.irisService/Predict"):
        with pytest.raises(grpc.RpcError) as failed:
            client.channel.unary_unary(path)(b"")
        assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_get_an_answer_or_a_refusal(served: Served, data: bytes) -> None:
    """Whatever is sent as a message, the caller's mistake is the caller's."""
    client = GrpcService(served.address)
    try:
        for model, name in [("sales", "Predict"), ("iris", "PredictMany"), ("iris", "Learn")]:
            with pytest.raises(Refusal) as refused:
                client.call(model, name, data or b"\xff")
            assert refused.value.code in ("unreadable", "invalid-input", "unknown-version")
    finally:
        client.close()


def test_garbage_on_the_port_does_no_harm(address: str, client: GrpcService) -> None:
    """HTTP/1, random bytes, half a preface, a hang-up: the next call is answered."""
    host, _, port = address.rpartition(":")
    for junk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4000), b"PRI * HTTP/2.0\r\n\r\nSM", b""):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(junk)
            if junk != b"":
                sock.shutdown(socket.SHUT_WR)
    assert client.predict("iris", SETOSA)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip], ids=str)
def test_a_message_beyond_the_limit_is_refused(
    served: Served, near: GrpcService, compression: Any
) -> None:
    """Compressed or not, what is larger than `max_body` is not taken in."""
    path, _, _ = near.method("moody", "Predict")
    data = near.request("moody", {"a": "x" * 300_000}).SerializeToString()
    with pytest.raises(grpc.RpcError) as failed:
        near.channel.unary_unary(path)(data, compression=compression, timeout=20)
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert near.predict("sales", {"TV": 1.0})


def test_overload_is_shed_at_once(tmp_path: Path, free_port: int) -> None:
    """Past the bound a call is told to come back, and when."""
    with calling(tmp_path, free_port, max_queue=2) as served:
        client = GrpcService(served.address)
        path, _, _ = client.method("moody", "Predict")
        invoke = client.channel.unary_unary(path, lambda message: message.SerializeToString())
        asked = client.request("moody", {"sleep": str(tmp_path / "go")})
        service = served.loop.serving.service("moody")
        first = invoke.future(asked)
        assert until(lambda: service.running > 0)
        calls = [invoke.future(asked) for _ in range(6)]
        assert until(lambda: sum(call.done() for call in calls) == 4)
        shed: Any = next(call for call in calls if call.done())
        assert shed.exception().code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        wait = error_details_pb2.RetryInfo()
        assert any(each.Unpack(wait) for each in rpc_status.from_call(shed).details)
        (tmp_path / "go").touch()
        assert first.result(20) and sum(call.exception() is None for call in calls) == 2
        client.close()


# Health, reflection, coming and going.


def test_health(address: str, client: GrpcService) -> None:
    """A probe of the whole server, and of each service by its name."""
    stub = health_pb2_grpc.HealthStub(client.channel)

    def state(service: str) -> str:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    assert state("") == "NOT_SERVING", "one model is not fitted"
    assert state("loopline.v1.UnfittedService") == "NOT_SERVING"
    assert state("loopline.v1.IrisService") == "SERVING"
    assert state("grpc.health.v1.Health") == "SERVING"
    with pytest.raises(grpc.RpcError) as failed:
        state("loopline.v1.NobodyService")
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND


def test_models_come_and_go_while_running(served: Served, near: GrpcService) -> None:
    """Health watched, reflection, contract and calls follow, with no restart."""

    def register(schema: Any) -> None:
        definition = Definition(name="fresh_one", model=lambda row: len(row), schema=schema)
        served.loop.registry.register(definition)
        served.loop.serving.refresh()

    states = health_pb2.HealthCheckResponse
    stub = health_pb2_grpc.HealthStub(near.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="loopline.v1.FreshOneService"))
    assert next(watch).status == states.SERVICE_UNKNOWN
    register(TypedDict("Old", {"größe": float, "gone": float}))
    assert next(watch).status == states.SERVING
    old = near.request("fresh_one", {"größe": 4.0, "gone": 0.0})
    assert near.call("fresh_one", "Predict", old).id
    register(TypedDict("New", {"größe": float, "name": str}))
    with pytest.raises(Refusal, match="is not text") as refused:
        near.call("fresh_one", "Predict", old)
    assert refused.value.pointers == ("/name",)
    fresh = GrpcService(served.address)
    assert fresh.describe("fresh_one")["inputs"] == ["größe", "name"]
    assert fresh.predict("fresh_one", {"größe": 4.0, "name": "ü"})
    served.loop.remove("fresh_one")
    assert next(watch).status == states.SERVICE_UNKNOWN
    watch.cancel()
    with pytest.raises(Refusal) as refused:
        near.call("fresh_one", "Predict", old)
    assert refused.value.code == "unknown-model"
    fresh.close()


def test_a_swap_under_load_fails_no_call(served: Served, near: GrpcService) -> None:
    """Calls and a stream go on while versions are swapped, and each is answered by one of them."""
    x = pd.DataFrame({"x": [0.0, 1.0]})
    for slope in (1.0, 2.0):
        fitted = LinearRegression().fit(x, slope * x["x"])
        table = Definition(name="swapped", model=fitted, data=x.assign(y=0.5), target="y")
        served.loop.registry.register(table)
        served.loop.serving.refresh()
    stop = threading.Event()
    seen: list[tuple[int, float]] = []

    def ask() -> None:
        own = GrpcService(served.address)
        while not stop.is_set():
            (said,) = own.predict("swapped", {"x": 1.0})
            seen.append((said.version, round(said.prediction)))
        own.close()

    def rows() -> Iterator[Any]:
        while not stop.is_set():
            yield {"x": 1.0}
            time.sleep(0.01)

    def stream() -> list[tuple[int, float]]:
        return [(said.version, round(said.prediction)) for said in near.stream("swapped", rows())]

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        streamed = pool.submit(stream)
        try:
            for wanted in (1, 2, 1, 2):
                served.loop.promote("swapped", wanted)
                assert until(lambda wanted=wanted: bool(seen) and seen[-1][0] == wanted)
        finally:
            stop.set()
        for each in asking:
            each.result(30)
    assert set(seen) | set(streamed.result(30)) == {(1, 1), (2, 2)}


def test_a_leaving_server_says_so(tmp_path: Path, free_port: int) -> None:
    """What was begun is answered, idle streams and watches end, and new calls find nobody."""
    with calling(tmp_path, free_port) as served:
        client = GrpcService(served.address)
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
        states = [next(watch).status]
        hold = threading.Event()

        def rows() -> Iterator[Any]:
            yield {"TV": 1.0}
            hold.wait(30)

        stream = client.stream("sales", rows())
        assert next(stream)
        path, _, _ = client.method("moody", "Predict")
        invoke = client.channel.unary_unary(path, lambda message: message.SerializeToString())
        begun = invoke.future(client.request("moody", {"sleep": str(tmp_path / "go")}))
        assert until(lambda: served.loop.serving.service("moody").running > 0)
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(served.stop, 20.0)
            with pytest.raises(Refusal, match="leaving") as refused:
                next(stream)
            assert refused.value.code == "unavailable"
            states += [each.status for each in watch]
            assert states[-1] == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not begun.done()
            (tmp_path / "go").touch()
            assert begun.result(20)
            stopping.result(30)
        hold.set()
        client.close()


def test_replicas_share_the_port(tmp_path: Path, free_ports: Ports) -> None:
    """Every replica answers on the one port, and an address in use stops the server."""
    (tmp_path / "app.py").write_text(
        "from loopline import Loopline\napp = Loopline()\nimport os\n"
        "app.add('who', lambda row: os.getpid())\n"
    )
    port, speaks = free_ports(2)
    server = Server(
        *(tmp_path, port, "app.py", "--workers", "0", "--processes", "2"),
        *("--grpc", f"127.0.0.1:{speaks}"),
    )
    server.start("/readyz")
    try:
        seen: set[int] = set()

        def ask() -> bool:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{speaks}", options) as channel:
                client = GrpcService(f"127.0.0.1:{speaks}")
                client.channel.close()
                client.channel = channel
                seen.add(int(client.predict("who", {})[0].prediction))
            return len(seen) == 2

        assert until(ask)
        assert seen == {server.pid("replica-0"), server.pid("replica-1")}
    finally:
        assert server.stop() == 0


def test_without_the_extra_its_pip_line_is_told() -> None:
    """Who asks for gRPC and has not installed it is told how to."""
    for missing in ("grpc", "google.protobuf", "grpc_status"):
        code = f"import sys; sys.modules[{missing!r}] = None; import loopline.adapters.grpc"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "MissingExtra" in done.stderr and "pip install 'loopline[grpc]'" in done.stderr
