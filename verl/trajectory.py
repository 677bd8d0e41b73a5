"""The trajectory: an append-only ledger of tokens, the only thing that flows from rollout to loss.

    prompt | generated | observation | generated | ... | generated
       0   |     1     |      0      |     1     | ... |     1        <- the ONE policy mask

A segment's ids are written once, by whoever produced them (the tokenizer for prompts and observations, the engine for
generated tokens), and are never made again from text: what was sampled is what is trained on. Structure (turns, tool
calls, answers) is read from segments, so that a passage which contains a tag is data and cannot act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SegmentKind = Literal["prompt", "generated", "observation"]
FinishReason = Literal["stop", "end_of_turn", "length", "aborted"]
Outcome = Literal["finished", "truncated", "aborted"]

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


def _ints(values: Sequence[int] | npt.NDArray[Any]) -> IntArray:
    return np.asarray(values, dtype=np.int32)


def _floats(values: Sequence[float] | npt.NDArray[Any]) -> FloatArray:
    return np.asarray(values, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """One thing a tool returned (for search: a passage), by reference: its text stands in the observation."""

    id: str
    score: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call an episode made to the outside, beside the observation it led to."""

    tool: str
    request: str
    results: tuple[ToolResult, ...] = ()
    latency_s: float = 0.0
    cached: bool = False
    failure: str | None = None
    """Why the tool refused the request, which is the policy's fault; None if it was carried out. An outage is never
    recorded: it aborts the episode."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the tool measured and that are not shown to the policy (``correct``, ``answer_rank``)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens from one producer. Arrays have one entry a token; all have the length of ``token_ids``."""

    kind: SegmentKind
    turn: int
    """Which generation this belongs to: the prompt is turn 0, an observation carries the turn that asked for it."""
    token_ids: IntArray
    text: str
    """What the ids decode to, whole: characters that the last token shares with a stop string belong to the segment."""
    logprobs: FloatArray = field(default_factory=lambda: _floats(()))
    """Log-probability under the sampling distribution; empty unless ``generated``."""
    versions: IntArray = field(default_factory=lambda: _ints(()))
    """Version of the weights that sampled each token; empty unless ``generated``."""
    finish_reason: FinishReason | None = None
    """Why generation stopped; None unless ``generated``."""
    calls: tuple[ToolCall, ...] = ()
    """The calls whose results this observation, or prompt, shows."""
    prefill: str = ""
    """The end of this segment's text that begins the policy's next turn (``<think>``): not the policy's, but read with
    it."""
    last_call: bool = False
    """Whether this observation told the policy that one turn is left."""
    anew: bool = False
    """Whether the policy's next turn reads from here on: what stands before is recorded, and not read any more."""
    beside: bool = False
    """Whether it is of a chat of one turn beside the episode's own: the prompt of one (an ``observation``), or the turn
    that answers it. Such a turn reads that prompt alone, and the episode goes on as if neither were there."""

    @property
    def is_policy(self) -> bool:
        """Whether the policy chose these tokens."""
        return self.kind == "generated"

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class Trajectory:
    """One episode: who it belongs to, its segments in order, how it ended and what it earned."""

    task_id: str
    sample: int
    """Index within the group (the samples of one task at one step), from 0."""
    segments: list[Segment] = field(default_factory=list)
    outcome: Outcome | None = None
    """None while the episode runs; ``aborted`` means that infrastructure failed, and it is never trained on."""
    reason: str = ""
    """One line about the outcome where there is something to say."""
    reward: float | None = None
    """The scalar that ASSIGN uses; None until scored."""
    reward_parts: dict[str, float] = field(default_factory=dict)
    """Named pieces of the reward and of its metrics (``em``, ``f1``, ``format_valid``, ``searches``)."""
    turn_gains: tuple[float, ...] | None = None
    """What each turn brought by itself, one number a turn; None where that is not known."""
    images: tuple[str, ...] = ()
    """What the prompt shows besides its text: paths or ``data:`` URLs."""

    # -- writing --

    def append_prompt(
        self, token_ids: Sequence[int], text: str, prefill: str = "", calls: Sequence[ToolCall] = ()
    ) -> None:
        """Open the ledger. Raises ValueError if it is not empty: an episode has one prompt."""
        if self.segments:
            raise ValueError("the prompt comes first")
        self.segments.append(Segment("prompt", 0, _ints(token_ids), text, calls=tuple(calls), prefill=prefill))

    def append_generated(
        self,
        token_ids: Sequence[int],
        text: str,
        logprobs: Sequence[float],
        versions: Sequence[int],
        finish_reason: FinishReason,
    ) -> None:
        """Add what the policy sampled in one turn. Raises ValueError unless each token has a log-prob and a version."""
        if not self.segments:
            raise ValueError("a prompt must come before generated tokens")
        if not len(token_ids) == len(logprobs) == len(versions):
            raise ValueError(
                f"{len(token_ids)} tokens, {len(logprobs)} log-probs, {len(versions)} versions: lengths differ"
            )
        segment = Segment(
            "generated", self.num_turns, _ints(token_ids), text, _floats(logprobs), _ints(versions), finish_reason
        )
        opened = self.segments[-1].beside and not self.segments[-1].is_policy
        self.segments.append(replace(segment, beside=True) if opened else segment)

    def append_observation(
        self,
        token_ids: Sequence[int],
        text: str,
        calls: Sequence[ToolCall] = (),
        *,
        prefill: str = "",
        last_call: bool = False,
        anew: bool = False,
        beside: bool = False,
    ) -> None:
        """Add what the environment answered to the last generated segment."""
        if not self.segments or self.segments[-1].kind == "prompt":
            raise ValueError("an observation answers a generated segment")
        turn = self.num_turns - 1
        self.segments.append(
            Segment(
                "observation",
                turn,
                _ints(token_ids),
                text,
                calls=tuple(calls),
                prefill=prefill,
                last_call=last_call,
                anew=anew,
                beside=beside,
            )
        )

    # -- reading --

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @property
    def num_turns(self) -> int:
        """How many times the policy generated."""
        return sum(segment.is_policy for segment in self.segments)

    @property
    def num_policy_tokens(self) -> int:
        """How many tokens the policy chose."""
        return sum(len(segment) for segment in self.segments if segment.is_policy)

    @property
    def generated(self) -> list[Segment]:
        """The policy's segments in order."""
        return [segment for segment in self.segments if segment.is_policy]

    @property
    def turns(self) -> list[Segment]:
        """The policy's segments with texts that are whole: what began a turn for the policy stands before its own."""
        turns, prefill = [], ""
        for segment in self.segments:
            if segment.is_policy:
                turns.append(replace(segment, text=prefill + segment.text) if prefill else segment)
            prefill = segment.prefill
        return turns

    @property
    def calls(self) -> list[ToolCall]:
        """Every tool call of the episode in order."""
        return [call for segment in self.segments for call in segment.calls]

    def token_ids(self) -> IntArray:
        """All ids, ``[tokens]`` int32: the input of the loss."""
        return np.concatenate([s.token_ids for s in self.segments]) if self.segments else _ints(())

    def context_ids(self) -> IntArray:
        """The ids that the next turn continues: the episode's own, or those since the context began anew, or of a chat
        beside it that was just opened."""
        if self.segments[-1].beside and not self.segments[-1].is_policy:
            return self.segments[-1].token_ids
        begin = max((i for i, segment in enumerate(self.segments) if segment.anew), default=0)
        return np.concatenate([s.token_ids for s in self.segments[begin:] if not s.beside])

    def texts(self) -> IntArray:
        """``[tokens]``: 0 where a token is of the episode's own text, n where it is of the n-th chat beside it."""
        chats = np.cumsum([segment.beside and not segment.is_policy for segment in self.segments])
        numbers = [int(chat) if segment.beside else 0 for chat, segment in zip(chats, self.segments, strict=True)]
        return np.repeat(_ints(numbers), [len(segment) for segment in self.segments])

    @property
    def main(self) -> Trajectory:
        """The episode without the chats beside it: what protocols read, and turns that are numbered without theirs."""
        if not any(segment.beside for segment in self.segments):
            return self
        kept, skipped = [], 0
        for segment in self.segments:
            if not segment.beside:
                kept.append(replace(segment, turn=segment.turn - skipped))
            skipped += segment.beside and segment.is_policy
        return replace(self, segments=kept)

    def policy_mask(self) -> BoolArray:
        """``[tokens]`` bool, True where the policy chose the token: the mask of every loss, KL, entropy and metric."""
        kinds, lengths = [s.is_policy for s in self.segments], [len(s) for s in self.segments]
        return np.repeat(np.asarray(kinds, dtype=np.bool_), lengths)

    def rollout_logprobs(self) -> FloatArray:
        """``[tokens]`` float32, 0 where the policy mask is False."""
        return self._spread([s.logprobs for s in self.segments], np.float32)

    def versions(self) -> IntArray:
        """``[tokens]`` int32, -1 where the policy mask is False."""
        spread = self._spread([s.versions + 1 for s in self.segments], np.int32)
        return spread - 1

    def oldest_version(self) -> int | None:
        """The oldest weights that any of its tokens was sampled with; None if nothing was generated."""
        versions = [int(s.versions.min()) for s in self.segments if s.is_policy and len(s)]
        return min(versions) if versions else None

    def _spread(self, columns: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
        parts: list[npt.NDArray[Any]] = [
            column.astype(dtype) if segment.is_policy else np.zeros(len(segment), dtype)
            for segment, column in zip(self.segments, columns, strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    # -- on disk --

    def to_record(self) -> dict[str, Any]:
        """A JSON-ready dict; ``from_record`` gives the same trajectory back."""
        return {**self._rest(), "segments": [_segment_record(segment) for segment in self.segments]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Trajectory:
        """Read what ``to_record`` wrote, whatever else the record says.

        Raises KeyError or TypeError, naming the field, on anything else.
        """
        segments = [
            Segment(
                kind=row["kind"],
                turn=row["turn"],
                token_ids=_ints(row["token_ids"]),
                text=row["text"],
                logprobs=_floats(row["logprobs"]),
                versions=_ints(row["versions"]),
                finish_reason=row["finish_reason"],
                calls=tuple(
                    ToolCall(**{**call, "results": tuple(ToolResult(**result) for result in call["results"])})
                    for call in row["calls"]
                ),
                prefill=row.get("prefill", ""),
                last_call=row.get("last_call", False),
                anew=row.get("anew", False),
                beside=row.get("beside", False),
            )
            for row in record["segments"]
        ]
        rest = {name: record[name] for name in _REST if name in record}
        rest |= {name: tuple(rest[name]) for name in ("turn_gains", "images") if rest.get(name) is not None}
        return cls(**rest, segments=segments)

    # -- between processes --

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as three arrays, not three for each segment: a step has tens of thousands of segments."""
        heads = [
            (s.kind, s.turn, len(s), s.text, s.finish_reason, s.calls, s.prefill, s.last_call, s.anew, s.beside)
            for s in self.segments
        ]
        policy = [s for s in self.segments if s.is_policy]
        logprobs = np.concatenate([s.logprobs for s in policy]) if policy else _floats(())
        versions = np.concatenate([s.versions for s in policy]) if policy else _ints(())
        return _from_columns, (self._rest(), heads, self.token_ids(), logprobs, versions)

    def _rest(self) -> dict[str, Any]:
        """All fields but the segments."""
        return {name: getattr(self, name) for name in _REST}


_REST = tuple(field.name for field in fields(Trajectory) if field.name != "segments")


def _from_columns(
    rest: dict[str, Any], heads: Sequence[tuple[Any, ...]], ids: IntArray, logprobs: FloatArray, versions: IntArray
) -> Trajectory:
    """What ``Trajectory.__reduce__`` took apart; the segments' arrays are views of the columns."""
    segments, begin, policy_begin = [], 0, 0
    for kind, turn, length, text, *others in heads:
        end, policy_end = begin + length, policy_begin + (length if kind == "generated" else 0)
        policy = slice(policy_begin, policy_end)
        segments.append(Segment(kind, turn, ids[begin:end], text, logprobs[policy], versions[policy], *others))
        begin, policy_begin = end, policy_end
    return Trajectory(**rest, segments=segments)


def _segment_record(segment: Segment) -> dict[str, Any]:
    # Not dataclasses.asdict: it looks at each number of a list.
    record = {field.name: getattr(segment, field.name) for field in fields(Segment)}
    arrays = {name: value.tolist() for name, value in record.items() if isinstance(value, np.ndarray)}
    return {**record, **arrays, "calls": [asdict(call) for call in segment.calls]}
