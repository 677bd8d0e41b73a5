"""``python -m preprocess.rare set=pubmedqa source=DIR out=DIR``: build a set and say what went in and out."""

from __future__ import annotations

from collections.abc import Sequence

from preprocess.rare.build import Config, build_set
from verl.config.arguments import parse, run


def main(arguments: Sequence[str]) -> int:
    """Build from ``key=value`` arguments; returns the exit status."""
    config = parse(Config, arguments)
    report = build_set(config)
    for way in ("read", "written"):
        print(f"rows {way}: " + ", ".join(f"{name} {rows}" for name, rows in report[way].items()))
    for each in report["dropped"]:
        print(f"left out: {each['split']} {each['rows']} rows: {each['reason']}")
    print(f"written to {config.out}; every dropped row stands in dropped.jsonl")
    return 0


if __name__ == "__main__":
    run(main)
