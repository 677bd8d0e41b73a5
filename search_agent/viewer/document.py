"""The page as one file that needs no network and in which nothing that a run holds can act.

All that comes from runs (texts, names, numbers) is base64: it closes no element and is no script. The page's own script
sets texts only. A content security policy allows that one script and style, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from search_agent.viewer.pack import Packed

_SCRIPTS = ("base.js", "charts.js", "filter.js", "table.js", "episode.js", "overview.js", "compare.js", "app.js")


def static_page(packed: Packed) -> Iterator[str]:
    """The whole file, in parts."""
    yield _shell(packed.index, served=False)
    for number, block in enumerate(packed.blocks):
        yield f'<script type="text/plain" id="b{number}">{base64.b64encode(block).decode()}</script>\n'


def served_page(packed: Packed) -> str:
    """The page without its blocks: it asks for them at ``block/<number>``."""
    return _shell(packed.index, served=True)


def _shell(index: dict[str, Any], *, served: bool) -> str:
    folder = files("search_agent.viewer") / "page"
    style = (folder / "page.css").read_text()
    script = "\n".join((folder / name).read_text() for name in _SCRIPTS)
    reached = "'self'" if served else "'none'"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"connect-src {reached}; base-uri 'none'; form-action 'none'"
    )
    text = json.dumps(index, separators=(",", ":")).encode()
    packed = base64.b64encode(gzip.compress(text, compresslevel=6, mtime=0)).decode()
    page = (folder / "page.html").read_text()
    for mark, content in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("INDEX", packed)):
        page = page.replace(f"@{mark}@", content)
    return page


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
