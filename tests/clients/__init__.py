"""Other people's clients, unmodified, each in an environment of its own under `.clients`.

`make clients` installs them: a virtual environment for each `NAME.txt` here, and the packages of
each `NAME/package.json`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HOME = HERE.parents[1] / ".clients"


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


def install() -> None:
    """Install every client that is not there yet, or that is wanted differently by now."""
    for wanted in sorted(HERE.glob("*.txt")):
        home, text = HOME / wanted.stem, wanted.read_text("utf-8")
        if not _installed(home, text):
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", wanted]
            subprocess.run(pip, check=True)
            (home / ".installed").write_text(text, "utf-8")
    for wanted in sorted(HERE.glob("*/package.json")):
        home, text = HOME / wanted.parent.name, wanted.read_text("utf-8")
        if shutil.which("npm") is None:
            print(f"npm is not here, so neither is the client {home.name}", file=sys.stderr)
        elif not _installed(home, text):
            shutil.copytree(wanted.parent, home, dirs_exist_ok=True)
            npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(npm, cwd=home, check=True)
            (home / ".installed").write_text(text, "utf-8")


def _installed(home: Path, text: str) -> bool:
    stamp = home / ".installed"
    print(f"client {home.name}", flush=True)
    return stamp.exists() and stamp.read_text("utf-8") == text


if __name__ == "__main__":
    install()
