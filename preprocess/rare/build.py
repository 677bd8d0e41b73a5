"""Writes a set of RARE as tasks whose prompts hold the documents: ``train.jsonl``, ``dev.jsonl``, ``test.jsonl``.

``dropped.jsonl`` has every row that was left out and why; ``report.json`` is written last, with counts in and out.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from preprocess.embedded.build import write_rows
from preprocess.rare.rank import Rank, by_encoder
from preprocess.rare.sets import SETS, Item, SetName
from search_agent.protocols.rare import open_book
from verl.data.pictures import picture_bytes
from verl.errors import UserError, at_least
from verl.seeds import derive_seed


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m preprocess.rare``."""

    set: SetName
    """Which set; ``generic`` reads ``train.jsonl`` and ``test.jsonl`` of ``id``, ``question``,
    ``documents``, ``options`` and ``answer``."""
    source: str
    """Folder with the set's published files, unpacked."""
    out: str
    """Folder to write to; made if it is not there."""
    embedder: str = "BAAI/llm-embedder"
    """Encoder that ranks the blocks of medqa, pubmedqa and generic: a folder or a hub name. The published one."""
    top: int = 3
    """Blocks that a prompt shows of those that are ranked. 3 as published."""
    dev_rows: int = 100
    """Training rows set apart to choose by; the published program chooses nothing."""
    seed: int = 0
    """Draws the rows of dev."""

    def __post_init__(self) -> None:
        at_least(self, 1, "top", "dev_rows")


def build_set(config: Config, rank: Rank | None = None) -> dict[str, Any]:
    """Build everything under ``config.out`` and return the report. ``rank`` stands in for the encoder.

    Raises UserError if files are missing, or nothing usable is left for one of the three.
    """
    out, data_set = Path(config.out), SETS[config.set]
    kept: dict[str, list[Item]] = {"train": [], "test": []}
    read, dropped, known = Counter[str](), [], set[str]()
    for part, item in data_set.read(Path(config.source)):
        read[part] += 1
        if isinstance(item, Item) and item.id in known:
            item = "its id stands in an earlier row too"
        if isinstance(item, str):
            dropped.append({"split": part, "row": read[part], "reason": item})
            continue
        if isinstance(item, Item) and (reason := _unreadable(item)):
            dropped.append({"split": part, "row": read[part], "reason": reason})
            continue
        known.add(item.id)
        kept[part].append(item)
    dev = set(
        random.Random(derive_seed(config.seed, "dev")).sample(range(n := len(kept["train"])), min(config.dev_rows, n))
    )
    files = {
        "train": [item for place, item in enumerate(kept["train"]) if place not in dev],
        "dev": [item for place, item in enumerate(kept["train"]) if place in dev],
        "test": kept["test"],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").unlink(missing_ok=True)
    write_rows(out / "dropped.jsonl", dropped)
    if empty := [name for name, items in files.items() if not items]:
        raise UserError(f"{config.source}: no usable row is left for {', '.join(empty)}; see {out / 'dropped.jsonl'}")
    if rank is None and data_set.ranked and any(len(item.documents) > 1 for items in kept.values() for item in items):
        rank = by_encoder(config.embedder)
    written = {
        name: write_rows(out / f"{name}.jsonl", (_row(item, config, rank) for item in items))
        for name, items in files.items()
    }
    reasons = Counter((each["split"], each["reason"]) for each in dropped)
    report = {
        "settings": asdict(config),
        "read": dict(read),
        "written": written,
        "dropped": [{"split": split, "reason": reason, "rows": rows} for (split, reason), rows in reasons.items()],
    }
    (out / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return report


def _row(item: Item, config: Config, rank: Rank | None) -> dict[str, Any]:
    shown, data_set = list(item.documents), SETS[config.set]
    if data_set.ranked and rank is not None and len(shown) > 1:
        shown = [item.documents[place] for place in rank(item.text, item.documents)[: config.top]]
    row: dict[str, Any] = {
        "id": item.id,
        "question": item.text,
        "prompt": open_book("\n".join(shown), item.text, data_set.field),
        "golden_answers": [item.gold],
        "metadata": {"data_source": config.set},
    }
    return {**row, "images": [_copied(image, Path(config.out)) for image in item.images]} if item.images else row


def _unreadable(item: Item) -> str:
    """What is wrong with the item's pictures; empty if nothing is."""
    try:
        for image in item.images:
            picture_bytes(image)
    except UserError as error:
        return str(error).partition(": ")[2]
    return ""


def _copied(image: str, out: Path) -> str:
    """Copy a picture below ``out``; returns its path there, by which it is read wherever the folder lies."""
    held, kind = picture_bytes(image)
    name = f"images/{hashlib.blake2b(held, digest_size=12).hexdigest()}.{kind.lower()}"
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(held)
    return name
