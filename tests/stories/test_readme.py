"""The README does what it says: its files, its commands, its answers; and so do two examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.cli.commands import cli
from tests.servers import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
pytestmark = pytest.mark.usefixtures("server")

ELSEWHERE = ("make", "pip", "loopline serve")
"""Commands that other tests run, or that the test starts in its own way."""


def blocks(kind: str, text: str = README) -> list[str]:
    """The code blocks of one kind."""
    return [body for name, body in BLOCK.findall(text) if name == kind]


def commands(text: str = README) -> list[tuple[str, str]]:
    """Every command of the console blocks, with what it is said to print."""
    found = []
    for body in blocks("console", text):
        for part in body.removeprefix("$ ").split("\n$ "):
            command, _, printed = part.partition("\n")
            found.append((command, printed.strip()))
    return found


def pattern(printed: str) -> re.Pattern[str]:
    """What is printed as a pattern: ids differ, and an ellipsis stands for anything."""
    parts = [".*?".join(map(re.escape, part.split("…"))) for part in UUID.split(printed)]
    return re.compile(f"({UUID.pattern})".join(parts), re.DOTALL)


@pytest.fixture(scope="module")
def server(session_dir: Path, free_ports: Callable[[int], list[int]]) -> Iterator[Server]:
    """The README's application, served in a folder with the README's table."""
    folder = session_dir / "readme"
    folder.mkdir()
    shutil.copy(ROOT / "examples" / "sales" / "sales.csv", folder)
    (folder / "app.py").write_text(blocks("python")[0], "utf-8")
    server = Server(folder, free_ports(1)[0], "app.py")
    server.start("/readyz")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shell(server: Server) -> Callable[[str], str]:
    """A function that runs a command of the README in that folder, against that server."""
    programs = server.folder / "bin"
    programs.mkdir()
    script = programs / "loopline"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loopline "$@"\n', "utf-8")
    script.chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "LOOPLINE_DATA_DIR": str(server.data),
        "URL": server.url,
    }

    def run(command: str) -> str:
        command = command.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        command = re.sub(r"\bcurl ", "curl --silent --show-error --fail-with-body ", command)
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=server.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def test_first_code_comes_early() -> None:
    """Whoever opens the README sees code on the first screen."""
    lines = README.splitlines()
    assert next(n for n, line in enumerate(lines, 1) if line.startswith("```")) < 30
    assert "badge" not in README


def test_readme_from_top_to_bottom(server: Server, shell: Callable[[str], str]) -> None:
    """Every command prints what it is said to; then the Python lines."""
    real: dict[str, str] = {}
    ran = 0
    for command, printed in commands():
        if command.startswith(ELSEWHERE):
            continue
        for written, made in real.items():
            command = command.replace(written, made)
        answer = shell(command)
        found = pattern(printed).match(answer.strip())
        assert found, f"{command}\nis said to print\n{printed}\nand printed\n{answer}"
        for written, made in zip(UUID.findall(printed), found.groups(), strict=True):
            assert real.setdefault(written, made) == made
        ran += 1
    assert ran >= 9
    run_snippet(server)


def run_snippet(server: Server) -> None:
    """Run the Python client's lines against the same server."""
    (snippet,) = [body for body in blocks("python") if "Client(" in body]
    names: dict[str, Any] = {}
    exec(snippet.replace("http://127.0.0.1:8000", server.url), names)
    assert names["answer"].version >= 1
    names["client"].close()


def test_every_command_is_in_the_table() -> None:
    """Nobody has to guess what else there is."""
    for name in cli.commands:
        assert f"`{name}" in README, name


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    """Every file that the README links to is there."""
    assert (ROOT / path).exists()


def test_example_sales(tmp_path: Path, shell: Callable[[str], str]) -> None:
    """The commands of the sales example, without a server."""
    shutil.copytree(ROOT / "examples" / "sales", tmp_path / "sales")
    for command, _ in commands((tmp_path / "sales" / "README.md").read_text("utf-8")):
        shell(f"cd '{tmp_path}/sales' && LOOPLINE_DATA_DIR=data {command}")


def test_example_iris(tmp_path: Path, free_port: int, shell: Callable[[str], str]) -> None:
    """The application file of the iris example, as its README calls it."""
    folder = tmp_path / "iris"
    shutil.copytree(ROOT / "examples" / "iris", folder)
    iris = Server(folder, free_port, "app.py")
    iris.start("/readyz")
    try:
        ((_, _), (command, _)) = commands((folder / "README.md").read_text("utf-8"))
        told = shell(f"LOOPLINE_DATA_DIR='{iris.data}' {command} --json")
        assert '"prediction":"setosa"' in told
        assert '"versicolor":' in told
    finally:
        iris.stop()
