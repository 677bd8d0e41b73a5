"""Who may ask: everybody on this machine, and whoever holds the token elsewhere."""

from __future__ import annotations

import hmac
import ipaddress
import os

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


def allows(authorization: str | None, value: str) -> bool:
    """Whether a request with this ``Authorization`` header may be answered where ``value`` is the token."""
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {value}".encode())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
