"""``python -m search_agent.viewer RUN [RUN ...]``: write one HTML file to look at; ``--serve`` shows it on loopback.

The file needs no network and no server. ``out=FILE`` says where it goes (``RUN/viewer.html``); ``port=`` is for
``--serve``. Runs are shown together, and question by question beside each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from search_agent.console.command import run_command, words_and_options
from search_agent.viewer.document import static_page
from search_agent.viewer.pack import Packed, pack
from search_agent.viewer.runs import names_of, read_run
from verl.durable import UNFINISHED
from verl.errors import UserError

MAX_BYTES = 60 << 20
"""Above this a browser takes too long to open a file."""
USAGE = "write: python -m search_agent.viewer RUN [RUN ...] [out=FILE] [--serve [port=PORT]]"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or serve it until it is stopped."""
    runs, options, serve = read_arguments(arguments)
    packed = pack([read_run(run, name) for run, name in zip(runs, names_of(runs), strict=True)])
    if not packed.blocks:
        raise UserError(f"{runs[0]}: its files hold no trajectories: nothing to show")
    if serve:
        return _serve(packed, int(options.get("port", "0")))
    path = Path(options.get("out", runs[0] / "viewer.html"))
    size = write_page(packed, path)
    print(f"{len(packed.index['columns']['run']):,} episodes, {size / 2**20:.1f} MiB: {path}")
    return 0


def read_arguments(arguments: Sequence[str]) -> tuple[list[Path], dict[str, str], bool]:
    """Runs, ``key=value`` options, and whether to serve. Raises UserError on anything else."""
    words, options = words_and_options(arguments, ("out", "port", "--serve"), USAGE)
    runs = [Path(word) for word in words if word != "--serve"]
    if not runs:
        raise UserError(f"name a run; {USAGE}")
    if not options.get("port", "0").isdecimal():
        raise UserError(f"port={options['port']}: write a number; {USAGE}")
    return runs, options, "--serve" in words


def write_page(packed: Packed, path: Path) -> int:
    """Write the file whole or not at all; its size in bytes. Raises UserError where it would be too large to open."""
    unfinished = path.with_name(path.name + UNFINISHED)
    if packed.size * 4 // 3 > MAX_BYTES:
        raise UserError(
            f"the page would have {packed.size * 4 // 3 >> 20} MiB, and {MAX_BYTES >> 20} are what a browser opens "
            "quickly: write --serve"
        )
    with unfinished.open("w", encoding="utf-8") as file:
        for part in static_page(packed):
            file.write(part)
    unfinished.replace(path)
    return path.stat().st_size


def _serve(packed: Packed, port: int) -> int:
    from search_agent.viewer.serve import make_server

    with make_server(packed, port) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], help_of="viewer"))
