"""``python -m preprocess.embedded out=DIR seed=0``: build the embedded world and say what was written."""

from __future__ import annotations

import json
from collections.abc import Sequence

from preprocess.embedded.build import MANIFEST, Config, build_world
from verl.config.arguments import parse, run


def main(arguments: Sequence[str]) -> int:
    """Build from ``key=value`` arguments; returns the exit status. Raises UserError."""
    root = build_world(parse(Config, arguments))
    rows = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["rows"]
    print(f"{root}: " + ", ".join(f"{name} {count}" for name, count in rows.items()))
    return 0


if __name__ == "__main__":
    run(main)
