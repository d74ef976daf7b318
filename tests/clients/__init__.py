"""Other people's clients, unmodified, each in an environment of its own under `.clients`.

`make clients` installs them: a virtual environment for each `NAME.txt` here, the packages of each
`NAME/package.json`, here or in the examples, and the program of each example in Go.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HOME = HERE.parents[1] / ".clients"
EXAMPLES = HERE.parents[1] / "examples"


def python(name: str) -> Path:
    """The interpreter of the environment that holds a client; skips the test where it is not."""
    found = HOME / name / "bin" / "python"
    if not (HOME / name / ".installed").exists():
        pytest.skip(f"needs the client {name}: run `make clients`")
    return found


def node(name: str) -> Path:
    """The folder with the `node_modules` of a client; skips the test where it is not."""
    found = HOME / name
    if shutil.which("node") is None or not (found / ".installed").exists():
        pytest.skip(f"needs Node.js and the client {name}: run `make clients`")
    return found


def go(name: str) -> Path:
    """The program that an example in Go was built into; skips the test where it is not."""
    stamp = HOME / name / ".installed"
    if not stamp.exists() or stamp.read_text("utf-8") != go_sources(name):
        pytest.skip(f"needs Go and the client {name} as it is now: run `make clients`")
    return HOME / name / name


def go_sources(name: str) -> str:
    """All that an example in Go is built from."""
    kinds = (".go", ".mod", ".sum")
    files = sorted(path for path in (EXAMPLES / name).rglob("*") if path.suffix in kinds)
    return "".join(path.read_text("utf-8") for path in files)
