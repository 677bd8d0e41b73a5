"""Who may ask: everybody on this machine, and whoever holds the token elsewhere."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Sequence

from verl.errors import UserError

TOKEN_VARIABLE = "SLEUTH_RETRIEVAL_TOKEN"
"""Environment variable that holds the bearer token, for server and client; never an argument, which others can read."""


def token() -> str | None:
    """The bearer token of this process, None if there is none."""
    return os.environ.get(TOKEN_VARIABLE) or None


def token_headers() -> dict[str, str]:
    """What a client sends with every request."""
    value = token()
    return {} if value is None else {"Authorization": f"Bearer {value}"}


def check_host(host: str) -> None:
    """Raise UserError if others could reach ``host`` and no token keeps them out."""
    if token() is None and not _is_loopback(host):
        raise UserError(
            f"host: others can reach {host}; set {TOKEN_VARIABLE} to a secret for server and clients, or keep 127.0.0.1"
        )


def known_hosts(host: str, more: Sequence[str]) -> frozenset[str]:
    """The names by which a server at ``host`` is asked, none where a token keeps others out.

    A page in a browser of this machine may ask a loopback server under a name of its own (DNS rebinding).
    """
    names = ("localhost", "127.0.0.1", "[::1]", host, *more)
    return frozenset() if token() is not None else frozenset(name.lower() for name in names)


def name_of(host: str) -> str:
    """A ``Host`` header without its port, in lower case."""
    return re.sub(r":\d*$", "", host.strip()).lower()


def allows(authorization: str | None, value: str) -> bool:
    """Whether a request with this ``Authorization`` header may be answered where ``value`` is the token."""
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {value}".encode())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
