"""``python -m structprune``: the command line."""

from __future__ import annotations

from structprune.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
