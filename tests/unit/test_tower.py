"""The import tower: every module imports only from what stands before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "loopline"

# A name stands for a module or for a whole package; `*` is a package's remaining modules.
TOWER = """
    errors records contracts settings fields rows codecs connectors inference schema facts child
    access metrics hooks natives folding recipes features formulas builtin model artifacts scoring
    policy join gate training registry tuning replay scripts asks serving readings loop worker
    keeper client adapters.status adapters.lane adapters.* backends.* opening dashboard app
    supervisor demo cli __main__ testing
""".split()
NEVER_SEEN = {"adapters": ("backends",), "backends": ("adapters", "serving", "loop")}
# Adapters and backends that their siblings may import, and why. Modules whose names begin with
# the same word, like `store` and `store_jobs`, are parts of one sibling.
SHARED = {
    "adapters.status": "the one table from error code to each protocol's status",
    "adapters.lane": "the fast lane that HTTP adapters hang their routes on",
    "adapters.inference": "the tensors of the Open Inference Protocol, over HTTP and gRPC",
    "adapters.grpc_messages": "the .proto text, one form of the contract that HTTP hands out",
    "backends.encoding": "how records become columns and log rows, whoever writes them",
    "backends.tables": "the tables that the store and its migrations speak about",
    "backends.database": "the connections that the log and the store open alike",
    "backends.sqlite": "the log that the handover's keeper end writes to",
}
HEAVY = {"numpy", "pandas", "scipy", "sklearn"}
SPREAD = HEAVY | {"sqlalchemy", "msgspec"}
LIGHT = """
    errors records contracts settings codecs schema access join policy scoring backends.sqlite
    backends.store keeper
""".split()


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without the package's own."""
    paths = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {
        ".".join(part for part in name.parts if part != "__init__"): path
        for name, path in paths.items()
    }


def place(module: str) -> int:
    """The height of a module in the tower; a module that has none is an error."""
    folder = module.partition(".")[0]
    for name in (module, f"{folder}.*", folder):
        if name in TOWER:
            return TOWER.index(name)
    raise LookupError(f"{module} has no place in the tower")


def imports(path: Path) -> set[str]:
    """The full dotted names that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports."""
    names = {name.removeprefix("loopline.") for name in imports(path) if "loopline." in name}
    return {name if name in known else name.rpartition(".")[0] or name for name in names}


def refusal(module: str, target: str) -> str | None:
    """Say why `module` may not import `target`, or None where it may."""
    folder, other = module.partition(".")[0], target.partition(".")[0]
    if other in NEVER_SEEN.get(folder, ()):
        return f"{folder} never see {other}"
    if folder != other:
        return None if place(target) < place(module) else "imports point down"
    one = module.partition("_")[0] == target.partition("_")[0]
    if one or folder not in NEVER_SEEN or target in SHARED or ".migrations" in module:
        return None
    return "siblings never see each other"


def test_every_module_has_a_place() -> None:
    """A new module is put into the tower before anything else happens to it."""
    for module in filter(None, modules()):
        place(module)


def test_imports_point_down() -> None:
    """No module imports one above it, nor a sibling adapter or backend."""
    known = modules()
    wrong = [
        f"{module} imports {target}: {reason}"
        for module, path in known.items()
        for target in ours(path, known) - {"__version__"}
        if module and (reason := refusal(module, target))
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_cycle() -> None:
    """Not even the parts of one sibling import each other in a ring."""
    known = modules()
    graph = {module: ours(path, known) - {module} for module, path in known.items() if module}
    TopologicalSorter(graph).prepare()


def test_third_party_library_has_one_home() -> None:
    """Swapping a library out touches one module, the scientific stack and msgspec excepted."""
    homes = defaultdict(set)
    for module, path in modules().items():
        for library in {name.partition(".")[0] for name in imports(path)}:
            if not module.startswith(("testing", "backends.migrations")):
                homes[library].add(module)
    foreign = homes.keys() - sys.stdlib_module_names - SPREAD - {"loopline"}
    spread = {library: sorted(homes[library]) for library in foreign if len(homes[library]) > 1}
    assert not spread


def test_keeper_stays_light() -> None:
    """The keeper and what it needs come without the scientific stack, which weighs 100 MB."""
    wanted = ["loopline", *(f"loopline.{name}" for name in LIGHT if name in modules())]
    code = f"import sys, {', '.join(wanted)}; print(*{HEAVY!r} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout.strip()) == (0, ""), answer.stderr
