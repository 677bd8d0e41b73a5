"""Writes a world of ``worlds``: corpus or database, questions, warm-up traces, tokenizer and model, all from one seed.

corpus.jsonl                           passages or articles; a schema where the world is a database
library.sqlite                         the database
train.jsonl  dev.jsonl  test.jsonl     questions
traces.jsonl  model/                   what the teacher wrote; the untrained model and its tokenizer
manifest.json                          counts; written last: a folder that has it is whole
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preprocess.embedded import tiny_model
from preprocess.embedded.build import MANIFEST, write_rows
from preprocess.queries.spelling import second_spellings
from preprocess.queries.worlds import Kind, QueryWorld, draw
from search_agent.protocols import deepretrieval
from verl.data.tasks import Task
from verl.seeds import derive_seed
from verl.trajectory import Trajectory

WORLD_VERSION = 2
"""Raised whenever the same settings begin to give other bytes."""
DATABASE = "library.sqlite"


def build_query_world(root: Path, kind: Kind, seed: int, questions: Mapping[str, int], traces: int) -> None:
    """Build everything under ``root``, replacing what a build wrote there before."""
    (root / MANIFEST).unlink(missing_ok=True)
    (root / "model").mkdir(parents=True, exist_ok=True)
    world = draw(kind, seed, questions)
    protocol = deepretrieval.build(deepretrieval.Config(family="sql_short" if kind == "database" else "short"))
    tokenizer = tiny_model.train_tokenizer(_texts(world, protocol), root / "model", vocabulary=3072)
    tiny_model.write_model(root / "model", len(tokenizer), derive_seed(seed, "model"))
    if world.tables:
        write_database(root / DATABASE, world.tables)
    rng = random.Random(derive_seed(seed, "traces"))
    drawn = [rng.choice(world.train) for _ in range(traces)]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    counts = {
        split: write_rows(root / f"{split}.jsonl", (_row(task, root / DATABASE) for task in tasks))
        for split, tasks in (("train", world.train), ("dev", world.dev), ("test", world.test))
    }
    counts["corpus"] = write_rows(root / "corpus.jsonl", world.corpus or _schema(world))
    counts["traces"] = write_rows(
        root / "traces.jsonl", (record(task, world.teach(task, rng), protocol, encode).to_record() for task in drawn)
    )
    (root / MANIFEST).write_text(json.dumps({"version": WORLD_VERSION, "rows": counts}, indent=2) + "\n")


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


def _row(task: Task, database: Path) -> dict[str, Any]:
    metadata = dict(task.metadata)
    if "sql" in metadata:
        metadata["db_path"] = str(database.resolve())
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
