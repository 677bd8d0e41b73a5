"""Prompts that leave no room for an answer, found before a run starts and not in the night when their turn comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from search_agent.config import RunConfig
from search_agent.environment import prompt_limit, prompt_text
from verl.data.tasks import Task
from verl.errors import UserError

_SHOWN = 5


def check_lengths(splits: Mapping[str, Sequence[Task]], config: RunConfig, model: str) -> None:
    """Raise UserError with the tasks whose prompt alone has more tokens than a prompt may have.

    What a chat template adds is not counted: a prompt within that little of the bound is refused when it is played.
    ``model`` is a folder; without its ``tokenizer.json`` nothing can be said here.
    """
    limit = prompt_limit(config.bounds.max_prompt_tokens, config.rollout.engine.max_context_tokens)
    protocol, faults = config.protocol.build(), []
    for name, tasks in splits.items():
        texts = [prompt_text(task, protocol) for task in tasks]
        # A token stands for a byte or more, so nearly every prompt is known to fit without a tokenizer.
        suspects = [(task, text) for task, text in zip(tasks, texts, strict=True) if len(text.encode()) > limit]
        lengths = _count([text for _, text in suspects], Path(model))
        long = [(task.id, n) for (task, _), n in zip(suspects, lengths, strict=True) if n > limit]
        if long:
            shown = ", ".join(f"{task_id}: {length:,}" for task_id, length in long[:_SHOWN])
            more = ", ..." if len(long) > _SHOWN else ""
            faults.append(
                f"{name}: {len(long)} of {len(tasks)} prompts have more than {limit:,} tokens ({shown}{more})"
            )
    if faults:
        raise UserError(
            "\n".join(faults) + "\nraise environment.max_prompt_tokens and rollout.engine.max_context_tokens, or drop "
            "these tasks"
        )


def _count(texts: Sequence[str], model: Path) -> list[int]:
    """Tokens of each text; 0 where the model has no tokenizer that can be opened here."""
    path = model / "tokenizer.json"
    if not texts or not path.exists():
        return [0] * len(texts)
    from tokenizers import Tokenizer

    encodings = Tokenizer.from_file(str(path)).encode_batch(list(texts), add_special_tokens=False)
    return [len(encoding.ids) for encoding in encodings]
