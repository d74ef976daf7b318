from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.adapters.http_wire import Crossing
from loopline.errors import Overloaded
from loopline.loop import Loop
from loopline.metrics import CONTENT_TYPE
from tests.adapters.speaking import SETOSA, Http, pointers, problem, running, speaking, state_of


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A loop that requires tokens."""
    with running(tmp_path_factory.mktemp("guarded"), token_required=True) as loop:
        yield loop


@pytest.fixture(scope="module")
def stranger(guarded: Loop) -> Iterator[Http]:
    """A client without a token."""
    with speaking(guarded) as http:
        yield http


@pytest.fixture(scope="module")
def root(guarded: Loop) -> Iterator[Http]:
    """A client that holds an admin token."""
    token = guarded.access.issue("root", ["admin"])
    with speaking(guarded, headers={"Authorization": f"Bearer {token}"}) as http:
        yield http


def test_health_needs_no_token(stranger: Http) -> None:
    """An orchestrator has none."""
    assert stranger.get("/livez").json() == {"live": True}
    assert stranger.get("/readyz").json() == {"ready": True, "reasons": {}}
    answer = stranger.get("/ping")
    assert (answer.text, answer.headers["content-type"]) == ("pong", "text/plain; charset=utf-8")
    assert stranger.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/models/iris/predict"),
        ("POST", "/v1/models/nope/predict"),
        ("DELETE", "/v1/models/iris"),
        ("GET", "/no/such/path"),
    ],
)
@pytest.mark.parametrize("header", [None, "Bearer ll_wrong", "Basic bGw6bGw=", "Bearer"])
def test_everything_else_needs_one(
    stranger: Http, guarded: Loop, method: str, path: str, header: str | None
) -> None:
    """Without a good token nothing is told, not even what exists, and nothing changes."""
    before = state_of(guarded)
    headers = {} if header is None else {"Authorization": header}
    answer = stranger.request(method, path, headers=headers)
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert state_of(guarded) == before


def test_a_token_opens_what_its_scopes_say(guarded: Loop, stranger: Http, root: Http) -> None:
    """A token made over HTTP predicts but does not train, until it is revoked."""
    answer = root.post("/v1/tokens", {"name": "app", "scopes": ["predict"]})
    assert answer.status_code == 201
    told = answer.json()
    assert (told["name"], told["scopes"]) == ("app", ["predict"])
    assert answer.headers["cache-control"] == "no-store"
    headers = {"Authorization": f"Bearer {told['token']}"}
    predict = "/v1/models/iris/predict"
    assert stranger.post(predict, SETOSA, headers=headers).status_code == 200
    assert stranger.get("/metrics", headers=headers).status_code == 200
    before = state_of(guarded)
    for method, path, scope in (
        ("POST", "/v1/models/sales/train", "train"),
        ("POST", "/v1/models/iris/promote", "train"),
        ("POST", "/v1/models/iris/rollback", "train"),
        ("DELETE", "/v1/models/iris", "admin"),
        ("PUT", "/v1/models/new", "admin"),
        ("GET", "/v1/tokens", "admin"),
        ("POST", "/v1/tokens", "admin"),
        ("DELETE", "/v1/tokens/root", "admin"),
    ):
        body = {"version": 1} if path.endswith("promote") else {}
        refused = stranger.request(method, path, headers=headers, json=body)
        assert f"'{scope}'" in problem(refused, 403, "forbidden")["detail"]
    for path, body in (
        ("outcomes", {"id": "a", "outcome": "setosa"}),
        ("learn", SETOSA | {"species": "setosa"}),
    ):
        problem(stranger.post(f"/v1/models/iris/{path}", body, headers=headers), 403, "forbidden")
    assert state_of(guarded) == before
    listed = root.get("/v1/tokens").json()["tokens"]
    assert {each["name"]: each["revoked"] for each in listed} == {"app": False, "root": False}
    assert told["token"] not in root.get("/v1/tokens").text
    problem(root.post("/v1/tokens", {"name": "app", "scopes": ["admin"]}), 409, "wrong-state")
    assert root.request("DELETE", "/v1/tokens/app").status_code == 204
    problem(stranger.post(predict, SETOSA, headers=headers), 401, "unauthorized")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ["/name", "/scopes"]),
        ({"name": "x", "scopes": "admin"}, ["/scopes"]),
        ({"name": 5, "scopes": [["admin"]]}, ["/name", "/scopes/0"]),
        ({"name": "a/b", "scopes": []}, ["/name", "/scopes"]),
        ({"name": "x", "scopes": ["root"]}, ["/scopes/0"]),
        ({"name": "x", "scopes": ["admin"], "admin": True}, ["/admin"]),
    ],
)
def test_bad_tokens_are_not_made(root: Http, guarded: Loop, body: Any, expected: list[str]) -> None:
    """Everything wrong with one is named."""
    before = state_of(guarded)
    assert pointers(problem(root.post("/v1/tokens", body), 422, "invalid-input")) == expected
    assert state_of(guarded) == before


def test_readiness_gives_its_reasons(tmp_path: Path) -> None:
    """503 and the model's own sentence while one cannot answer."""
    with running(tmp_path) as loop, speaking(loop) as http:
        assert http.get("/readyz").status_code == 200
        loop.serving.service("moody").trouble = "it sulks"
        answer = http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "reasons": {"moody": "it sulks"}}
        assert http.get("/livez").status_code == 200


def test_metrics_are_in_the_text_format(http: Http) -> None:
    """Predictions and requests are counted, and what is under way is shown."""
    http.post("/v1/models/iris/predict", SETOSA)
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    lines = answer.text.splitlines()
    line = 'loopline_predictions_total{model="iris",version="1",code="ok"}'
    assert any(each.startswith(line) for each in lines)
    assert "loopline_in_flight 1" in lines
    assert any(each.startswith('loopline_http_requests_total{status="200"}') for each in lines)
    assert 'loopline_queue_requests{model="iris"} 0' in lines


@pytest.mark.parametrize("path", ["/nope", "/v1/models/iris/nope", "/v1", "/docs/x.js"])
def test_unknown_paths_are_problems(http: Http, path: str) -> None:
    """The problem names the path."""
    assert path in problem(http.get(path), 404, "unknown-path")["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/models/iris/predict", {"POST", "OPTIONS"}),
        ("POST", "/v1/models", {"GET", "HEAD", "OPTIONS"}),
        ("PATCH", "/v1/models/iris", {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}),
        ("DELETE", "/metrics", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    http: Http, method: str, path: str, allowed: set[str]
) -> None:
    """In `Allow`, and `OPTIONS` says the same."""
    answer = http.request(method, path)
    problem(answer, 405, "wrong-method")
    assert set(answer.headers["allow"].split(", ")) == allowed
    options = http.request("OPTIONS", path)
    assert options.status_code == 204
    assert set(options.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/models/nope", "/docs"])
def test_head_is_get_without_the_body(http: Http, path: str) -> None:
    """The same status and headers, and no body."""
    got, head = http.get(path), http.request("HEAD", path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("stripped", [True, False])
def test_behind_a_proxy_the_prefix_is_kept(tmp_path: Path, stripped: bool) -> None:
    """Links carry the prefix, whether or not the proxy cuts it off the path."""
    with running(tmp_path, root_path="/ml") as loop, speaking(loop) as http:
        at = "" if stripped else "/ml"
        assert http.get(f"{at}/livez").status_code == 200
        assert http.post(f"{at}/v1/models/iris/predict", SETOSA).status_code == 200
        answer = http.post(f"{at}/v1/models/sales/train")
        job = answer.json()["job"]
        assert answer.headers["location"] == f"/ml/v1/jobs/{job}"
        assert http.get(f"{at}/openapi.json").json()["servers"] == [{"url": "/ml"}]
        assert http.get(f"{at}/v1/jobs/{job}?wait=60").json()["state"] == "done"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://testserver:81"])
def test_pages_of_other_sites_cannot_write(http: Http, loop: Loop, origin: str) -> None:
    """Without tokens, a form that another site's page sends from here is refused."""
    before = state_of(loop)
    headers = {"Origin": origin}
    form = {"TV": "1", "Sales": "1"}
    answer = http.request("POST", "/v1/models/sales/learn", data=form, headers=headers)
    problem(answer, 403, "forbidden")
    problem(http.post("/v1/models/iris/predict", SETOSA, headers=headers), 403, "forbidden")
    assert state_of(loop) == before
    assert http.get("/v1/models", headers=headers).status_code == 200
    ours = {"Origin": "http://testserver"}
    assert http.post("/v1/models/iris/predict", SETOSA, headers=ours).status_code == 200


def test_the_documentation_loads_nothing_from_elsewhere(http: Http) -> None:
    """Its page, script and style come from here and name no other place."""
    page = http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    for path, kind in (("/docs/docs.js", "text/javascript"), ("/docs/docs.css", "text/css")):
        part = http.get(path)
        assert part.status_code == 200 and part.headers["content-type"].startswith(kind)
        assert "//" not in part.text.replace("// ", "")
        assert path.removeprefix("/") in page.text
    assert "://" not in page.text


def test_an_error_of_our_own_is_logged_and_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks inside: 500 with an id, the traceback in the log, or with debug on both."""
    for debug in (False, True):
        with running(tmp_path / str(debug), debug=debug) as loop, speaking(loop) as http:
            loop.store.close()
            loop.store = None  # type: ignore[assignment]
            answer = http.get("/v1/models/iris", headers={"X-Request-Id": f"broken-{debug}"})
            assert answer.json()["code"] == "internal-error"
            assert ("Traceback" in answer.text) is debug
            assert any(f"broken-{debug}" in each.getMessage() for each in caplog.records)


def test_the_way_to_the_threads_is_bounded(http: Http) -> None:
    """Past the bound a call is refused at once, and afterwards there is room again."""

    async def crowd() -> None:
        crossing, wake = Crossing(threads=1, waiting=2), threading.Event()
        calls = [asyncio.ensure_future(crossing.run(wake.wait, 20)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await crossing.run(int)
        wake.set()
        await asyncio.gather(*calls)
        assert await crossing.run(int) == 0
        crossing.close()

    http.submit(crowd()).result(30)


def test_it_works_inside_another_application(loop: Loop, http: Http) -> None:
    """Mounted under a path by an outer ASGI application, as frameworks do it."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await http.app({**scope, "root_path": "/inner"}, receive, send)

    mounted = Http(outer)
    try:
        assert mounted.post("/inner/v1/models/iris/predict", SETOSA).status_code == 200
        assert mounted.get("/inner/v1/models").status_code == 200
        assert mounted.get("/inner/openapi.json").json()["servers"] == [{"url": "/inner"}]
    finally:
        mounted.close()
