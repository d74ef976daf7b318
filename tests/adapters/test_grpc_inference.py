"""The Open Inference Protocol over gRPC, with other people's clients as they are."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.adapters import grpc_inference
from loopline.adapters.inference import DATATYPES
from loopline.testing.adapter import Refusal
from tests import clients
from tests.adapters.calling import Served, calling
from tests.adapters.drivers.grpc_service import refusals
from tests.adapters.drivers.inference_grpc import InferenceGrpc, tensors
from tests.adapters.speaking import FEATURES, SETOSA, VIRGINICA

Ports = Callable[[int], list[int]]

KSERVE = """
import asyncio, json, sys
from kserve import InferenceGRPCClient, InferInput, InferRequest

async def main():
    client = InferenceGRPCClient(sys.argv[1])
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    values = zip(names, [5.1, 3.5, 1.4, 0.2])
    asked = InferRequest(model_name="iris", request_id="mine",
        infer_inputs=[InferInput(name=n, shape=[1], datatype="FP64", data=[v]) for n, v in values])
    found = await client.infer(asked)
    outputs = {each.name: each.as_numpy().tolist() if each.datatype != "BYTES" else each.data
               for each in found.outputs}
    states = [await client.is_server_live(), await client.is_server_ready(),
              await client.is_model_ready("iris")]
    print(json.dumps([found.id, found.model_version, outputs, states], default=str))
    await client.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, free_ports: Ports) -> Iterator[Served]:
    """A server of this process."""
    with calling(tmp_path_factory.mktemp("inference"), free_ports(1)[0]) as found:
        yield found


@pytest.fixture(scope="module")
def triton(served: Served) -> Iterator[InferenceGrpc]:
    """`tritonclient`, unmodified."""
    driver = InferenceGrpc(served.address)
    yield driver
    driver.close()


MESSAGES = grpc_inference.Inference()


def message(name: str, **values: Any) -> Any:
    """A message of the protocol."""
    return MESSAGES.message(name)(**values)


@pytest.fixture
def call(served: Served) -> Iterator[Callable[..., Any]]:
    """A function that calls a method with a message, or with bytes."""
    with grpc.insecure_channel(served.address) as channel:

        def invoke(name: str, request: Any = b"") -> Any:
            data = request if isinstance(request, bytes) else request.SerializeToString()
            gives = MESSAGES.message(f"{name}Response").FromString
            path = f"/{grpc_inference.SERVICE}/{name}"
            with refusals():
                return channel.unary_unary(path, None, gives)(data, timeout=30)

        yield invoke


def typed(row: dict[str, float], **more: Any) -> Any:
    """A request with typed contents."""
    inputs = [
        {"name": name, "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [value]}}
        for name, value in row.items()
    ]
    return message("ModelInferRequest", **{"model_name": "iris", "inputs": inputs, **more})


# tritonclient.


def test_tritonclient_finds_its_way(triton: InferenceGrpc) -> None:
    """Health, metadata, the repository: everything that the client asks before it infers."""
    for name in ("is_server_live", "is_server_ready"):
        assert triton.ask(name)["found"] is True
    assert triton.ask("is_model_ready", model_name="iris")["found"] is True
    assert triton.ask("is_model_ready", model_name="iris", model_version="1")["found"] is True
    about = triton.ask("get_server_metadata")["found"]
    assert about["name"] == "loopline" and "model_repository" in about["extensions"]
    assert triton.describe("iris") == {"name": "iris", "version": 1, "inputs": FEATURES}
    outputs = triton.ask("get_model_metadata", model_name="iris")["found"]["outputs"]
    assert outputs == [
        {"name": "prediction", "datatype": "BYTES", "shape": ["-1"]},
        {"name": "probabilities", "datatype": "FP64", "shape": ["-1", "3"]},
        {"name": "prediction_id", "datatype": "BYTES", "shape": ["-1"]},
    ]
    index = triton.ask("get_model_repository_index")["found"]["models"]
    assert [(each["name"], each["state"]) for each in index] == [
        *(("iris", "READY"), ("moody", "READY"), ("sales", "READY"))
    ]
    triton.ask("load_model", model_name="iris")


def test_tritonclient_infers(triton: InferenceGrpc, served: Served) -> None:
    """One row and many, by ids, by version, as one tensor and as one for each field."""
    (one,) = triton.predict("iris", SETOSA)
    assert (one.prediction, one.version) == ("setosa", 1)
    assert served.loop.prediction("iris", one.id)["input"] == SETOSA
    many = triton.predict("iris", [SETOSA, VIRGINICA], ids=["first", "größe"], version=1)
    assert [tuple(each) for each in many] == [("first", "setosa", 1), ("größe", "virginica", 1)]
    whole = [["x", "FP32", [2, 4], [*SETOSA.values(), *VIRGINICA.values()]]]
    found = triton.ask(
        "infer", model="iris", inputs=whole, id="mine", outputs=["probabilities", "prediction"]
    )
    assert (found["id"], found["version"]) == ("mine", "1")
    assert list(found["outputs"]) == ["probabilities", "prediction"]
    assert found["outputs"]["prediction"] == ["BYTES", [2], ["setosa", "virginica"]]
    datatype, shape, chances = found["outputs"]["probabilities"]
    assert (datatype, shape) == ("FP64", [2, 3]) and sum(chances) == pytest.approx(2.0)
    (sold,) = triton.predict("sales", {"TV": 100})
    assert sold.prediction == pytest.approx(12.0, abs=0.1)
    echoed = triton.ask("infer", model="moody", inputs=[["say", "BYTES", [1], ["größe 🌸"]]])
    assert echoed["outputs"]["prediction"][2] == ["größe 🌸"]


def test_tritonclients_asynchronous_client_infers(triton: InferenceGrpc) -> None:
    """Fifty calls at once over one connection."""
    found = triton.ask("aio", model="iris", inputs=tensors([SETOSA], None), times=50)["found"]
    assert [each["outputs"]["prediction"][2] for each in found] == [["setosa"]] * 50
    assert len({each["outputs"]["prediction_id"][2][0] for each in found}) == 50


def test_tritonclient_streams(triton: InferenceGrpc) -> None:
    """Answers come while requests are sent, and one that is refused does not end the stream."""
    rows = iter([{"TV": 1.0}, {"TV": 2.0}, {"TV": 3.0}])
    seen = [said.prediction for said in triton.stream("sales", rows)]
    assert len(seen) == 3 and seen == sorted(seen)
    triton.ask("start")
    for value in (1.0, "abc", 2.0):
        triton.ask("send", model="sales", inputs=tensors([{"TV": value}], None))
    assert triton.ask("receive")["outputs"]
    with pytest.raises(Refusal, match="'abc' is not a float") as refused:
        triton.ask("receive")
    assert refused.value.code == "invalid-input"
    assert triton.ask("receive")["outputs"]
    triton.ask("end")


@pytest.mark.parametrize(
    ("model", "row", "options", "code", "pointers"),
    [
        ("iris", {**SETOSA, "petal_width": "abc"}, {}, "invalid-input", ("/petal_width",)),
        ("iris", {"petal_width": 1.0}, {}, "invalid-input", None),
        ("iris", {**SETOSA, "more": 1.0}, {}, "invalid-input", ("/more",)),
        ("iris", SETOSA, {"version": 9}, "unknown-version", ()),
        ("iris", SETOSA, {"ids": ["a", "b"]}, "invalid-input", None),
        ("nobody", SETOSA, {}, "unknown-model", ()),
        ("moody", {"raise": True}, {}, "model-failed", ()),
    ],
    ids=str,
)
def test_what_is_wrong_is_told(
    triton: InferenceGrpc, model: str, row: Any, options: Any, code: str, pointers: Any
) -> None:
    """By status and text for the client, by code and pointers for programs that look closer."""
    with pytest.raises(Refusal) as refused:
        triton.predict(model, row, **options)
    assert refused.value.code == code and "Traceback" not in refused.value.detail
    assert pointers is None or refused.value.pointers == pointers


def test_what_we_skip_is_unimplemented(triton: InferenceGrpc) -> None:
    """Calls that only Triton's own server can answer, and unloading, which ours refuses."""
    for name, options in [
        ("get_inference_statistics", {}),
        ("get_model_config", {"model_name": "iris"}),
    ]:
        with pytest.raises(Refusal) as refused:
            triton.ask(name, **options)
        assert refused.value.code == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(Refusal) as refused:
        triton.ask("unload_model", model_name="iris")
    assert refused.value.code == "wrong-state"


def test_a_deadline_is_kept(triton: InferenceGrpc, served: Served, tmp_path: Any) -> None:
    """The client's own, and that of the protocol's parameter in microseconds."""
    asked = [["sleep", "BYTES", [1], [str(tmp_path / "go")]]]
    try:
        with pytest.raises(Refusal) as refused:
            triton.ask("infer", model="moody", inputs=asked, client_timeout=0.3)
        assert refused.value.code == "timeout"
    finally:
        (tmp_path / "go").touch()
    while served.loop.serving.service("moody").running:
        pass
    try:
        asked[0][3] = [str(tmp_path / "again")]
        with pytest.raises(Refusal) as refused:
            triton.ask("infer", model="moody", inputs=asked, timeout=300_000)
        assert refused.value.code == "timeout"
    finally:
        (tmp_path / "again").touch()


def test_tokens_are_asked_for(tmp_path: Any, free_port: int) -> None:
    """With one the client is served, without it it is told why not."""
    with calling(tmp_path, free_port, token_required=True) as served:
        text = served.loop.access.issue("teller", ["predict"])
        driver = InferenceGrpc(served.address, text)
        assert driver.predict("iris", SETOSA)[0].prediction == "setosa"
        with pytest.raises(Refusal) as refused:
            driver.ask("load_model", model_name="iris")
        assert refused.value.code == "forbidden"
        driver.close()
        driver = InferenceGrpc(served.address)
        with pytest.raises(Refusal) as refused:
            driver.predict("iris", SETOSA)
        assert refused.value.code == "unauthorized"
        assert driver.ask("is_server_live")["found"] and driver.ask("is_server_ready")["found"]
        driver.close()


# KServe.


def test_kserves_client_infers(served: Served, tmp_path: Any) -> None:
    """It sends typed contents, and reads the answer's in kind."""
    (tmp_path / "client.py").write_text(KSERVE)
    command = [clients.python("kserve"), tmp_path / "client.py", served.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    id, version, outputs, states = json.loads(done.stdout.splitlines()[-1])
    assert (id, version, states) == ("mine", "1", [True, True, True])
    assert "setosa" in str(outputs["prediction"]) and len(outputs["probabilities"][0]) == 3


# Messages made by hand.


def test_the_answer_mirrors_the_request(call: Callable[..., Any]) -> None:
    """Typed contents are answered typed, bytes with bytes, and the id is the caller's or ours."""
    answer = call("ModelInfer", typed(SETOSA))
    outputs = {each.name: each for each in answer.outputs}
    assert list(outputs["prediction"].contents.bytes_contents) == [b"setosa"]
    assert sum(outputs["probabilities"].contents.fp64_contents) == pytest.approx(1.0)
    assert not answer.raw_output_contents
    assert [answer.id.encode()] == list(outputs["prediction_id"].contents.bytes_contents)
    raw = [struct.pack("<d", value) for value in SETOSA.values()]
    inputs = [{"name": name, "datatype": "FP64", "shape": [1]} for name in SETOSA]
    asked = message(
        "ModelInferRequest", model_name="iris", id="mine", inputs=inputs, raw_input_contents=raw
    )
    answer = call("ModelInfer", asked)
    assert answer.id == "mine" and len(answer.raw_output_contents) == len(answer.outputs) == 3
    assert answer.raw_output_contents[0] == b"\x06\0\0\0setosa"
    assert not any(each.HasField("contents") for each in answer.outputs)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True]),
        *((f"INT{bits}", "int_contents", [7]) for bits in (8, 16, 32)),
        ("INT64", "int64_contents", [7]),
        *((f"UINT{bits}", "uint_contents", [7]) for bits in (8, 16, 32)),
        ("UINT64", "uint64_contents", [7]),
        ("FP32", "fp32_contents", [7.0]),
        ("FP64", "fp64_contents", [7.0]),
        ("BYTES", "bytes_contents", [b"7"]),
    ],
)
def test_every_datatype_has_its_contents(
    call: Callable[..., Any], datatype: str, field: str, values: list[Any]
) -> None:
    """Each is read from the list that the specification gives it."""
    tensor = {"name": "say", "datatype": datatype, "shape": [1], "contents": {field: values}}
    answer = call("ModelInfer", message("ModelInferRequest", model_name="moody", inputs=[tensor]))
    (found,) = [each for each in answer.outputs if each.name == "prediction"]
    said = {"BOOL": "true", "BYTES": "7"}.get(datatype, "7.0" if "FP" in datatype else "7")
    told = [str(v) for _, vs in found.contents.ListFields() for v in vs]
    assert said in (told[0], told[0].lower(), told[0].strip("b'"))


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"raw_input_contents": [b"12345678"] * 4}, "/inputs/0/contents"),
        ({"raw_input_contents": [b"12345678"]}, "/raw_input_contents"),
        ({"inputs": []}, None),
        ({"model_version": "x"}, None),
        ({"outputs": [{"name": "nothing"}]}, "/outputs/0/name"),
        ({"inputs": [{"name": "x", "datatype": "FP16", "shape": [1]}]}, "/inputs/0/datatype"),
        ({"inputs": [{"name": "x", "datatype": "FP99", "shape": [0]}]}, "/inputs/0/datatype"),
        ({"inputs": [{"name": "x", "datatype": "FP64", "shape": [2]}]}, "/inputs/0/data"),
        ({"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1]}]}, "/inputs/0/shape"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    call: Callable[..., Any], change: dict[str, Any], pointer: str | None
) -> None:
    """Mixed contents, wrong numbers of them, datatypes and shapes that are none."""
    asked = typed(SETOSA)
    for name, value in change.items():
        asked.ClearField(name)
        asked.MergeFrom(message("ModelInferRequest", **{name: value}))
    with pytest.raises(Refusal) as refused:
        call("ModelInfer", asked)
    assert refused.value.code in ("invalid-input", "unknown-version")
    assert pointer is None or pointer in refused.value.pointers


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Messages that look like requests, and bytes that look like nothing."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=100))
    tensor = st.fixed_dictionaries(
        {
            "name": st.sampled_from([*FEATURES, "prediction_id", "x"]),
            "datatype": st.sampled_from([*DATATYPES, "", "FP99"]),
            "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 4, 2**40, 2**62]), max_size=3),
            "contents": st.sampled_from(
                [{}, {"fp64_contents": [1.0, 2.0]}, {"bytes_contents": [b"\xff"]}]
            ),
        }
    )
    raw = st.lists(st.binary(max_size=20) | st.just(b"\xff\xff\xff\xff"), max_size=3)
    built = message(
        "ModelInferRequest",
        model_name=draw(st.sampled_from(["iris", "sales", "moody", ""])),
        model_version=draw(st.sampled_from(["", "1", "0", "99999999999"])),
        inputs=draw(st.lists(tensor, max_size=3)),
        raw_input_contents=draw(raw),
        parameters=draw(
            st.dictionaries(
                st.sampled_from(["timeout", "prediction_id", "x"]),
                st.sampled_from(
                    [{"int64_param": -1}, {"string_param": "ü"}, {"double_param": 1.0}]
                ),
            )
        ),
    )
    data: bytes = built.SerializeToString()
    return data


CALLERS = {
    "invalid-input",
    "unreadable",
    "unknown-model",
    "unknown-version",
    "too-large",
    "timeout",
}


@settings(max_examples=150, deadline=None)
@given(data=requests())
def test_whatever_is_sent_is_answered_or_refused(served: Served, data: bytes) -> None:
    """No request, however odd, is a mistake of ours."""
    with grpc.insecure_channel(served.address) as channel:
        path = f"/{grpc_inference.SERVICE}/ModelInfer"
        try:
            with refusals():
                channel.unary_unary(path)(data, timeout=30)
        except Refusal as refused:
            assert refused.code in CALLERS, refused
