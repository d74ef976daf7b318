"""What every test gets: marks by folder, strict skips in CI, and a check on stray processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FOLDERS = {folder.name for folder in TESTS.iterdir() if folder.is_dir()}
# How fast a shared machine makes up examples is no property of what is tested.
settings.register_profile("shared", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
ALLOWED_SKIPS = ("needs macOS", "needs Windows")
HELPERS = ("resource_tracker", "forkserver")  # multiprocessing keeps these for the whole session.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)


def _forbidden(skip: object) -> str | None:
    """Say why a skip is a failure here, or None where skipping is fine."""
    reason = str(skip[-1] if isinstance(skip, tuple) else skip).removeprefix("Skipped: ")
    if not os.environ.get("LOOPLINE_FORBID_SKIPS") or reason.startswith(ALLOWED_SKIPS):
        return None
    return f"skips are forbidden here (LOOPLINE_FORBID_SKIPS), and this one said: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        complaint = _forbidden(report.longrepr)
        if complaint:
            report.outcome, report.longrepr = "failed", complaint
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        complaint = _forbidden(report.longrepr)
        if complaint:
            report.outcome, report.longrepr = "failed", complaint
    return report


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Keep the settings of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LOOPLINE_")]:
            if name != "LOOPLINE_FORBID_SKIPS":
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def no_stray_children() -> Iterator[None]:
    """Fail a test that ends while a process it started still runs; fixtures of wider scope may."""
    before = set(psutil.Process().children())
    yield
    started = [child for child in psutil.Process().children() if child not in before]
    _, alive = psutil.wait_procs(started, timeout=3 if started else 0)
    strays = {child: line for child in alive if (line := _command(child))}
    for child in strays:
        child.kill()
    psutil.wait_procs(list(strays), timeout=3)
    assert not strays, f"the test left processes behind: {list(strays.values())}"


def _command(process: psutil.Process) -> str:
    """The command line of a process that counts as a stray, or an empty text."""
    try:
        line = " ".join(process.cmdline())
        gone = process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return ""
    return "" if gone or any(helper in line for helper in HELPERS) else line


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets that lies beside a developer's checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One temporary folder for what fixtures of wider scope write."""
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """A function that picks so many different ports free on the loopback address."""

    def pick(count: int) -> list[int]:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return [each.getsockname()[1] for each in sockets]

    return pick


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    """One port that is free on the loopback address."""
    return free_ports(1)[0]
