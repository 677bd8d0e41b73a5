"""Retrieval servers that others run: whether they are ready, and whether they serve what the run began with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search_agent.config import RunConfig
from verl.errors import InfrastructureError, UserError, noted

if TYPE_CHECKING:
    from verl.trainer.run_folder import RunFolder

READY_TIMEOUT_S = 60.0
"""Time for a server that is just starting; one that loads an index for minutes is to be started first."""
RECORD = "retriever.json"


def address_faults(config: RunConfig) -> list[str]:
    """What ``retriever`` names that is no address."""
    faults: list[str] = []
    if config.retriever_urls:
        with noted(faults):
            replace(config.client, urls=config.retriever_urls)
    return [f"retriever={line.removeprefix('urls: ')}" for line in faults]


async def check_retriever(config: RunConfig, folder: RunFolder) -> None:
    """Wait for servers that others run, and record what they serve. Raises UserError; see ``check_manifest``."""
    if config.retriever_urls:
        manifests = await read_manifests(config, config.retriever_urls)
        check_kind(config.expected_retriever, manifests)
        check_manifest(folder, manifests)


async def read_manifests(
    config: RunConfig, urls: Sequence[str], timeout_s: float = READY_TIMEOUT_S
) -> dict[str, dict[str, Any]]:
    """The manifest of each server by its address, empty for a server of others that has none.

    Waits for each to be ready. Raises UserError that names the first one that is not, or cannot be reached.
    """
    from search_agent.retrieval.client.client import RetrievalClient

    manifests: dict[str, dict[str, Any]] = {}
    for url in urls:
        async with RetrievalClient(replace(config.client, urls=(url,), retries=0)) as client:
            try:
                await client.wait_ready(timeout_s)
                manifests[url] = await client.info()
            except InfrastructureError as error:
                remedy = "start it (bash retrieval_launch.sh corpus=FILE port=N), or correct the address"
                raise UserError(f"retriever={url}: {error}; {remedy}") from error
    return manifests


def check_kind(expected: str | None, manifests: dict[str, dict[str, Any]]) -> None:
    """Raises UserError if a server says that it ranks by something else; one that says nothing is taken at its word."""
    for url, manifest in manifests.items():
        kinds = _kinds(manifest.get("backend"))
        if expected is not None and kinds and expected not in kinds:
            raise UserError(
                f"retriever={url} ranks by {' '.join(kinds)}, and expected_retriever={expected}: serve that (see "
                "docs/recipes.md), or write expected_retriever=null to train on what is served"
            )


def _kinds(backend: Any) -> list[str]:
    """Name and family of a back end; of what a re-ranker stands over, too."""
    if not isinstance(backend, dict):
        return []
    named = [backend[key] for key in ("name", "family") if isinstance(backend.get(key), str)]
    return named + _kinds(backend.get("over"))


def check_manifest(folder: RunFolder, manifests: dict[str, dict[str, Any]]) -> None:
    """Record what is served in the run's folder; on a resume, compare with what was recorded.

    Raises UserError if servers differ from one another, or from the corpus and engine that the run began with.
    """
    prints = {url: manifest.get("fingerprint") for url, manifest in manifests.items()}
    first = next(iter(manifests))
    for url in manifests:
        if prints[url] != prints[first]:
            told = f"{_name(manifests[first])} at {first}, {_name(manifests[url])} at {url}"
            raise UserError(f"retriever: the servers do not serve the same corpus ({told}); give servers of one corpus")
    recorded = folder.read_json(RECORD)
    if recorded is None:
        folder.write_json(RECORD, manifests[first])
    elif recorded.get("fingerprint") != prints[first]:
        raise UserError(
            f"retriever={first} serves {_name(manifests[first])}, this run began with {_name(recorded)} "
            f"(see {folder.path / RECORD}): serve that corpus again, give another run_dir, or write fresh=true"
        )


def _name(manifest: dict[str, Any]) -> str:
    if not manifest:
        return "something without a manifest"
    return f"{manifest.get('corpus')} ({manifest.get('documents')} passages, {str(manifest.get('fingerprint'))[:8]})"
