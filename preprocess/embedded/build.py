"""Writes the embedded world: corpora, questions, warm-up traces, tokenizer and model, all from one seed.

The same seed gives the same bytes. ``manifest.json`` is written last: a folder that has it is whole.
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


@dataclass(frozen=True, slots=True)
class WorldPaths:
    """Where the parts of a built world stand."""

    root: Path
    corpus: Path
    """Passages of the train world."""
    train: Path
    test: Path
    """Questions about held-out works and people, over the train world's facts."""
    dev_corpus: Path
    dev: Path
    """Questions over the dev world, whose facts hold in no other: choices are tuned on these."""
    clean_corpus: Path
    clean_test: Path
    """Questions over the clean world, whose facts hold in no other: results are reported on these."""
    traces: Path
    model: Path
    """Hugging Face folder of the untrained model and its tokenizer."""
    manifest: Path
    """Counts, sizes and hashes; written last."""

    @classmethod
    def under(cls, root: Path) -> WorldPaths:
        """The layout of a built world; nothing is checked."""
        return cls(
            root=root,
            corpus=root / "corpus.jsonl",
            train=root / "train.jsonl",
            test=root / "test.jsonl",
            dev_corpus=root / "dev" / "corpus.jsonl",
            dev=root / "dev" / "dev.jsonl",
            clean_corpus=root / "clean" / "corpus.jsonl",
            clean_test=root / "clean" / "test.jsonl",
            traces=root / "traces.jsonl",
            model=root / "model",
            manifest=root / "manifest.json",
        )


def build_once(manifest: Path, build: Callable[[], object]) -> None:
    """Build what ``manifest`` ends unless it is there. One process builds, others wait: runs of a grid begin together.

    Raises UserError where nothing can be written.
    """
    if not manifest.exists():  # a finished world may stand where nothing can be written
        with exclusive(manifest.parent, key="", remedy="run it from a folder that can be written"):
            if not manifest.exists():
                build()


def build_world(config: Config) -> WorldPaths:
    """Build everything under ``config.out``, replacing what a build wrote there before."""
    paths = WorldPaths.under(Path(config.out))
    paths.manifest.unlink(missing_ok=True)
    for folder in (paths.dev.parent, paths.clean_test.parent, paths.model):
        folder.mkdir(parents=True, exist_ok=True)

    splits = draw_splits(config.seed, config.dev_questions, config.test_questions)
    style = make_style(config.style)
    tokenizer = tiny_model.train_tokenizer(_tokenizer_texts(splits, style), paths.model)
    framing = make_framing(
        style.framing, tokenizer, system=style.protocol.system, probe=style.protocol.prompt("who wrote it?")
    )
    ends = end_of_turn(style.framing, tokenizer)
    parameters = tiny_model.write_model(paths.model, len(tokenizer), derive_seed(config.seed, "model"), ends=ends)
    traces = draw_traces(draw_warmup(splits, config.seed), config.traces, config.seed, style, framing)
    counts = {
        "corpus.jsonl": write_rows(paths.corpus, _corpus(splits["train"])),
        "train.jsonl": write_rows(paths.train, map(_row, splits["train"].tasks)),
        "test.jsonl": write_rows(paths.test, map(_row, splits["test"].tasks)),
        "dev/corpus.jsonl": write_rows(paths.dev_corpus, _corpus(splits["dev"])),
        "dev/dev.jsonl": write_rows(paths.dev, map(_row, splits["dev"].tasks)),
        "clean/corpus.jsonl": write_rows(paths.clean_corpus, _corpus(splits["clean"])),
        "clean/test.jsonl": write_rows(paths.clean_test, map(_row, splits["clean"].tasks)),
        "traces.jsonl": write_rows(paths.traces, (trace.to_record() for trace in traces)),
    }
    _write_manifest(paths, config, counts, parameters)
    return paths


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
    """Write JSON lines; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def _write_manifest(paths: WorldPaths, config: Config, rows: Mapping[str, int], parameters: int) -> None:
    files = sorted(path for path in paths.root.rglob("*") if path.is_file() and path != paths.manifest)
    manifest = {
        "version": WORLD_VERSION,
        "settings": {key: value for key, value in asdict(config).items() if key != "out"},
        "rows": dict(rows),
        "model_parameters": parameters,
        "sha256": {str(path.relative_to(paths.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    paths.manifest.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
