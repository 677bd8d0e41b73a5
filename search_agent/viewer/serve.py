"""The page on loopback, for runs too large for one file: the browser asks for blocks of episodes as it needs them."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from search_agent.viewer.document import served_page
from search_agent.viewer.pack import Packed

_LOCAL = ("127.0.0.1", "localhost")


def make_server(packed: Packed, port: int = 0) -> ThreadingHTTPServer:
    """A server that answers on this machine only, for this machine's names only; ``serve_forever`` runs it."""
    page = served_page(packed).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of somebody else whose name was made to point here must not read what is shown here.
            if self.headers.get("Host", "").rpartition(":")[0] not in _LOCAL:
                self.send_error(421, "ask for 127.0.0.1")
            elif self.path == "/":
                self._send(page, "text/html; charset=utf-8")
            elif (block := _block(self.path, packed)) is not None:
                self._send(block, "application/octet-stream")
            else:
                self.send_error(404)

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("X-Content-Type-Options", "nosniff"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
                ("X-Frame-Options", "DENY"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the address was printed once."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _block(path: str, packed: Packed) -> bytes | None:
    number = path.removeprefix("/block/")
    if number == path or not (number.isascii() and number.isdecimal()) or len(number) > 9:
        return None
    return packed.blocks[int(number)] if int(number) < len(packed.blocks) else None
