"""`python -m tests.clients` installs the clients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients import EXAMPLES, HERE, HOME, go_sources


def install() -> None:
    """Install every client that is not there yet, or that is wanted differently by now."""
    for wanted in sorted(HERE.glob("*.txt")):
        home, text = HOME / wanted.stem, wanted.read_text("utf-8")
        if not _installed(home, text):
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", wanted]
            subprocess.run(pip, check=True)
            (home / ".installed").write_text(text, "utf-8")
    for wanted in sorted([*HERE.glob("*/package.json"), *EXAMPLES.glob("*/package.json")]):
        home, text = HOME / wanted.parent.name, wanted.read_text("utf-8")
        if not _installed(home, text) and _has("npm", home):
            passed = shutil.ignore_patterns("node_modules", "package-lock.json")
            shutil.copytree(wanted.parent, home, dirs_exist_ok=True, ignore=passed)
            npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(npm, cwd=home, check=True)
            (home / ".installed").write_text(text, "utf-8")
    for wanted in sorted(EXAMPLES.glob("*/go.mod")):
        home, text = HOME / wanted.parent.name, go_sources(wanted.parent.name)
        if not _installed(home, text) and _has("go", home):
            home.mkdir(parents=True, exist_ok=True)
            build = ["go", "build", "-o", home / home.name, "."]
            without_c = {**os.environ, "CGO_ENABLED": "0"}
            subprocess.run(build, cwd=wanted.parent, env=without_c, check=True)
            (home / ".installed").write_text(text, "utf-8")


def _installed(home: Path, text: str) -> bool:
    stamp = home / ".installed"
    print(f"client {home.name}", flush=True)
    return stamp.exists() and stamp.read_text("utf-8") == text


def _has(program: str, home: Path) -> bool:
    found = shutil.which(program) is not None
    if not found:
        print(f"{program} is not here, so neither is the client {home.name}", file=sys.stderr)
    return found


install()
