"""Writes a world of ``worlds``: corpus or database, questions, warm-up traces, tokenizer and model, all from one seed.

``manifest.json`` is written last: a folder that has it is whole.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.embedded import tiny_model
from preprocess.embedded.build import write_rows
from preprocess.queries.spelling import second_spellings
from preprocess.queries.worlds import Kind, QueryWorld, draw
from search_agent.protocols import deepretrieval
from verl.data.tasks import Task
from verl.seeds import derive_seed
from verl.trajectory import Trajectory

WORLD_VERSION = 2
"""Raised whenever the same settings begin to give other bytes."""


@dataclass(frozen=True, slots=True)
class QueryPaths:
    """Where the parts of a built world stand."""

    root: Path

    @property
    def corpus(self) -> Path:
        """Passages or articles; a schema where the world is a database."""
        return self.root / "corpus.jsonl"

    @property
    def database(self) -> Path:
        """The SQLite file that questions are about."""
        return self.root / "library.sqlite"

    def tasks(self, split: str) -> Path:
        """Questions of ``train``, ``dev`` or ``test``."""
        return self.root / f"{split}.jsonl"

    @property
    def traces(self) -> Path:
        """What the teacher wrote."""
        return self.root / "traces.jsonl"

    @property
    def model(self) -> Path:
        """Hugging Face folder of the untrained model and its tokenizer."""
        return self.root / "model"

    @property
    def manifest(self) -> Path:
        """Counts; written last."""
        return self.root / "manifest.json"


def build_query_world(paths: QueryPaths, kind: Kind, seed: int, questions: Mapping[str, int], traces: int) -> None:
    """Build everything under ``paths.root``, replacing what a build wrote there before."""
    paths.manifest.unlink(missing_ok=True)
    paths.model.mkdir(parents=True, exist_ok=True)
    world = draw(kind, seed, questions)
    protocol = deepretrieval.build(deepretrieval.Config(family="sql_short" if kind == "database" else "short"))
    tokenizer = tiny_model.train_tokenizer(_texts(world, protocol), paths.model, vocabulary=3072)
    tiny_model.write_model(paths.model, len(tokenizer), derive_seed(seed, "model"))
    if world.tables:
        write_database(paths.database, world.tables)
    rng = random.Random(derive_seed(seed, "traces"))
    drawn = [rng.choice(world.train) for _ in range(traces)]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    counts = {
        split: write_rows(paths.tasks(split), (_row(task, paths) for task in tasks))
        for split, tasks in (("train", world.train), ("dev", world.dev), ("test", world.test))
    }
    counts["corpus"] = write_rows(paths.corpus, world.corpus or _schema(world))
    counts["traces"] = write_rows(
        paths.traces, (record(task, world.teach(task, rng), protocol, encode).to_record() for task in drawn)
    )
    paths.manifest.write_text(json.dumps({"version": WORLD_VERSION, "rows": counts}, indent=2) + "\n")


def record(task: Task, text: str, protocol: deepretrieval.DeepRetrieval, encode: Any) -> Trajectory:
    """The episode in which the policy generated ``text``; what it asked for is not carried out."""
    trajectory = Trajectory(task.id, sample=0)
    prompt, opening = protocol.prompt(task.question), protocol.prefill
    trajectory.append_prompt(encode(prompt) + encode(opening), prompt + opening, opening)
    ids = encode(text)
    trajectory.append_generated(ids, text, [0.0] * len(ids), [0] * len(ids), "stop")
    trajectory.outcome = "finished"
    return trajectory


def write_database(path: Path, tables: Mapping[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]) -> None:
    """One SQLite file with text columns."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    with connection:
        for name, (columns, rows) in tables.items():
            connection.execute(f"CREATE TABLE {name} ({', '.join(f'{column} TEXT' for column in columns)})")
            connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' for _ in columns)})", rows)
    connection.close()


def _row(task: Task, paths: QueryPaths) -> dict[str, Any]:
    metadata = dict(task.metadata)
    if "sql" in metadata:
        metadata["db_path"] = str(paths.database.resolve())
    row = {"id": task.id, "question": task.question, "golden_answers": list(task.golden_answers)}
    return {**row, "metadata": metadata}


def _schema(world: QueryWorld) -> Iterable[dict[str, Any]]:
    for name, (columns, _) in world.tables.items():
        yield {"id": name, "contents": f'"{name}"\n{", ".join(columns)}'}


def _texts(world: QueryWorld, protocol: deepretrieval.DeepRetrieval) -> Iterable[str]:
    """What a policy reads and writes; every name in both spellings, so that none is new to the tokenizer."""
    rng = random.Random(0)
    for first, second in second_spellings().items():
        yield from (f" {first}", f" {second}", f'"{first}', f'"{second}', f"({first}", f"({second}")
    for tasks in (world.train, world.dev, world.test):
        for task in tasks:
            yield protocol.prompt(task.question)
            yield world.teach(task, rng)
