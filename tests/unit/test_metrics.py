from __future__ import annotations

import gc
import math
import re
import threading
from pathlib import Path

import msgspec
import pytest

from loopline.metrics import FAMILIES, Metrics, Pool, Snapshot, merge, render

SAMPLE = re.compile(
    r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? ([0-9.e+-]+|\+Inf|-Inf|NaN)'
)


def samples(text: str) -> dict[tuple[str, str], float]:
    """Read the text format strictly; the keys are the name and the labels as written."""
    assert text.endswith("\n")
    found: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            assert re.fullmatch(r"# (HELP|TYPE) loopline_[a-z_]+ .+", line)
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        key = (match[1], match[2] or "")
        assert key not in found
        found[key] = float(match[3].replace("Inf", "inf"))
    return found


def counted() -> Metrics:
    """A process that has answered something."""
    metrics = Metrics()
    metrics.batch("iris", 3, 4, 10, 0.002, ["invalid-input", "invalid-input"])
    metrics.batch("iris", 3, 1, 1, 0.7)
    metrics.add("loopline_shed_total", 1.0, ("iris", "queue"))
    metrics.add("loopline_timeouts_total", 1.0, ("iris",))
    metrics.each("loopline_unseen_categories_total", "iris", {"colour": 2})
    metrics.each("loopline_outcomes_total", "iris", {"joined": 5, "late": 0})
    metrics.sample("loopline_queue_requests", lambda: {("iris",): 7.0})
    return metrics


def test_names_follow_the_house_rules_of_prometheus() -> None:
    """One prefix, totals for counters only, and no label that could grow without bound."""
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"loopline_[a-z_]+", name)
        assert name.endswith("_total") == (family.kind == "counter")
        assert bool(family.bounds) == (family.kind == "histogram")
        assert list(family.bounds) == sorted(set(family.bounds))
        assert not set(family.labels) & {"id", "prediction", "user", "le"}
        assert family.help.endswith(".")


def test_a_batch_is_counted_by_code() -> None:
    """Good and refused requests are told apart, and rows are counted beside them."""
    found = samples(counted().render())
    labels = 'model="iris",version="3"'
    assert found["loopline_predictions_total", f'{labels},code="ok"'] == 3
    assert found["loopline_predictions_total", f'{labels},code="invalid-input"'] == 2
    assert found["loopline_prediction_rows_total", labels] == 11
    assert found["loopline_shed_total", 'model="iris",reason="queue"'] == 1
    assert found["loopline_timeouts_total", 'model="iris"'] == 1
    assert found["loopline_unseen_categories_total", 'model="iris",field="colour"'] == 2
    assert found["loopline_outcomes_total", 'model="iris",result="joined"'] == 5
    assert ("loopline_outcomes_total", 'model="iris",result="late"') not in found
    assert found["loopline_queue_requests", 'model="iris"'] == 7


def test_a_histogram_is_cumulative_and_its_bounds_are_inclusive() -> None:
    """Buckets grow to the count, a value on a bound is within it, and the sum is exact."""
    metrics = Metrics()
    for rows in (1, 2, 2, 3, 1e9):
        metrics.observe("loopline_batch_rows", rows, ("iris",))
    found = samples(metrics.render())
    buckets = {
        key[1].rpartition('le="')[2].strip('"'): value
        for key, value in found.items()
        if key[0] == "loopline_batch_rows_bucket"
    }
    assert [buckets["1"], buckets["2"], buckets["4"], buckets["65536"]] == [1, 3, 4, 4]
    assert buckets["+Inf"] == 5 == found["loopline_batch_rows_count", 'model="iris"']
    assert found["loopline_batch_rows_sum", 'model="iris"'] == 1e9 + 8


def test_several_processes_are_summed() -> None:
    """Counters, histograms and levels add up; a longest pause is the longest of all."""
    first, second = counted().snapshot(), counted().snapshot()
    first["loopline_gc_longest_pause_seconds"] = [((), [0.5])]
    second["loopline_gc_longest_pause_seconds"] = [((), [0.25])]
    found = samples(render(merge([first, second])))
    labels = 'model="iris",version="3"'
    assert found["loopline_predictions_total", f'{labels},code="ok"'] == 6
    assert found["loopline_prediction_duration_seconds_count", labels] == 4
    assert math.isclose(found["loopline_prediction_duration_seconds_sum", labels], 1.404)
    assert found["loopline_queue_requests", 'model="iris"'] == 14
    assert found["loopline_gc_longest_pause_seconds", ""] == 0.5
    assert found["loopline_processes", ""] == 2


@pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack])
def test_a_snapshot_travels(codec: object) -> None:
    """What another process decodes merges to the same text."""
    taken = counted().snapshot()
    sent = codec.decode(codec.encode(taken), type=Snapshot)  # type: ignore[attr-defined]
    assert render(merge([sent])) == render(taken)


def test_label_values_are_escaped() -> None:
    """Quotes, backslashes and line breaks in a label cannot break the format."""
    metrics = Metrics()
    metrics.each("loopline_unseen_categories_total", "iris", {'a"b\\c\nd': 1})
    assert 'field="a\\"b\\\\c\\nd"' in metrics.render()
    samples(metrics.render())


def test_the_longest_collection_is_measured() -> None:
    """A garbage collection shows in the gauge while it is watched."""
    metrics = Metrics()
    metrics.watch_collector()
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(metrics._collected)
    assert metrics._collected not in gc.callbacks
    assert samples(metrics.render())["loopline_gc_longest_pause_seconds", ""] > 0


def test_threads_do_not_lose_counts() -> None:
    """Adding from several threads at once adds up."""
    metrics = Metrics()

    def work() -> None:
        for _ in range(2000):
            metrics.add("loopline_shed_total", 1.0, ("iris", "queue"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert samples(metrics.render())["loopline_shed_total", 'model="iris",reason="queue"'] == 8000


SHED = ("loopline_shed_total", 'model="iris",reason="queue"')


def published(folder: Path, pid: int, value: float) -> Metrics:
    """A process of a pool that has counted something and published it."""
    metrics = Metrics()
    metrics.pool = Pool(folder, pid)
    metrics.add("loopline_shed_total", value, ("iris", "queue"))
    metrics.add("loopline_in_flight", value)
    metrics.pool.publish(metrics)
    return metrics


def test_a_pool_sums_its_processes_and_keeps_what_ended_ones_had_counted(tmp_path: Path) -> None:
    """Totals never fall; the gauges of a process end with it."""
    (tmp_path / "7.json").write_text("left by an earlier server")
    keeper_of_sums = Pool(tmp_path)
    keeper_of_sums.clear()
    one, two = published(tmp_path, 1, 3.0), published(tmp_path, 2, 4.0)
    for metrics in (one, two):
        found = samples(metrics.render())
        assert found[SHED] == 7 and found["loopline_in_flight", ""] == 7
        assert found["loopline_processes", ""] == 2
    keeper_of_sums.retire(2)
    published(tmp_path, 3, 5.0)
    keeper_of_sums.retire(3)
    keeper_of_sums.retire(99)
    found = samples(one.render())
    assert found[SHED] == 12 and found["loopline_in_flight", ""] == 3
    assert found["loopline_processes", ""] == 1


def test_what_cannot_be_merged_stays_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without room for the merged file, nothing is lost and nobody stumbles."""
    published(tmp_path, 1, 3.0)
    (tmp_path / "0.new").mkdir()  # where the merged numbers would be written
    Pool(tmp_path).retire(1)
    assert "stay as they are" in caplog.text
    assert samples(render(merge(Pool(tmp_path).others())))[SHED] == 3


def test_a_pool_publishes_at_most_once_a_second(tmp_path: Path) -> None:
    """A busy process does not write for every prediction."""
    metrics = published(tmp_path, 1, 1.0)
    pool = Pool(tmp_path, 1)
    for moment, total in ((10.0, 2.0), (10.5, 3.0), (11.0, 4.0)):
        metrics.add("loopline_shed_total", 1.0, ("iris", "queue"))
        pool.publish(metrics, moment)
        told = samples(render(merge(Pool(tmp_path).others())))
        assert told[SHED] == (2.0 if moment < 11.0 else total)


def test_a_pool_that_cannot_write_says_so_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a folder there are no sums, but there is still an answer."""
    metrics = published(tmp_path / "missing", 1, 1.0)
    assert "not published" in caplog.text
    assert samples(metrics.render())[SHED] == 1
