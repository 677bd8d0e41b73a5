"""Data plug-in: the embedded world's questions with their documents in the prompt, and a scripted teacher's answers.

The documents of a question are what BM25 finds for each of its hops. The teacher reasons over them, and errs now and
then: it takes the passage beside the right one. Facts of the clean test hold in no world that is taught.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.embedded import tiny_model
from preprocess.embedded.build import MANIFEST, Sizes, build_once, write_rows
from preprocess.embedded.facts import World
from preprocess.embedded.search import retriever
from preprocess.embedded.splits import Split as Drawn
from preprocess.embedded.splits import draw_splits, draw_warmup
from search_agent.data.source import Source, Split
from search_agent.protocols.rare import open_book
from search_agent.retrieval.types import Document
from verl.data.tasks import Task
from verl.seeds import derive_seed

WORLD_VERSION = 1
"""Raised whenever the same settings begin to give other bytes."""
ERRS = {1: 0.15, 2: 0.3}
"""How often the teacher takes the wrong passage, by hops: less than half, so that the likeliest answer is right, and
often enough that answers drawn at random leave something to prefer."""
Retrieve = Callable[[str], Sequence[Document]]


@dataclass(frozen=True)
class Config(Sizes):
    """What is shown and taught, and how much of it."""

    documents: bool = True
    """Whether prompts hold the documents; false is the same world and teacher, closed-book."""
    labelled: bool = False
    """Whether traces say if they are right, for ``warmup.loss.name=kto``."""
    traces_fraction: float = 1.0
    """Share of the traces that is learned from, drawn by ``seed``; a smaller share is part of every larger one."""


def build(config: Config, *, out: Path, seed: int) -> Source:
    """Build the world unless it stands in ``out`` already."""
    root = out / f"reading-v{WORLD_VERSION}-{'open' if config.documents else 'closed'}-{seed}-{config.name}"
    build_once(root / MANIFEST, lambda: build_world(root, config, seed))
    train, dev, test = (Split(root / f"{name}.jsonl", prompts=True) for name in ("train", "dev", "test"))
    traces = root / ("labelled.jsonl" if config.labelled else "traces.jsonl")
    return Source(train, dev, test, model=root / "model", traces=traces, traces_fraction=config.traces_fraction)


def build_world(root: Path, config: Config, seed: int) -> None:
    """Write questions, what the teacher says, tokenizer and model; ``manifest.json`` is last."""
    (root / "model").mkdir(parents=True, exist_ok=True)
    drawn = draw_splits(seed, config.dev_questions, config.test_questions)
    taught = list(teach(draw_warmup(drawn, seed), config.traces, config.documents, seed))
    splits = {"train": drawn["train"], "dev": drawn["dev"], "test": drawn["clean"]}
    rows = {name: _rows(split, config.documents, seed) for name, split in splits.items()}
    # Both kinds of prompt, so that one tokenizer and one model serve with documents and without.
    read = [row["prompt"] for shown in (True, False) for split in splits.values() for row in _rows(split, shown, seed)]
    texts = [*read, *(row["predict"] for row in taught)]
    tokenizer = tiny_model.train_tokenizer(texts, root / "model")
    tokenizer.chat_template = None  # a prompt is a text, and an answer ends with the token that ends a text
    tokenizer.save_pretrained(str(root / "model"))
    (root / "model" / "chat_template.jinja").unlink(missing_ok=True)
    tiny_model.write_model(root / "model", len(tokenizer), derive_seed(seed, "model"))
    counts = {f"{name}.jsonl": write_rows(root / f"{name}.jsonl", found) for name, found in rows.items()}
    counts["labelled.jsonl"] = write_rows(root / "labelled.jsonl", taught)
    bare = ({key: row[key] for key in ("instruction", "predict")} for row in taught)
    counts["traces.jsonl"] = write_rows(root / "traces.jsonl", bare)
    (root / MANIFEST).write_text(json.dumps({"version": WORLD_VERSION, "rows": counts}, indent=2) + "\n")


def teach(splits: Sequence[Drawn], count: int, shown: bool, seed: int) -> Iterator[dict[str, Any]]:
    """``count`` rows of ``instruction``, ``predict`` and ``label``, each split and task as often as any other."""
    rng, written = random.Random(derive_seed(seed, "traces")), 0
    for number, split in enumerate(splits, start=1):
        retrieve = retriever(split.world)
        while wanted := count * number // len(splits) - written:
            for task in rng.sample(split.tasks, min(len(split.tasks), wanted)):
                documents = documents_of(task, split.world, retrieve, rng)
                text, answer = answer_of(task, split.world, documents, rng)
                prompt = open_book(as_text(documents) if shown else "", task.question, "")
                yield {"instruction": prompt, "predict": text, "label": answer in task.golden_answers}
                written += 1


def documents_of(task: Task, world: World, retrieve: Retrieve, rng: random.Random) -> list[Document]:
    """What is found for each hop, each passage once, in an order that says nothing."""
    found = {document.id: document for hop in hops(task, world) for document in retrieve(hop)}
    return rng.sample(list(found.values()), len(found))


def hops(task: Task, world: World) -> list[str]:
    """The names whose passages lead to the answer."""
    subject: str = task.metadata["subject"]
    return [subject, world.author[subject]] if task.metadata["kind"] == "bridge" else [subject]


def answer_of(task: Task, world: World, documents: Sequence[Document], rng: random.Random) -> tuple[str, str]:
    """What the teacher says, and its answer; where it errs it takes a passage beside the last one it needs."""
    needed = hops(task, world)
    beside = [document for document in documents if document.title not in needed]
    read = list(needed)
    if beside and rng.random() < ERRS[len(needed)]:
        read[-1] = rng.choice(beside).title
    said: Mapping[str, str] = {document.title: document.text for document in documents}
    answer = {**world.neighbour, **world.birthplace, **world.author}[read[-1]]
    thought = " ".join(said[title] for title in read)
    return f"<think> {thought} </think>\n<answer> {answer} </answer>", answer


def as_text(documents: Sequence[Document]) -> str:
    """One numbered line a passage."""
    return "\n".join(f"Doc {number}: {document.text}" for number, document in enumerate(documents, start=1))


def _rows(split: Drawn, shown: bool, seed: int) -> list[dict[str, Any]]:
    rng, retrieve = random.Random(derive_seed(seed, "documents")), retriever(split.world)
    found = []
    for task in split.tasks:
        documents = documents_of(task, split.world, retrieve, rng)
        prompt = open_book(as_text(documents) if shown else "", task.question, "")
        row = {"id": task.id, "question": task.question, "prompt": prompt}
        found.append({**row, "golden_answers": list(task.golden_answers), "metadata": dict(task.metadata)})
    return found
