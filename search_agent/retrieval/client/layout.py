"""Which addresses hold what: replicas of one corpus, or shards that together are one.

Each server says in ``/info`` which shard of how many it is, and the fingerprint of the whole. Addresses of one shard
are replicas and take turns; the answers of all shards are merged. Shards are consecutive ranges of the corpus and share
the statistics of the whole, so that merging by score, ties in the order of shards, is exactly the answer of one server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_agent.retrieval.types import Document
from verl.errors import InfrastructureError, UserError

MAX_SHARDS = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """The addresses of each shard, in shard order, and what all of them serve."""

    shards: tuple[tuple[str, ...], ...]
    fingerprint: str | None
    """None for servers of others, which have no ``/info``."""


def manifest_of(reply: Any) -> dict[str, Any] | None:
    """What ``/info`` said if it is a manifest of ours; None: a server of others, whatever it says there."""
    if not isinstance(reply, dict) or not isinstance(reply.get("fingerprint"), str):
        return None
    shards, shard = reply.get("shards", 1), reply.get("shard", 0)
    if not isinstance(shards, int) or not isinstance(shard, int) or not 0 <= shard < shards <= MAX_SHARDS:
        return None
    return reply


def arrange(infos: Mapping[str, Mapping[str, Any] | None], unreachable: Sequence[str] = ()) -> Layout:
    """Group addresses by the shard that each says it is (None: a server without ``/info``).

    Addresses that could not be asked are taken for replicas where there is one shard. Raises UserError if servers
    disagree about what they serve, InfrastructureError if a shard has no address.
    """
    fingerprints = {None if info is None else info["fingerprint"] for info in infos.values()}
    counts = {1 if info is None else info.get("shards", 1) for info in infos.values()}
    if len(fingerprints) != 1 or len(counts) != 1:
        raise UserError(f"urls: {', '.join(infos)} do not serve the same corpus, back end and shards; see each /info")
    groups: list[list[str]] = [[] for _ in range(counts.pop())]
    for url, info in infos.items():
        groups[0 if info is None else info.get("shard", 0)].append(url)
    if len(groups) == 1:
        groups[0].extend(unreachable)
    missing = [number for number, urls in enumerate(groups) if not urls]
    if missing:
        raise InfrastructureError(f"no address serves shard {missing} of {len(groups)}; asked {', '.join(infos)}")
    return Layout(tuple(map(tuple, groups)), fingerprints.pop())


def merge(parts: Sequence[tuple[Document, ...]], k: int) -> tuple[Document, ...]:
    """The k best of what each shard found; ties go to the earlier shard, within a shard they keep their order.

    A server that gave more than it was asked for is cut: its count is no more trusted than the rest of its reply.
    """
    if len(parts) == 1:
        return parts[0][:k]
    return tuple(sorted((doc for part in parts for doc in part), key=lambda doc: -doc.score)[:k])
