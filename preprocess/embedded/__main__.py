"""``python -m preprocess.embedded out=DIR seed=0``: build the embedded world and say what was written."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from preprocess.embedded.build import Config, build_world
from verl.config.arguments import parse
from verl.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Build from ``key=value`` arguments; returns the exit status."""
    try:
        paths = build_world(parse(Config, arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = json.loads(paths.manifest.read_text(encoding="utf-8"))["rows"]
    print(f"{paths.root}: " + ", ".join(f"{name} {count}" for name, count in rows.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
