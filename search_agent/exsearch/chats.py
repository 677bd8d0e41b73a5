"""Episodes as the published chats of messages, and the cost of an accepted answer after such a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_agent.exsearch.files import with_gold
from search_agent.protocols.framing import Framing
from verl.trajectory import Segment, Trajectory

if TYPE_CHECKING:
    from verl.data.samples import TrainingSample


def messages_of(trajectory: Trajectory, framing: Framing) -> list[dict[str, str]]:
    """What was said in the episode's own chat, without the template around it."""
    return _messages(trajectory.main.segments, framing)


def selections_of(trajectory: Trajectory, framing: Framing) -> list[dict[str, Any]]:
    """The chats beside it, in which passages were chosen."""
    beside = [segment for segment in trajectory.segments if segment.beside]
    pairs = zip(beside[::2], beside[1::2], strict=False)  # a last one may have been opened and not answered
    return [{"messages": _messages(pair, framing)} for pair in pairs]


def _messages(segments: Sequence[Segment], framing: Framing) -> list[dict[str, str]]:
    before, after = framing.around_prompt
    prompt = segments[0].text.removeprefix(before).removesuffix(after)
    messages, last = [{"role": "user", "content": prompt}], None
    end = framing.around_observation[0]
    for segment in segments[1:]:
        if segment.is_policy:
            last = int(segment.token_ids[-1]) if len(segment) else None
            unsampled = framing.edges(last)[0].text  # what the template still adds: all of it, or all but the end
            text = segment.text.removesuffix(end.removesuffix(unsampled)) if unsampled != end else segment.text
            messages.append({"role": "assistant", "content": text.strip()})
        else:
            opening, closing = framing.edges(last)
            text = segment.text.removeprefix(opening.text).removesuffix(closing.text)
            messages.append({"role": "user", "content": text})
    return messages


def gold_samples(rows: Sequence[Mapping[str, Any]], model: Path, today: date) -> list[TrainingSample]:
    """Each row's chat with the accepted answer at its end, whose own tokens count; the one that ends it does not."""
    from transformers import AutoTokenizer

    from search_agent.data.chat_traces import ChatReader
    from verl.data.splice import splice

    tokenizer = AutoTokenizer.from_pretrained(model)
    reader, samples = ChatReader(tokenizer, tokenizer.eos_token, today), []
    for row in rows:
        trace = reader.read({"messages": with_gold(row)}, str(row["query_id"]))
        answer = trace.generated[-1].token_ids
        samples.append(splice(trace.token_ids()[: -len(answer)], answer[:-1]))
    return samples
