"""Writes the embedded world: corpora, questions, warm-up traces, tokenizer and model, all from one seed.

    corpus.jsonl  train.jsonl          passages and questions of the train world
    test.jsonl                         questions about held-out works and people, over the same facts
    dev/corpus.jsonl  dev/dev.jsonl    another world: choices are tuned on it
    clean/corpus.jsonl  clean/test.jsonl    a third one: results are reported on it
    traces.jsonl  model/               warm-up traces; the untrained model and its tokenizer, for Hugging Face
    manifest.json                      counts, sizes and hashes; written last: a folder that has it is whole

The same seed gives the same bytes. The facts of the dev and of the clean world hold in no other.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocess.embedded import facts, tiny_model
from preprocess.embedded.splits import Split, draw_splits, draw_warmup
from preprocess.embedded.styles import Style, StyleName, make_style
from preprocess.embedded.teacher import Behaviour, draw_traces, teach
from search_agent.protocols.framing import end_of_turn, make_framing
from search_agent.retrieval.index.index_files import exclusive
from verl.data.tasks import Task
from verl.errors import within
from verl.seeds import derive_seed

WORLD_VERSION = 3
"""Raised whenever the same settings begin to give other bytes: a world that was kept is then built anew."""


@dataclass(frozen=True)
class Sizes:
    """How much of a world of people, books and cities is built."""

    dev_questions: int = 200
    """Questions over the dev world: enough to choose by, few enough to ask every few steps."""
    test_questions: int = 600
    """Questions over the clean test world: a 95 % interval of 4 points to each side at the widest."""
    traces: int = 9000
    """Warm-up traces, over worlds of their own: 900 steps of 32 see each one three times or so."""

    def __post_init__(self) -> None:
        within(self, 5, 1300, "dev_questions", "test_questions")
        within(self, 5, 100_000, "traces")

    @property
    def name(self) -> str:
        """Part of the name of the world's folder."""
        return f"{self.dev_questions}-{self.test_questions}-{self.traces}"


@dataclass(frozen=True)
class StyledSizes(Sizes):
    """Sizes of the embedded world, and whose world it is."""

    style: StyleName = "autorefine"
    """The protocol that warm-up traces are written in, and that the tokenizer is trained for; keep it that of
    ``protocol``, with ``instruction: short``."""


@dataclass(frozen=True, kw_only=True)
class Config(StyledSizes):
    """What to build and where."""

    out: str
    """Folder to write to; made if it is not there."""
    seed: int = 0
    """Every name, fact, question, trace and weight follows from it."""


MANIFEST = "manifest.json"


def build_once(manifest: Path, build: Callable[[], object]) -> None:
    """Build what ``manifest`` ends unless it is there. One process builds, others wait: runs of a grid begin together.

    Raises UserError where nothing can be written.
    """
    if not manifest.exists():  # a finished world may stand where nothing can be written
        with exclusive(manifest.parent, key="", remedy="run it from a folder that can be written"):
            if not manifest.exists():
                build()


def build_world(config: Config) -> Path:
    """Build everything under ``config.out``, which is returned; what a build wrote there before is replaced."""
    root = Path(config.out)
    (root / MANIFEST).unlink(missing_ok=True)
    (root / "model").mkdir(parents=True, exist_ok=True)
    splits = draw_splits(config.seed, config.dev_questions, config.test_questions)
    style = make_style(config.style)
    tokenizer = tiny_model.train_tokenizer(_tokenizer_texts(splits, style), root / "model")
    framing = make_framing(
        style.framing, tokenizer, system=style.protocol.system, probe=style.protocol.prompt("who wrote it?")
    )
    ends = end_of_turn(style.framing, tokenizer)
    parameters = tiny_model.write_model(root / "model", len(tokenizer), derive_seed(config.seed, "model"), ends=ends)
    traces = draw_traces(draw_warmup(splits, config.seed), config.traces, config.seed, style, framing)
    files: dict[str, Iterable[Mapping[str, Any]]] = {
        "corpus.jsonl": _corpus(splits["train"]),
        "train.jsonl": map(_row, splits["train"].tasks),
        "test.jsonl": map(_row, splits["test"].tasks),
        "dev/corpus.jsonl": _corpus(splits["dev"]),
        "dev/dev.jsonl": map(_row, splits["dev"].tasks),
        "clean/corpus.jsonl": _corpus(splits["clean"]),
        "clean/test.jsonl": map(_row, splits["clean"].tasks),
        "traces.jsonl": (trace.to_record() for trace in traces),
    }
    counts = {name: write_rows(root / name, rows) for name, rows in files.items()}
    _write_manifest(root, config, counts, parameters)
    return root


def _tokenizer_texts(splits: Mapping[str, Split], style: Style) -> Iterable[str]:
    """What a policy reads and writes in every world: names are the same in all, so none is new to the tokenizer."""
    behaviours: tuple[Behaviour, ...] = ("good", "recall")
    yield from ("user\n", "assistant\n") if style.framing == "chat_turns" else ()
    for split in splits.values():
        for passage in facts.passages(split.world):
            yield from style.protocol.observe_results([passage, passage])
        for task in split.tasks:
            yield style.protocol.prompt(task.question)
            if (words := style.protocol.last_call(task.question)) is not None:
                yield words
            for behaviour in behaviours:
                for step in teach(task, split.world, behaviour, random.Random(0)):
                    yield from style.write(step)


def _corpus(split: Split) -> Iterable[dict[str, str]]:
    return (passage.record() for passage in facts.passages(split.world))


def _row(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "question": task.question,
        "golden_answers": list(task.golden_answers),
        "metadata": dict(task.metadata),
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines, the folder too if it must be; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def _write_manifest(root: Path, config: Config, rows: Mapping[str, int], parameters: int) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    manifest = {
        "version": WORLD_VERSION,
        "settings": {key: value for key, value in asdict(config).items() if key != "out"},
        "rows": dict(rows),
        "model_parameters": parameters,
        "sha256": {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
