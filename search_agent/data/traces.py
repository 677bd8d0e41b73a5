"""What the warm-up learns from, checked against the protocol and the model that it is to teach.

A row is a recorded trajectory (token ids), ``messages`` of a chat, or an ``instruction`` with what is to follow it
(``predict``). ``weight`` says how much it counts; for ``kto``, ``label`` or a sign says whether it is desirable.
"""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_agent.protocols.base import SearchProtocol
from verl.data.load import MAX_LISTED_FAULTS, images_of, read_rows
from verl.data.pictures import Pictures
from verl.errors import UserError
from verl.seeds import derive_seed
from verl.trainer.config import WarmupConfig
from verl.trajectory import Trajectory

if TYPE_CHECKING:
    from search_agent.data.chat_traces import ChatReader
    from verl.data.samples import TrainingSample

NO_DAY = "2026-01-01"
"""What chat templates print as today where the environment names no day."""
_MARK = "the question of a check?"
_SHOWN = 60
"""How much of a prompt an error shows (characters)."""
_LABELS = {1: 1.0, 0: -1.0, -1: -1.0}  # True and False are 1 and 0


def load_traces(
    path: Path | None,
    protocol: SearchProtocol,
    model: str,
    *,
    prompts: bool,
    warmup: WarmupConfig,
    longest: int,
    today: str = NO_DAY,
) -> list[TrainingSample]:
    """Samples with the credit that the warm-up's loss reads: a weight, or for ``kto`` 1 and -1.

    ``prompts`` says that the data bring their own prompts, so that wording is not compared; ``longest`` is how many
    tokens a row may have, ``today`` the day that chat templates print. Raises UserError if there is no such file, and
    with its faults: rows that cannot be read, prompts of another protocol, no trace in the protocol's format, ids that
    are not those of ``model`` (a folder).
    """
    from verl.data.samples import TrainingSample

    if path is None:
        raise UserError("the warm-up has no traces: write data.traces=FILE, or warmup.steps=0")
    if not path.is_file():
        raise UserError(f"data.traces={path}: no such file; give recorded trajectories (jsonl), or warmup.steps=0")
    rows = read_traces(path, Path(model), date.fromisoformat(today), desirable=warmup.loss.name == "kto")
    recorded = [trace for trace, _, is_recorded in rows if is_recorded]
    faults = [
        f"{path}, row {number}: {len(trace):,} tokens and a micro-batch holds {longest:,}: raise "
        "learner.max_tokens_per_microbatch, or leave it out"
        for number, (trace, _, _) in enumerate(rows, 1)
        if len(trace) > longest
    ]
    if recorded:
        faults += [] if prompts else check_wording(path, recorded, protocol)
        faults += check_format(path, recorded, protocol)
        faults += check_ids(path, recorded, Path(model))
    if faults:
        raise UserError("\n".join(_listed(faults, path)))
    return [TrainingSample.from_trajectory(trace, credit) for trace, credit, _ in rows]


def share_of(traces: list[TrainingSample], fraction: float, seed: int) -> list[TrainingSample]:
    """That share of the traces in their order, one at least. Raises UserError unless it is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise UserError(f"data.traces_fraction={fraction}: write a number above 0, at most 1")
    order = list(range(len(traces)))
    random.Random(derive_seed(seed, "fraction")).shuffle(order)
    return [traces[index] for index in sorted(order[: max(1, round(fraction * len(traces)))])]


def read_traces(path: Path, model: Path, today: date, *, desirable: bool) -> list[tuple[Trajectory, float, bool]]:
    """Each row's trajectory, its credit, and whether it was recorded as ids. Raises UserError that lists faulty rows.

    ``desirable``: the credit is 1 or -1, of the row's label, or of the sign of its weight or reward.
    """
    rows: list[tuple[Trajectory, float, bool]] = []
    faults, reader = [], None
    for number, row in _rows(path):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            if not isinstance(row, dict):
                raise ValueError(f"{type(row).__name__}, not an object")
            recorded = "messages" not in row and "instruction" not in row
            if not recorded and reader is None:
                reader = _open_reader(model, today)
            if reader is None or recorded:
                trace = _recorded(row)
            else:
                trace = reader.read(row, f"row {number}", images_of(row, path.parent))
            rows.append((trace, _credit(row, trace, desirable), recorded))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{path}, row {number}: cannot be learned from ({type(error).__name__}: {error})")
    if not rows and not faults:
        faults = [f"{path}: holds no trajectory; give recorded ones (jsonl), or warmup.steps=0"]
    if faults:
        raise UserError("\n".join(_listed(faults, path)))
    return rows


def _listed(faults: list[str], path: Path) -> list[str]:
    if len(faults) <= MAX_LISTED_FAULTS:
        return faults
    return [*faults[:MAX_LISTED_FAULTS], f"{path}: {len(faults)} faulty rows in all"]


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a jsonl or parquet file, or of a json file that is one list; a str is why a row cannot be read."""
    if path.suffix != ".json":
        yield from read_rows(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"data.traces={path}: not JSON in UTF-8 ({error})") from error
    if not isinstance(rows, list):
        raise UserError(f"data.traces={path}: {type(rows).__name__}, not a list of rows")
    yield from enumerate(rows, 1)


def _open_reader(model: Path, today: date) -> ChatReader:
    from transformers import AutoTokenizer

    from search_agent.data.chat_traces import ChatReader

    tokenizer = AutoTokenizer.from_pretrained(model)
    return ChatReader(tokenizer, tokenizer.eos_token, today, Pictures.of(model))


def _recorded(row: dict[str, Any]) -> Trajectory:
    trace = Trajectory.from_record({key: value for key, value in row.items() if key not in ("weight", "label")})
    if trace.outcome == "aborted" or not trace.num_policy_tokens:
        raise ValueError("it is aborted" if trace.outcome == "aborted" else "the policy wrote nothing in it")
    return trace


def _credit(row: Mapping[str, Any], trace: Trajectory, desirable: bool) -> float:
    label, weight = row.get("label"), row.get("weight")
    if label is not None and label not in _LABELS:
        raise ValueError(f"label: {label!r}; write true or false")
    if weight is not None and (isinstance(weight, bool | str) or not math.isfinite(weight)):
        raise ValueError(f"weight: {weight!r}; write a number")
    if not desirable:
        if label is not None and _LABELS[label] < 0:
            raise ValueError("its label says undesirable: write warmup.loss.name=kto, or leave it out")
        if weight is not None and weight < 0:
            raise ValueError(f"weight: {weight} is below 0: write warmup.loss.name=kto, or leave it out")
        return 1.0 if weight is None else float(weight)
    if label is not None:
        return _LABELS[label]
    sign = trace.reward if weight is None else weight
    if sign is None:
        raise ValueError("warmup.loss.name=kto needs a label, a weight or a reward")
    return 1.0 if sign > 0 else -1.0


def check_wording(path: Path, traces: Sequence[Trajectory], protocol: SearchProtocol) -> list[str]:
    """A fault if prompts are not worded as the protocol would: what is learnt would not be what is asked later."""
    before, _, after = (part.strip() for part in protocol.prompt(_MARK).partition(_MARK))
    system = (protocol.system or "").strip()

    def worded(trace: Trajectory) -> bool:
        text = trace.segments[0].text
        begin = text.find(before)
        return system in text and begin >= 0 and after in text[begin + len(before) :]

    others = [number for number, trace in enumerate(traces, 1) if not worded(trace)]
    if not others:
        return []
    shown = traces[others[0] - 1].segments[0].text.strip()[:_SHOWN]
    return [
        f"data.traces={path}: {len(others)} of {len(traces)} prompts are not worded as protocol={protocol.name} words "
        f"them (row {others[0]} begins {shown!r}, it would begin {(system or before)[:_SHOWN]!r}): give traces of that "
        "protocol (data.style=... for the embedded world), or the protocol and instruction that they were written in"
    ]


def check_format(path: Path, traces: Sequence[Trajectory], protocol: SearchProtocol) -> list[str]:
    """A fault if not one trace is in the protocol's format."""
    if any(protocol.read(trace).format_valid for trace in traces):
        return []
    return [
        f"data.traces={path}: none of {len(traces)} trajectories is in the format of protocol={protocol.name}: give "
        "traces of that protocol, or the protocol that they were written in"
    ]


def check_ids(path: Path, traces: Sequence[Trajectory], model: Path) -> list[str]:
    """A fault if the token ids were made by another tokenizer than the model's; decided by the first prompt."""
    from tokenizers import Tokenizer

    from verl.model_shape import read_shape

    remedy = "give traces recorded with this model's tokenizer"
    vocabulary, largest = read_shape(str(model)).vocabulary, max(int(trace.token_ids().max()) for trace in traces)
    if largest >= vocabulary:
        return [f"data.traces={path}: holds token {largest} and model={model} has {vocabulary}: {remedy}"]
    if (model / "tokenizer.json").exists():
        first = traces[0].segments[0]
        decoded = Tokenizer.from_file(str(model / "tokenizer.json")).decode(
            first.token_ids.tolist(), skip_special_tokens=False
        )
        if _bare(decoded) != _bare(first.text):
            told = f"{first.text.strip()[:_SHOWN]!r} are {decoded.strip()[:_SHOWN]!r}"
            return [f"data.traces={path}: the ids of {told} in the tokenizer of model={model}: {remedy}"]
    return []


def _bare(text: str) -> str:
    """Without what tokenizers may change: white space, and how accents are composed."""
    return "".join(unicodedata.normalize("NFC", text).split())
