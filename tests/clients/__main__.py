"""`python -m tests.clients` installs the clients."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients import HERE, HOME


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


install()
