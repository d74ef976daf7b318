from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from websockets.sync.client import connect

from loopline import Loopline
from loopline.cli.commands import FORMS, cli
from loopline.loop import Loop
from tests import clients
from tests.adapters.sockets import Served, served
from tests.adapters.speaking import SETOSA, Http, sales

MODELS = ("iris", "moody", "sales")
GENERATED = """
import sys
sys.path.insert(0, sys.argv[1])
from contract import Client
from contract.api.iris import iris_outcomes, iris_predict
from contract.models import IrisOutcomesBodyType0, IrisRow, Problem

client = Client(base_url=sys.argv[2])
row = IrisRow(sepal_length=5.1, sepal_width=3.5, petal_length=1.4, petal_width=0.2)
said = iris_predict.sync(client=client, body=row, version=1)
print(said.prediction)
outcome = IrisOutcomesBodyType0(id=said.id, outcome="setosa")
print(iris_outcomes.sync(client=client, body=outcome).joined)
wrong = iris_predict.sync(client=client, body=row, version=9)
assert isinstance(wrong, Problem)
print(wrong.code)
"""


@pytest.fixture(scope="module")
def server(loop: Loop) -> Iterator[Served]:
    """A server of the shared loop."""
    with served(loop) as server:
        yield server


def validator(bundle: dict[str, Any], name: str) -> Draft202012Validator:
    """Checks values against one definition of the bundle."""
    return Draft202012Validator({**bundle, "$ref": f"#/$defs/{name}"})


def test_openapi_satisfies_its_specification(http: Http) -> None:
    """By a validator that resolves every reference."""
    OpenAPIV31SpecValidator(http.get("/openapi.json").json()).validate()


def test_asyncapi_satisfies_its_specification(http: Http) -> None:
    """By AsyncAPI's own JSON Schema."""
    home = clients.node("asyncapi") / "node_modules/@asyncapi/specs/schemas"
    specification = json.loads((home / "3.0.0.json").read_text())
    told = http.get("/asyncapi.json", headers={"host": "models.example"}).json()
    jsonschema.validate(told, specification)
    assert told["servers"]["ws"]["host"] == "models.example"
    for name in MODELS:
        assert told["channels"][f"{name}Socket"]["address"] == f"/v1/models/{name}/socket"
    for reference in references(told):
        assert resolve(told, reference) is not None


def references(value: Any) -> Iterator[str]:
    """Every `$ref` of a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


def resolve(document: Any, reference: str) -> Any:
    """What a reference is to."""
    assert reference.startswith("#/")
    for step in reference[2:].split("/"):
        document = document[step]
    return document


def test_messages_are_as_asyncapi_tells(server: Served) -> None:
    """What is sent and what is heard on a real connection fits the channel's messages."""
    host, port = server.address
    told = json.loads(server.ask(get("/asyncapi.json")).body)
    channel = told["channels"]["irisSocket"]
    schemas = {
        name: Draft202012Validator({**message["payload"], "components": told["components"]})
        for name, message in channel["messages"].items()
    }
    with connect(f"ws://{host}:{port}{channel['address']}") as line:
        for message, kind in [
            ({"id": 1, "inputs": SETOSA}, "answer"),
            ({"inputs": [SETOSA], "ids": ["told"], "timeout": 3, "probabilities": True}, "answer"),
            ({"verb": "outcome", "inputs": {"id": "told", "outcome": "setosa"}}, "answer"),
            ({"verb": "learn", "inputs": {**SETOSA, "species": "setosa"}, "id": "x"}, "answer"),
            ({"id": 2, "inputs": SETOSA, "version": 9}, "error"),
        ]:
            schemas["request"].validate(message)
            line.send(json.dumps(message))
            schemas[kind].validate(json.loads(line.recv(timeout=20)))
    for wrong in ({}, {"inputs": {"x": 1}}, {"inputs": SETOSA, "colour": "red"}):
        assert not schemas["request"].is_valid(wrong)


def get(path: str) -> bytes:
    """A plain request."""
    return f"GET {path} HTTP/1.1\r\nhost: here\r\n\r\n".encode()


def test_the_bundle_is_json_schema(http: Http) -> None:
    """By the metaschema; and what it allows is what the routes take and give."""
    bundle = http.get("/schema.json").json()
    Draft202012Validator.check_schema(bundle)
    for reference in references(bundle):
        assert resolve(bundle, reference) is not None
    for name in MODELS:
        assert {f"{name}.row", f"{name}.input", f"{name}.output"} <= bundle["$defs"].keys()
    assert "moody.learn" not in bundle["$defs"]
    for body, good in [(SETOSA, True), ([[*SETOSA.values()]], True), ({"x": 1}, False)]:
        answer = http.post("/v1/models/iris/predict", body)
        assert (answer.status_code == 200) is good
        assert validator(bundle, "iris.input").is_valid(body) is good
        validator(bundle, "iris.output" if good else "Problem").validate(answer.json())
    labelled = {**SETOSA, "species": "setosa"}
    validator(bundle, "iris.learn").validate([labelled])
    validator(bundle, "iris.outcome").validate({"id": "x", "outcome": "setosa"})
    assert not validator(bundle, "iris.learn").is_valid(SETOSA)


def test_the_proto_compiles(http: Http, tmp_path: Path) -> None:
    """By protoc itself."""
    pytest.importorskip("grpc_tools")
    answer = http.get("/service.proto")
    assert answer.headers["content-type"].startswith("text/x-protobuf"), answer.text
    (tmp_path / "service.proto").write_text(answer.text)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path}"]
    command += [f"--descriptor_set_out={tmp_path}/out", "service.proto"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "service IrisService" in answer.text


def test_a_generated_client_calls_the_server(server: Served, tmp_path: Path) -> None:
    """One that somebody else's program has written from the document."""
    python = clients.python("openapi")
    (tmp_path / "openapi.json").write_bytes(server.ask(get("/openapi.json")).body)
    generate = [str(python), "-m", "openapi_python_client", "generate", "--meta", "none"]
    generate += ["--path", "openapi.json", "--output-path", "contract"]
    done = subprocess.run(generate, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Endpoint will not be generated" not in done.stdout + done.stderr
    (tmp_path / "call.py").write_text(GENERATED)
    url = f"http://{server.address[0]}:{server.address[1]}"
    call = [str(python), "call.py", str(tmp_path), url]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["setosa", "1", "unknown-version"]


@pytest.mark.parametrize("form", FORMS)
def test_the_command_asks_a_server(server: Served, tmp_path: Path, form: str) -> None:
    """And writes what it has, to the screen or into a file."""
    url = f"http://{server.address[0]}:{server.address[1]}"
    told = CliRunner().invoke(cli, ["contract", "--url", url, "--format", form])
    assert told.exit_code == 0, told.output
    file = tmp_path / "contract"
    options = ["--url", url, "--format", form, "--output", str(file)]
    assert CliRunner().invoke(cli, ["contract", *options]).exit_code == 0
    assert file.read_text() == told.output
    if form == "proto":
        assert told.output.startswith("syntax")
    else:
        assert "iris" in json.dumps(json.loads(told.output))


def test_the_command_needs_no_server(tmp_path: Path) -> None:
    """A data directory will do; the contract is the same."""
    with Loopline(tmp_path / "data") as app:
        app.add("sales", lambda row: row["TV"], data=sales(), target="Sales")
    told = CliRunner().invoke(cli, ["contract", "--data-dir", str(tmp_path / "data")])
    assert told.exit_code == 0, told.output
    assert "/v1/models/sales/predict" in json.loads(told.output)["paths"]
    assert "sales.row" in json.loads(told.output)["components"]["schemas"]
