"""``python -m preprocess.rare.knowledge taught=FILE model=FOLDER out=DIR``: RARE's preliminary experiment.

Does retrieved text lower the loss on tokens of knowledge more than on tokens of reasoning? A teacher's answer is scored
after the question and 0 to 4 quarters of the documents' characters; its tokens that entities of the documents are
written with count as knowledge, the others as reasoning. Writes ``rows.jsonl``, ``report.json`` and ``loss.png``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.rare import entities as capitalised
from preprocess.rare.entities import Entities
from preprocess.rare.special import REASONING
from search_agent.console.screen import new_picture, save_picture
from search_agent.evaluation.statistics import Interval, mean_t
from search_agent.protocols.framing import encode_data, encode_markup
from search_agent.protocols.rare import closed_book
from verl.config.arguments import parse, run
from verl.config.build import Plugin
from verl.data.load import read_rows
from verl.data.samples import TrainingSample
from verl.data.splice import splice
from verl.errors import UserError, at_least
from verl.learner.config import LearnerConfig

QUARTERS = range(5)
KINDS = ("knowledge", "reasoning")


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m preprocess.rare.knowledge``."""

    taught: str
    """What a teacher wrote: rows of ``instruction``, a prompt of ``preprocess.rare``, and ``predict`` (jsonl)."""
    model: str
    """Folder of the model that scores. Where it has the token ``[REASONING]`` (``preprocess.rare.special``), that
    stands before the answer, as published; else a line break does."""
    out: str
    """Folder to write to."""
    entities: Plugin = field(default_factory=lambda: Plugin(capitalised.__name__, capitalised.Config()))
    """How names are found in documents (``entities.spacy=en_core_web_sm`` as published)."""
    most: int = 100
    """The commonest entities of a row's documents that count. 100 as published."""
    rows: int | None = None
    """Rows that are scored, the first of the file; null is all."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Precision and packing of the pass that scores."""

    def __post_init__(self) -> None:
        at_least(self, 1, "most")


@dataclass(frozen=True)
class Row:
    """A question, its documents, and the answer that is scored."""

    id: str
    question: str
    documents: str
    answer: str


def read(config: Config) -> list[Row]:
    """The rows that show documents and have an answer. Raises UserError if there is none, or one cannot be read."""
    rows = []
    for number, row in read_rows(Path(config.taught)):
        if not isinstance(row, dict):
            raise UserError(f"taught={config.taught}, row {number}: {row}")
        documents, question = closed_book(str(row.get("instruction") or ""))
        if documents and question and isinstance(answer := row.get("predict"), str) and answer.strip():
            rows.append(Row(str(row.get("id", number)), question, documents, answer))
    if not rows:
        raise UserError(f"taught={config.taught}: no answer in it to a prompt that shows documents")
    return rows[: config.rows]


def samples_of(row: Row, tokenizer: Any) -> Iterator[TrainingSample]:
    """The answer after each of the five contexts: its own tokens are the same in all, and alone are scored."""
    marked = REASONING in tokenizer.get_added_vocab()
    answer = encode_data(tokenizer, row.answer)
    for quarters in QUARTERS:
        shown = row.documents[: len(row.documents) * quarters // 4]
        text = f"{row.question}\n{shown}"
        context = list(tokenizer(text, add_special_tokens=True, split_special_tokens=True)["input_ids"])
        yield splice([*context, *encode_markup(tokenizer, REASONING if marked else "\n")], answer)


def knowledge_tokens(row: Row, entities: Entities, most: int, tokenizer: Any) -> set[int]:
    """Ids that the commonest entities of the documents are written with, at the start of a text and after a space."""
    names = [name for name, _ in Counter(entities(row.documents)).most_common(most)]
    return {token for name in names for form in (name, f" {name}") for token in encode_data(tokenizer, form)}


def measure(config: Config, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean loss (nats a token) by kind, row and quarters; None where an answer has no token of a kind."""
    from transformers import AutoTokenizer

    from verl.learner.learner import Learner

    tokenizer, entities = AutoTokenizer.from_pretrained(config.model), config.entities.build()
    learner = Learner(config.model, config.learner, seed=0)
    samples = [sample for row in rows for sample in samples_of(row, tokenizer)]
    scores = iter(zip(samples, learner.logprobs(samples), strict=True))
    found = []
    for row in rows:
        known = np.array(sorted(knowledge_tokens(row, entities, config.most, tokenizer)))
        for quarters in QUARTERS:
            sample, logprobs = next(scores)
            inside = np.isin(sample.token_ids, known)
            masks = (sample.policy_mask & inside, sample.policy_mask & ~inside)
            losses = {
                kind: float(-logprobs[mask].mean()) if mask.any() else None
                for kind, mask in zip(KINDS, masks, strict=True)
            }
            found.append({"id": row.id, "quarters": quarters, **losses, "knowledge_tokens": int(masks[0].sum())})
    return found


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Interval]]:
    """Mean over rows, with its interval, by kind and quarters: rows that have tokens of both kinds.

    Raises UserError if fewer than two have.
    """
    both = [row for row in found if all(row[kind] is not None for kind in KINDS)]
    if len(both) < 2 * len(QUARTERS):
        raise UserError(
            "fewer than two answers hold tokens of entities of their documents: name other entities (entities.plugin=)"
        )
    return {
        kind: [mean_t([row[kind] for row in both if row["quarters"] == quarters]) for quarters in QUARTERS]
        for kind in KINDS
    }


def table(means: Mapping[str, Sequence[Interval]]) -> str:
    """Losses, what each is of its value without documents, and how many times the one the other is."""
    lines = ["quarters  knowledge             reasoning             of those without   reasoning/knowledge"]
    for quarters, (known, other) in enumerate(zip(*(means[kind] for kind in KINDS), strict=True)):
        shares = [each.estimate / means[kind][0].estimate for kind, each in zip(KINDS, (known, other), strict=True)]
        cells = f"{known!s:21} {other!s:21} {shares[0]:.2f} and {shares[1]:.2f}"
        lines.append(f"{quarters}/4       {cells}       {other.estimate / known.estimate:.2f}")
    return "\n".join(lines)


def draw(means: Mapping[str, Sequence[Interval]], path: Path) -> None:
    """Both losses over quarters, with their intervals as bands."""
    figure, axes = new_picture(figsize=(7, 4.5))
    for kind, intervals in means.items():
        (line,) = axes.plot(QUARTERS, [each.estimate for each in intervals], marker="o", label=f"tokens of {kind}")
        ends = [each.low for each in intervals], [each.high for each in intervals]
        axes.fill_between(QUARTERS, *ends, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xticks(list(QUARTERS), [f"{quarters}/4" for quarters in QUARTERS])
    axes.set_xlabel("share of the documents before the answer")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    save_picture(figure, [axes], path)


def configured(arguments: Sequence[str]) -> Config:
    """The keys of a command line; those of our own extractor are understood without its import path."""
    asks = bool(arguments) and arguments[0] in ("-h", "--help")
    return parse(Config, arguments if asks else [f"entities.plugin={capitalised.__name__}", *arguments])


def main(arguments: Sequence[str]) -> int:
    """Measure by ``key=value`` arguments; returns the exit status."""
    config = configured(arguments)
    rows = read(config)
    from verl.learner.__main__ import join_group

    join_group()
    found = measure(config, rows)
    means, out = summary(found), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found), encoding="utf-8")
    report = {kind: [[each.estimate, each.low, each.high] for each in intervals] for kind, intervals in means.items()}
    both = means["knowledge"][0].n
    report_text = json.dumps({"rows": len(rows), "rows_with_both": both, "loss": report}, indent=2)
    (out / "report.json").write_text(report_text + "\n", encoding="utf-8")
    draw(means, out / "loss.png")
    print(
        f"{table(means)}\n{both} of {len(rows)} answers hold tokens of both kinds; 95 % intervals over answers; {out}"
    )
    return 0


if __name__ == "__main__":
    run(main)
