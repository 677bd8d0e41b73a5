"""Requests to services of others: pooled, timed, tried again, bounded, and silent about keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
import urllib3

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.index.corpus import parse_row
from verl.errors import InfrastructureError, UserError

MAX_REPLY_BYTES = 16 * 2**20
MAX_CONNECTIONS = 32
RETRIED_STATUSES = (429, 500, 502, 503, 504)
RETRY_AFTER_MAX_S = 10


class Http:
    """Safe to call from several threads."""

    def __init__(self, timeout_s: float, retries: int) -> None:
        again = urllib3.Retry(
            total=retries,
            redirect=0,
            allowed_methods=None,  # a search changes nothing: a POST may be sent again
            status_forcelist=RETRIED_STATUSES,
            backoff_factor=0.2,
            backoff_jitter=0.2,
            retry_after_max=RETRY_AFTER_MAX_S,
            raise_on_status=False,
            raise_on_redirect=False,
        )
        self._pool = urllib3.PoolManager(
            maxsize=MAX_CONNECTIONS, retries=again, timeout=urllib3.Timeout(total=timeout_s), block=True
        )

    def json(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of a reply. Raises InfrastructureError if there is none, or more than ``MAX_REPLY_BYTES``.

        Messages name the host alone: an address may hold a key.
        """
        host = urlsplit(url).netloc
        try:
            reply = self._pool.request(method, url, headers=dict(headers or {}), body=body, preload_content=False)
            try:
                raw = reply.read(MAX_REPLY_BYTES + 1)
            finally:
                reply.close()
        except urllib3.exceptions.HTTPError as error:
            raise InfrastructureError(f"{host} does not answer: {_kind(error)}") from None
        if len(raw) > MAX_REPLY_BYTES:
            raise InfrastructureError(f"{host}: a reply of more than {MAX_REPLY_BYTES} bytes")
        try:
            return reply.status, orjson.loads(raw)
        except orjson.JSONDecodeError:
            text = raw[:100].decode("utf-8", "replace")
            raise InfrastructureError(f"{host}: status {reply.status}, and no JSON: {text!r}") from None


def _kind(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__


def secret(variable: str, key: str) -> str | None:
    """What the environment holds under ``variable``, None where no variable is named.

    Raises UserError if it is named, by the configuration's ``key``, and not set.
    """
    if not variable:
        return None
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"{key}: the environment variable {variable} is not set; export it, or name another")
    return value


def passage_hit(place: int, score: float, row: Mapping[str, Any]) -> Hit:
    """A hit that brings its passage along. Raises InfrastructureError if the row is no passage."""
    try:
        return Hit(place, score, parse_row(row).to_json())
    except ValueError as error:
        raise InfrastructureError(f"the back end holds a row {row.get('id')!r} that is no passage: {error}") from error
