"""Runs benches, each in a process of its own: ``python -m bench [--quick] [--record] [name ...] [key=value ...]``.

``--record`` writes ``docs/results/<name>.json``: figures, command, commit, date, load. Without a name, all are run; a
name is the path below ``bench/`` or its last part. Keys go to the benches, for those that take any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.harness import ROOT, Figure, circumstances, parse_figures, table

RESULTS = ROOT / "docs" / "results"


def names(folder: Path = ROOT / "bench") -> list[str]:
    """Every bench: a script in a room of ``bench/`` that makes figures, without its ending."""
    texts = {path: path.read_text() for path in folder.glob("*/*.py")}
    scripts = (path for path, text in texts.items() if "__main__" in text and "Figure" in text)
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in scripts)


def select(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The benches that ``wanted`` names; without any, all but those for a card. SystemExit on a name that fits none."""
    for name in wanted:
        if not any(name in (bench, bench.rpartition("/")[2]) for bench in known):
            raise SystemExit(f"no bench {name}; there are: {', '.join(known)}")
    if not wanted:
        return [bench for bench in known if not bench.startswith("gpu/")]
    return [bench for bench in known if {bench, bench.rpartition("/")[2]} & set(wanted)]


def run(name: str, quick: bool, keys: Sequence[str] = ()) -> tuple[list[Figure], dict[str, object]]:
    """One bench: its figures, none if it failed, and under what circumstances. Its output is shown as it comes."""
    around = circumstances()
    given = [*(["--quick"] if quick else []), *keys]
    command = [sys.executable, "-m", "bench." + name.replace("/", "."), *given]
    began, lines = time.monotonic(), []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    figures = parse_figures("".join(lines))
    if process.returncode not in (0, 1):
        figures = []
    said = " ".join(["bash cmd/bench.sh", name, *given])
    return figures, {"name": name, "command": said, "seconds": round(time.monotonic() - began, 1), **around}


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; returns 1 if any figure or bench fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("name", nargs="*")
    options = parser.parse_args(arguments)
    everything, failed = list[Figure](), list[str]()
    keys = [given for given in options.name if "=" in given]
    chosen = select([name for name in options.name if name not in keys], names())
    for name in chosen:
        print(f"== {name}", flush=True)
        figures, around = run(name, options.quick, keys)
        everything += figures
        if not figures:
            failed.append(name)
        elif options.record:
            path = RESULTS / f"{name.replace('/', '_')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [asdict(figure) for figure in figures]
            path.write_text(json.dumps({**around, "figures": rows}, indent=1) + "\n")
            print(f"recorded in {path.relative_to(ROOT)}")
    if len(chosen) > 1:
        print(f"== all\n{table(everything)}")
    if failed:
        print(f"no figures, see above: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed) or any(figure.holds is False for figure in everything))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
