from __future__ import annotations

import asyncio
from typing import Any

import pytest

from loopline.loop import Loop
from loopline.records import Job, JobState, new_id
from tests.adapters.speaking import Http, pointers, problem

NOBODY = ("a-worker-that-is-not-there",)


def queued(loop: Loop) -> Job:
    """A job that no worker here takes."""
    job = Job(id=new_id(), kind="train", model="sales", payload={}, tags=NOBODY)
    return loop.store.submit(job)


def events_of(text: str) -> list[dict[str, str]]:
    """Read server-sent events, comments left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_jobs_are_listed_and_narrowed(http: Http, loop: Loop) -> None:
    """By model and by state, newest first, with the figures of the queue."""
    first, second = queued(loop), queued(loop)
    told = http.get("/v1/jobs?model=sales&state=queued").json()
    assert [each["job"] for each in told["jobs"]][:2] == [second.id, first.id]
    assert told["figures"]["queued"] >= 2
    assert len(http.get("/v1/jobs?most=1").json()["jobs"]) == 1
    assert http.get("/v1/jobs?model=iris").json()["jobs"] == []
    told = problem(http.get("/v1/jobs?state=lost&most=0"), 422, "invalid-input")
    assert pointers(told) == ["?state", "?most"]


def test_a_job_is_told_without_its_insides(http: Http, loop: Loop) -> None:
    """Neither its payload nor its fence's limits are anybody's business."""
    job = queued(loop)
    told = http.get(f"/v1/jobs/{job.id}").json()
    assert (told["job"], told["kind"], told["state"]) == (job.id, "train", "queued")
    assert "payload" not in told
    problem(http.get("/v1/jobs/nothing"), 404, "unknown-job")
    problem(http.get("/v1/jobs/nothing/events"), 404, "unknown-job")
    problem(http.post("/v1/jobs/nothing/cancel"), 404, "unknown-job")


def test_waiting_for_a_job_ends_when_it_does(http: Http, loop: Loop) -> None:
    """Many can wait at once without holding a thread each, and all are told of the end."""
    job = queued(loop)

    async def wait() -> list[Any]:
        asks = [http.ask("GET", f"/v1/jobs/{job.id}?wait=60") for _ in range(100)]
        waiting = [asyncio.ensure_future(ask) for ask in asks]
        other = await http.ask("GET", "/v1/models/iris")
        assert other.status_code == 200
        assert not any(each.done() for each in waiting)
        await http.ask("POST", f"/v1/jobs/{job.id}/cancel")
        return await asyncio.gather(*waiting)

    answers = http.submit(wait()).result(60)
    assert {each.json()["state"] for each in answers} == {"cancelled"}


def test_waiting_for_a_job_ends_when_the_time_is_over(http: Http, loop: Loop) -> None:
    """The job is then told as it is."""
    job = queued(loop)
    assert http.get(f"/v1/jobs/{job.id}?wait=0.1").json()["state"] == "queued"
    told = problem(http.get(f"/v1/jobs/{job.id}?wait=-1"), 422, "invalid-input")
    assert pointers(told) == ["?wait"]


def test_who_hangs_up_is_waited_for_no_longer(http: Http, loop: Loop) -> None:
    """A long poll ends when its caller has gone."""
    job = queued(loop)

    async def hang_up() -> list[Any]:
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v1/jobs/{job.id}",
            "query_string": b"wait=3000",
            "headers": [],
        }
        await asyncio.wait_for(http.app(scope, receive, send), 10)
        return sent

    assert all(message.get("status", 0) != 200 for message in http.submit(hang_up()).result(20))


def test_a_cancelled_job_stays_cancelled(http: Http, loop: Loop) -> None:
    """Cancelling again changes nothing."""
    job = queued(loop)
    assert http.post(f"/v1/jobs/{job.id}/cancel").json()["state"] == "cancelled"
    assert http.post(f"/v1/jobs/{job.id}/cancel").json()["state"] == "cancelled"


def test_events_are_followed_to_the_last(http: Http, loop: Loop) -> None:
    """The stream tells the whole story in order and ends with the job."""
    job = queued(loop)

    async def follow() -> Any:
        following = asyncio.ensure_future(http.ask("GET", f"/v1/jobs/{job.id}/events"))
        claimed = await asyncio.to_thread(loop.store.claim, "tester", 60.0, NOBODY)
        assert claimed is not None and claimed.id == job.id
        progress = {"step": 1, "of": 2, "message": "half"}
        await asyncio.to_thread(loop.store.heartbeat, job.id, 1, 60.0, progress)
        await asyncio.to_thread(loop.store.finish, job.id, 1, JobState.DONE, {"rows": 1})
        return await following

    for other in loop.store.jobs(state=JobState.QUEUED):
        if other.id != job.id:
            loop.store.cancel(other.id)
    answer = http.submit(follow()).result(60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    events = events_of(answer.text)
    kinds = [each["event"] for each in events]
    assert (kinds[0], kinds[-1]) == ("queued", "done")
    assert {"running", "progress"} <= set(kinds)
    numbers = [int(each["id"]) for each in events]
    assert numbers == sorted(set(numbers))
    middle = numbers[1]
    for options in ({"params": {"after": middle}}, {"headers": {"Last-Event-ID": str(middle)}}):
        rest = http.get(f"/v1/jobs/{job.id}/events", **options)
        assert events_of(rest.text) == events[2:]
    ended = http.get(f"/v1/jobs/{job.id}/events?after={numbers[-1]}")
    assert (ended.status_code, ended.content) == (204, b"")


def test_a_silent_stream_says_that_it_is_there(
    http: Http, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment keeps proxies from closing a stream in which nothing happens."""
    monkeypatch.setattr("loopline.adapters.http_verbs.SILENCE", 0.0)
    job = queued(loop)

    async def follow() -> Any:
        seen = asyncio.Event()

        async def receive() -> Any:
            await seen.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body", b"").startswith(b":"):
                seen.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v1/jobs/{job.id}/events",
            "query_string": b"",
            "headers": [],
        }
        await http.app(scope, receive, send)
        return seen.is_set()

    assert http.submit(follow()).result(30)


def test_workers_are_listed(http: Http) -> None:
    """The worker of this process says that it is there."""
    workers = http.get("/v1/workers").json()["workers"]
    assert any(each["id"].startswith("local-") for each in workers)
