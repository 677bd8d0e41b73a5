"""Writes ``train.parquet``, ``valid_<n>.parquet``, ``test.parquet`` and a report of every row that was left out.

The columns are those that verl-style trainers read; ``load_tasks`` reads them too. ``report.json`` is written last: a
folder that has it is whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preprocess.questions.config import Config
from preprocess.questions.read import Dropped, Question, files_of, first_split, read_split
from preprocess.questions.split import Files, divide
from search_agent.data.benchmark import SPLITS
from search_agent.evaluation.kilt import PROVENANCE, provenance_of
from verl.config.build import load_plugin
from verl.errors import UserError

_VALID_SPLITS = ("dev", "validation", "train")
_ROWS_PER_WRITE = 10_000


def build_files(config: Config) -> dict[str, Any]:
    """Build everything under ``config.out`` and return the report.

    Raises UserError if a set or a split is not there, or if nothing is left for a file.
    """
    out, reader = Path(config.out), Reader(Path(config.source))
    protocol = load_plugin(config.protocol)
    render = protocol.build(protocol.Config()).prompt
    files = _divided(config, reader)
    (out / "report.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    written = {"train.parquet": files.train, f"valid_{config.valid_per_set}.parquet": files.valid}
    written["test.parquet"] = files.test
    for name, questions in written.items():
        if questions:
            _write(out / name, questions, render)
    dropped = [*reader.faulty, *files.dropped]
    _write_lines(out / "dropped.jsonl", dropped)
    report = {
        "settings": asdict(config),
        "read": reader.counts,
        "written": {name: dict(Counter(q.set for q in questions)) for name, questions in written.items()},
        "dropped": [
            {"set": name, "split": split, "reason": reason, "rows": rows}
            for (name, split, reason), rows in Counter((d.set, d.split, d.reason) for d in dropped).items()
        ],
        "notes": files.notes,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


class Reader:
    """Reads each split once, and keeps count of what it read."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.faulty: list[Dropped] = []
        self.counts: dict[str, int] = {}
        """Rows of each split read, ``set/split``, faulty ones included."""
        self._splits: dict[tuple[str, str], list[Question]] = {}

    def read(self, name: str, split: str) -> list[Question]:
        """The usable questions of a split."""
        if (name, split) not in self._splits:
            questions, dropped = read_split(self.source, name, split)
            self.faulty += dropped
            self.counts[f"{name}/{split}"] = len(questions) + len(dropped)
            self._splits[name, split] = questions
        return self._splits[name, split]


def _divided(config: Config, reader: Reader) -> Files:
    tested = {name: first_split(reader.source, name, SPLITS) for name in config.test}
    train_splits = {name: first_split(reader.source, name, ("train",)) for name in config.train}
    valid_is_test = config.valid_from == "test"
    validated = tested if valid_is_test else _validation_splits(reader.source, tested)
    files = divide(
        train=[reader.read(name, split) for name, split in train_splits.items()],
        valid=[reader.read(name, split) for name, split in validated.items()] if config.valid_per_set else [],
        test=[reader.read(name, split) for name, split in tested.items()],
        valid_per_set=config.valid_per_set,
        valid_is_test=valid_is_test,
        seed=config.seed,
    )
    files.notes += [
        f"{name}: no validation questions, its only split is the one that is tested on"
        for name in tested
        if name not in validated
    ]
    for label, questions in (("training", files.train), ("test", files.test)):
        if not questions:
            raise UserError(f"{reader.source}: no usable question is left for the {label} file; see {config.out}")
    return files


def _validation_splits(source: Path, tested: dict[str, str]) -> dict[str, str]:
    """For each set, the first split that validation questions may come from; a set without one is left out."""
    free = {
        name: [split for split in _VALID_SPLITS if split != tested_split and files_of(source, name, split)]
        for name, tested_split in tested.items()
    }
    return {name: splits[0] for name, splits in free.items() if splits}


def _row(question: Question, render: Callable[[str], str]) -> dict[str, Any]:
    task = question.task
    answers, pages = list(task.golden_answers), [list(titles) for titles in provenance_of(task)]
    return {
        "id": task.id,
        "question": task.question,
        "golden_answers": answers,
        "data_source": question.set,
        "prompt": [{"role": "user", "content": render(task.question)}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"split": question.split, "index": question.row},
        **({PROVENANCE: pages} if pages else {}),
    }


def _write(path: Path, questions: Sequence[Question], render: Callable[[str], str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = next((each for each in questions if any(provenance_of(each.task))), questions[0])  # it has every column
    schema = pa.Table.from_pylist([_row(shown, render)]).schema
    partial = path.with_name(f"{path.name}.partial")
    with pq.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(questions), _ROWS_PER_WRITE):
            rows = [_row(question, render) for question in questions[start : start + _ROWS_PER_WRITE]]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    partial.replace(path)


def _write_lines(path: Path, dropped: Sequence[Dropped]) -> None:
    path.write_text("".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in dropped), encoding="utf-8")
