"""``python -m preprocess.questions source=DIR out=DIR``: build the files and say what went in and out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from preprocess.questions.build import build_files
from preprocess.questions.config import Config
from verl.config.arguments import parse
from verl.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Build from ``key=value`` arguments; returns the exit status."""
    try:
        config = parse(Config, arguments)
        report = build_files(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("rows in:  " + ", ".join(f"{split} {rows}" for split, rows in report["read"].items()))
    for name, sets in report["written"].items():
        print(f"rows out: {name} {sum(sets.values())} ({', '.join(f'{each} {rows}' for each, rows in sets.items())})")
    for each in report["dropped"]:
        print(f"left out: {each['set']}/{each['split']} {each['rows']} rows: {each['reason']}")
    print("\n".join([*report["notes"], f"written to {config.out}; every dropped row stands in dropped.jsonl"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
