"""``python -m preprocess.rare.sample tasks=FILE out=DIR url=URL model=NAME``: what a teacher says to prompts.

A task is asked up to ``rounds`` times, until an answer is right; the accepted answer is never shown. Every reply is
written at once (``attempts.jsonl``), so that the same command goes on where it was stopped. In the end stand:

    all.jsonl        a row a task: its first right reply, or else its first; what PubMedQA and PubHealth learn from
    right.jsonl      those that are right
    labelled.jsonl   the rows of all.jsonl with their label, for warmup.loss.name=kto
    report.json      counts, accuracy over all tasks, tokens, cost
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from preprocess.embedded.build import write_rows
from search_agent.openai_client import Draw, Endpoint, OpenAIClient, Refused, picture
from search_agent.protocols.rare import is_right
from verl.config.arguments import parse, run
from verl.data.load import load_tasks
from verl.data.pictures import remote
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError, at_least
from verl.seeds import derive_seed

_HOW = ("workers", "timeout_s", "retries", "url", "key_variable", "price_in", "price_out", "tell_every_s")
"""Keys that change how replies are fetched, not what they say."""


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m preprocess.rare.sample``."""

    tasks: str
    """A file that ``preprocess.rare`` wrote: its prompts are what is asked."""
    out: str
    """Folder to write to; a folder that was begun goes on."""
    url: str
    """Address, up to ``/v1``, of a server that speaks OpenAI's chat completions, or several, with commas."""
    model: str
    """Its name there: QwQ-32B as published, Qwen2.5-VL-32B-Instruct for pictures."""
    key_variable: str = ""
    """Environment variable that holds the key; empty sends none."""
    rounds: int = 8
    """The most a task is asked. 8 as published; 1 is the published single sample, and evaluates a test file."""
    workers: int = 32
    """Requests under way at once."""
    temperature: float = 0.95
    """Of each draw; 0.95 as published."""
    top_p: float = 0.7
    """Of each draw; 0.7 as published."""
    top_k: int = 50
    """Of each draw; 50 as published. -1 is all tokens, and sends no such field: OpenAI's own API has none."""
    max_tokens: int = 10240
    """The longest reply (tokens). 10240 as published."""
    timeout_s: float = 600.0
    """Until a request is given up and tried again."""
    retries: int = 20
    """Further tries of a request that failed. 20 as published."""
    price_in: float = 0.0
    """Dollars for a million tokens of prompts; 0 shows no cost."""
    price_out: float = 0.0
    """Dollars for a million tokens of replies."""
    tell_every_s: float = 10.0
    """Seconds between lines of progress."""
    seed: int = 0
    """Each draw's seed derives from it; servers may ignore it."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rounds", "workers", "max_tokens")
        at_least(self, 0, "retries", "price_in", "price_out", "temperature")


class Attempts:
    """Every reply so far, by task; those of an earlier start are read first, but for a last line that is torn."""

    def __init__(self, path: Path) -> None:
        self.of: dict[str, list[dict[str, Any]]] = {}
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if line.endswith(b"\n"):
                self._keep(json.loads(line))
                whole += len(line)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._file.truncate(whole)

    def add(self, attempt: dict[str, Any]) -> None:
        """Keep it, on disk too."""
        self._keep(attempt)
        self._file.write(json.dumps(attempt, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _keep(self, attempt: dict[str, Any]) -> None:
        self.of.setdefault(attempt["id"], []).append(attempt)


async def sample(config: Config, tasks: Sequence[Task]) -> dict[str, Any]:
    """Ask until every task has a right reply or all its rounds; write the files, and return the report.

    Raises InfrastructureError if a request failed for good: what was said until then is kept.
    """
    out = Path(config.out)
    for image in (image for task in tasks for image in task.images):
        shown_as(image, out)
    _same_settings(out, {key: value for key, value in asdict(config).items() if key not in _HOW})
    attempts = Attempts(out / "attempts.jsonl")
    urls = tuple(url.strip() for url in config.url.split(","))
    endpoint = Endpoint(urls, config.model, config.key_variable, config.timeout_s, config.retries)
    queue = iter(tasks)
    try:
        async with OpenAIClient(endpoint) as client, asyncio.TaskGroup() as group:
            telling = group.create_task(_tell(config, tasks, attempts))
            async with asyncio.TaskGroup() as workers:
                for _ in range(config.workers):
                    workers.create_task(_work(config, client, queue, attempts))
            telling.cancel()
    except* (UserError, InfrastructureError) as errors:
        raise _first(errors) from None
    finally:
        attempts.close()
    return write_results(config, tasks, attempts)


async def _ask(client: OpenAIClient, task: Task, draw: Draw) -> dict[str, Any]:
    """One reply, read; thoughts that the server tells apart stand in front, between ``<think>`` tags."""
    shown = [picture(image) for image in task.images]
    content = [*shown, {"type": "text", "text": task.prompt}] if shown else task.prompt
    (reply,) = await client.chat([{"role": "user", "content": content}], draw)
    text, whole = reply.text, reply.finish_reason == "stop"
    if reply.thought and "</think>" not in text:
        text = f"<think>\n{reply.thought.strip()}\n</think>\n{text.strip()}"
    tokens = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.generated_tokens}
    return {"text": text, "whole": whole, "right": whole and is_right(text, task.golden_answers), **tokens}


async def _work(config: Config, client: OpenAIClient, queue: Any, attempts: Attempts) -> None:
    """Take tasks until there are none."""
    for task in queue:
        assert task.prompt is not None
        said = attempts.of.get(task.id, [])
        while len(said) < config.rounds and not (said and (said[-1]["right"] or said[-1]["refused"])):
            seed = derive_seed(config.seed, task.id, str(len(said))) % 2**31
            draw = Draw(config.max_tokens, config.temperature, config.top_p, config.top_k, seed=seed)
            attempt: dict[str, Any] = {"id": task.id, "round": len(said), "right": False, "refused": ""}
            try:
                attempt |= await _ask(client, task, draw)
            except Refused as error:
                attempt["refused"] = str(error)
            attempts.add(attempt)
            said = attempts.of[task.id]


async def _tell(config: Config, tasks: Sequence[Task], attempts: Attempts) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(config.tell_every_s)
        print(f"{time.monotonic() - started:.0f} s: {progress(config, tasks, attempts)}", file=sys.stderr, flush=True)


def progress(config: Config, tasks: Sequence[Task], attempts: Attempts) -> str:
    """How far it is, and what it has cost, in one line."""
    made = [one for said in attempts.of.values() for one in said]
    solved = sum(said[-1]["right"] for said in attempts.of.values())
    spent = costs(config, made)
    dollars = f", ${spent['dollars']:.2f}" if config.price_in or config.price_out else ""
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    asked = f"{len(attempts.of)} of {len(tasks)} tasks asked"
    return f"{asked}, {solved} right, {len(made)} replies, {tokens:,} tokens{dollars}"


def costs(config: Config, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens both ways, and dollars by the prices that were given."""
    read, written = (sum(one.get(key, 0) for one in made) for key in ("prompt_tokens", "completion_tokens"))
    dollars = (read * config.price_in + written * config.price_out) / 1e6
    return {"prompt_tokens": read, "completion_tokens": written, "dollars": round(dollars, 4)}


def write_results(config: Config, tasks: Sequence[Task], attempts: Attempts) -> dict[str, Any]:
    """The files that are learned from, and the report, which is last."""
    out, rows, dropped = Path(config.out), list[dict[str, Any]](), Counter[str]()
    for task in tasks:
        said = attempts.of[task.id]
        chosen = said[-1] if said[-1]["right"] else said[0]
        if chosen["refused"] or not chosen["whole"]:  # a target that ends where the model did not would teach that
            dropped["refused by the server" if chosen["refused"] else "ran into max_tokens"] += 1
            continue
        row = {"id": task.id, "instruction": task.prompt, "predict": chosen["text"], "output": task.golden_answers[0]}
        images = {"images": [shown_as(image, out) for image in task.images]} if task.images else {}
        rows.append({**row, "label": chosen["right"], **images})
    bare = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    made = [one for task in tasks for one in attempts.of[task.id]]
    first = sum(attempts.of[task.id][0]["right"] for task in tasks)
    rounds = Counter(len(attempts.of[task.id]) for task in tasks if attempts.of[task.id][-1]["right"])
    report = {
        "tasks": len(tasks),
        "right": sum(rounds.values()),
        "right_by_round": dict(sorted(rounds.items())),
        "accuracy": first / len(tasks),
        "replies": len(made),
        "rows": {
            "all.jsonl": write_rows(out / "all.jsonl", bare),
            "right.jsonl": write_rows(out / "right.jsonl", (b for b, r in zip(bare, rows, strict=True) if r["label"])),
            "labelled.jsonl": write_rows(out / "labelled.jsonl", rows),
        },
        "dropped": dict(dropped),
        **costs(config, made),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def shown_as(image: str, out: Path) -> str:
    """How a row in ``out`` names a picture: by its path from the folder above, where the tasks lie with their pictures.

    Raises UserError if it is elsewhere.
    """
    above = out.resolve().parent
    if remote(image) or image.startswith("data:"):
        return image
    if not Path(image).is_relative_to(above):
        raise UserError(f"out={out}: the tasks show pictures, so that it must be a folder beside theirs")
    return str(Path(image).relative_to(above))


def _same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Raises UserError if the folder holds replies that were drawn in another way."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists() and (others := json.loads(path.read_text())) != settings:
        changed = ", ".join(sorted(key for key in settings if settings[key] != others.get(key)))
        raise UserError(f"out={out}: was begun with another {changed}; write the same, or another folder")
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main(arguments: Sequence[str]) -> int:
    """Sample by ``key=value`` arguments; returns the exit status."""
    config = parse(Config, arguments)
    tasks = load_tasks(config.tasks, prompts=True)
    try:
        report = asyncio.run(sample(config, tasks))
    except InfrastructureError as error:
        print(f"error: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    run(main)
