"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.errors import CODES
from loopline.settings import Settings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "loopline"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_proto" not in path.parts)
BUDGET = {
    "core": 5500,
    "adapters": 3000,
    "backends": 2500,
    "cli and client": 1200,
    "dashboard": 1500,
    "testing": 1200,
}
# These rooms are over their budget. They may shrink towards it, and not grow.
CEILING = {"core": 11_050, "backends": 4_400, "cli and client": 2_500, "testing": 1_750}
SPEAKING = ("cli", "demo")
IMPORTED_AS = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "grpcio-status": "grpc_status",
    "protobuf": "google",
    "scikit-learn": "sklearn",
}
OWN_BASES = {"Protocol", "Record", "msgspec.Struct", "StrEnum"}
NAMED_TO_UVICORN = {"httptools", "uvloop", "websockets"}

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    """A file as a reader of a failing test wants to see it."""
    return path.relative_to(PACKAGE).as_posix()


def tree_of(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_text("utf-8"))


def room_of(path: Path) -> str:
    """The room whose budget a file's lines count against."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if first in ("cli", "client", "demo"):
        return "cli and client"
    return first if first in BUDGET else "core"


def test_modules_are_short() -> None:
    """No module is longer than 700 lines."""
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 700} == {}


def test_functions_are_short() -> None:
    """No function is longer than 80 lines."""
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= 80
    ]
    assert not long


def test_rooms_keep_their_budget() -> None:
    """A room keeps its budget, or else the ceiling that it may only come down from."""
    lines: Counter[str] = Counter()
    for path in FILES:
        lines[room_of(path)] += len(path.read_text("utf-8").splitlines())
    limits = BUDGET | CEILING
    assert {room: count for room, count in lines.items() if count > limits[room]} == {}


def test_nothing_is_left_for_later() -> None:
    """No note to ourselves stays in the source; what is left to do is an issue."""
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [name_of(path) for path in FILES if marks.search(path.read_text("utf-8"))] == []


def test_only_the_command_line_prints() -> None:
    """Everything else logs, or returns what it has to say."""
    printing = [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        if not name_of(path).startswith(SPEAKING)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert not printing


def public(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, Documented]]:
    """Walk the public classes, functions and methods of a body.

    Methods of a class that refines one of somebody else's are explained there.
    """
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield f"{owner}{node.name}", node
            if isinstance(node, ast.ClassDef) and {ast.unparse(b) for b in node.bases} <= OWN_BASES:
                yield from public(node.body, f"{node.name}.")


def specified() -> set[str]:
    """Method names whose docstring stands in a contract, where implementations leave it."""
    homes = [path for path in FILES if name_of(path) in ("contracts.py", "model.py", "child.py")]
    return {
        name.partition(".")[2]
        for path in homes
        for name, node in public(tree_of(path).body)
        if "." in name and ast.get_docstring(node)
    }


def test_public_names_explain_themselves() -> None:
    """Every public module, class, function and method has a docstring."""
    known = specified()
    mute = [
        f"{name_of(path)} {name}"
        for path in FILES
        if "migrations" not in path.parts
        for name, node in [("", tree_of(path)), *public(tree_of(path).body)]
        if not ast.get_docstring(node) and name.partition(".")[2] not in known
    ]
    assert not mute, "\n".join(mute)


@pytest.mark.parametrize("code", CODES)
def test_error_code_is_documented(code: str) -> None:
    """Whoever meets a code finds it in the reference."""
    assert f"`{code}`" in (ROOT / "docs/reference/errors.md").read_text("utf-8")


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_setting_is_documented(name: str) -> None:
    """Whoever wants to change something finds it in the reference."""
    assert f"`{name}`" in (ROOT / "docs/reference/settings.md").read_text("utf-8")


def declared(project: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The importable names of the base dependencies, and of those with the extras."""
    base = project["dependencies"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]

    def names(lines: list[str]) -> set[str]:
        found = {re.split(r"[^\w-]", line, maxsplit=1)[0].lower() for line in lines}
        return {IMPORTED_AS.get(name, name) for name in found}

    return names(base), names(base + extras)


def test_imports_and_dependencies_agree() -> None:
    """What the source imports is declared, and what everybody has to install is imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    imported = {
        name.partition(".")[0]
        for path in FILES
        for node in ast.walk(tree_of(path))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    base, everything = declared(project)
    assert imported - sys.stdlib_module_names - {"loopline"} <= everything
    assert base - imported <= NAMED_TO_UVICORN
