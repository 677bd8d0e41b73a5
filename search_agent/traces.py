"""Recorded trajectories for the warm-up, checked against the protocol and the model that they are to teach."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search_agent.protocols.base import SearchProtocol
from verl.errors import UserError

if TYPE_CHECKING:
    from verl.data.samples import TrainingSample
    from verl.trajectory import Trajectory

_MARK = "the question of a check?"
_SHOWN = 60
"""How much of a prompt an error shows (characters)."""


def load_traces(path: Path | None, protocol: SearchProtocol, model: str, *, prompts: bool) -> list[TrainingSample]:
    """Samples of weight 1. ``prompts`` says that the data bring their own prompts, so that wording is not compared.

    Raises UserError if there is no such file, and with its faults: rows that are no trajectories, prompts of another
    protocol, no trace in the protocol's format, ids that are not those of ``model`` (a folder).
    """
    from verl.data.samples import TrainingSample

    if path is None:
        raise UserError("warmup.steps is above 0 but there are no traces: write data.traces=FILE, or warmup.steps=0")
    if not path.is_file():
        raise UserError(f"data.traces={path}: no such file; give recorded trajectories (jsonl), or warmup.steps=0")
    traces = read_traces(path)
    faults = [] if prompts else check_wording(path, traces, protocol)
    faults += check_format(path, traces, protocol)
    faults += check_ids(path, traces, Path(model))
    if faults:
        raise UserError("\n".join(faults))
    return [TrainingSample.from_trajectory(trace, 1.0) for trace in traces]


def read_traces(path: Path) -> list[Trajectory]:
    """Every trajectory of the file. Raises UserError that lists the rows which are none."""
    from verl.data.load import MAX_LISTED_FAULTS
    from verl.trajectory import Trajectory

    traces, faults = [], []
    with path.open(encoding="utf-8") as file:
        for row, line in enumerate(file, 1):
            try:
                trace = Trajectory.from_record(json.loads(line))
                if trace.outcome == "aborted" or not trace.num_policy_tokens:
                    raise ValueError(
                        "it is aborted" if trace.outcome == "aborted" else "the policy wrote nothing in it"
                    )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                faults.append(f"{path}, row {row}: not a recorded trajectory ({type(error).__name__}: {error})")
            else:
                traces.append(trace)
    if len(faults) > MAX_LISTED_FAULTS:
        faults = [*faults[:MAX_LISTED_FAULTS], f"{path}: {len(faults)} faulty rows in all"]
    if not traces and not faults:
        faults = [f"{path}: holds no trajectory; give recorded ones (jsonl), or warmup.steps=0"]
    if faults:
        raise UserError("\n".join(faults))
    return traces


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

    from verl.trainer.model_shape import read_shape

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
