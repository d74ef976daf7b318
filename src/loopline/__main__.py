"""`python -m loopline` is the command line."""

from __future__ import annotations

from loopline.cli import main

if __name__ == "__main__":
    main()
