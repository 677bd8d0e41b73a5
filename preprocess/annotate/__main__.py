"""``python -m preprocess.annotate questions=FILE out=DIR url=URL model=NAME``: a model writes warm-up trajectories.

It is given each question with its answer and gold sentences, and writes queries and facts; the queries are carried
out by a retrieval server. Replies are kept as they come (``teacher/attempts.jsonl``), so that the same command goes on
where it was stopped, and other settings of the search ask the teacher for nothing. In the end stand:

    warmup.json       the trajectories, a list of ``messages``: data.traces as it stands
    selections.json   chats of one turn: the useful passages among all that a query found
    dropped.jsonl     every question that was left out, with its reason
    report.json       counts in and out, tokens, cost
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preprocess.annotate.evidence import Annotated, read_questions
from preprocess.annotate.trajectory import Unusable, Written, read_steps, teacher_prompt, write_chat
from preprocess.embedded.build import write_rows
from preprocess.rare import sample
from search_agent.protocols import exsearch
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.types import Document, QueryRefused
from verl.config.arguments import parse, run
from verl.data.tasks import Task
from verl.durable import write_atomically
from verl.errors import InfrastructureError, UserError, at_least, require

_SEARCHES = 16
"""Questions whose queries are under way at once; the client sends them together."""


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m preprocess.annotate``."""

    questions: str
    """Questions with gold evidence: HotpotQA's or 2WikiMultihopQA's ``.json``, MuSiQue's ``.jsonl``, or rows with
    ``evidence``, a list of sentences."""
    out: str
    """Folder to write to; a folder that was begun goes on."""
    url: str
    """Address, up to ``/v1``, of a server that speaks OpenAI's chat completions, or several, with commas."""
    model: str
    """Its name there; GPT-4o as published."""
    key_variable: str = ""
    """Environment variable that holds the key; empty sends none."""
    left: int = 0
    """The first row that is annotated, from 0; 10000 in a published slice of HotpotQA."""
    right: int = 2000
    """The row before which it ends."""
    workers: int = 32
    """Requests to the teacher under way at once."""
    temperature: float = 1.0
    """Of each draw; 1 as published."""
    max_tokens: int = 1000
    """The longest reply (tokens). 1000 as published."""
    seed: int = 0
    """Each draw's seed derives from it; servers may ignore it."""
    price_in: float = 0.0
    """Dollars for a million tokens of prompts; 0 shows no cost."""
    price_out: float = 0.0
    """Dollars for a million tokens of replies."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """The retrieval server that carries the queries out (``client.urls=``, ``client.dialect=``)."""
    candidates: int = 20
    """Passages that a query finds, among which its evidence is looked for. 20 as published."""
    least_recall: float = 0.5
    """The least share of a gold sentence (ROUGE-L recall) that the passage shown for it must hold; 0 shows the nearest
    one whatever it says, as published."""
    instruction: str = "published"
    """The protocol's wording, ``published`` or ``short``: that of the run which is warmed up."""

    def __post_init__(self) -> None:
        at_least(self, 1, "candidates", "workers", "max_tokens")
        require(0 <= self.left < self.right, "left", self.left, "write 0 or more, and less than right")
        require(0 <= self.least_recall <= 1, "least_recall", self.least_recall, "write a number in [0, 1]")
        require(self.instruction in ("published", "short"), "instruction", self.instruction, "write published or short")


async def annotate(config: Config) -> dict[str, Any]:
    """Ask, search, write the files; returns the report.

    Raises UserError if no row can be used, InfrastructureError if the teacher or the search failed for good: what was
    said until then is kept.
    """
    out, dropped = Path(config.out), list[dict[str, Any]]()
    questions = _questions(config, dropped)
    tasks = [Task(one.id, one.question, (one.answer,), prompt=teacher_prompt(one)) for one in questions]
    asking = sample.Config("", str(out / "teacher"), config.url, config.model, rounds=1, **_shared(config))
    costs = await sample.sample(asking, tasks)
    attempts = sample.Attempts(out / "teacher" / "attempts.jsonl")
    attempts.close()
    async with RetrievalClient(config.client) as client:
        written = await _write_all(config, questions, {name: said[0] for name, said in attempts.of.items()}, client)
    chats: list[Written] = []
    for question, found in zip(questions, written, strict=True):
        if isinstance(found, Written):
            chats.append(found)
        else:
            dropped.append({"id": question.id, "reason": found})
    selections = [{"messages": chat} for one in chats for chat in one.selections]
    _write_list(out / "warmup.json", [{"messages": one.messages} for one in chats])
    _write_list(out / "selections.json", selections)
    write_rows(out / "dropped.jsonl", dropped)
    report = {
        "settings": {**asdict(config), "client": {"urls": config.client.urls, "dialect": config.client.dialect}},
        "rows": len(questions) + sum("row" in one for one in dropped),
        "trajectories": len(chats),
        "selections": len(selections),
        "dropped": dict(Counter(one["reason"] for one in dropped)),
        **{key: costs[key] for key in ("prompt_tokens", "completion_tokens", "dollars")},
    }
    write_atomically(out / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def _questions(config: Config, dropped: list[dict[str, Any]]) -> list[Annotated]:
    """The usable rows; the others go to ``dropped``, one that has an earlier one's id too."""
    found: dict[str, Annotated] = {}
    for number, row in read_questions(Path(config.questions)):
        if not config.left < number <= config.right:
            continue
        if isinstance(row, str) or row.id in found:
            reason = row if isinstance(row, str) else "its id stands in an earlier row too"
            dropped.append({"row": number, "reason": reason})
        else:
            found[row.id] = row
    if not found:
        raise UserError(f"questions={config.questions}: no row from {config.left} to {config.right} can be annotated")
    return list(found.values())


def _shared(config: Config) -> dict[str, Any]:
    """Settings of the sampling: all tokens are drawn from. ``top_k`` is not sent: OpenAI's own API has none."""
    names = ("key_variable", "workers", "temperature", "max_tokens", "price_in", "price_out", "seed")
    return {"top_p": 1.0, "top_k": -1, **{name: getattr(config, name) for name in names}}


async def _write_all(
    config: Config, questions: Sequence[Annotated], replies: Mapping[str, Mapping[str, Any]], client: RetrievalClient
) -> list[Written | str]:
    """The chats in order; in place of one that cannot be written, why."""
    protocol = exsearch.build(exsearch.Config(instruction="short" if config.instruction == "short" else "published"))
    turn = asyncio.Semaphore(_SEARCHES)

    async def search(query: str) -> tuple[Document, ...]:
        try:
            return (await client.search(query, config.candidates)).documents
        except QueryRefused as error:
            raise Unusable("the search engine refuses a query") from error

    async def write(question: Annotated) -> Written | str:
        reply = replies[question.id]
        if reply["refused"] or not reply["whole"]:
            return "the server refused it" if reply["refused"] else "the teacher ran into max_tokens"
        try:
            async with turn:
                steps = read_steps(reply["text"], question)
                return await write_chat(steps, question, search, protocol, config.least_recall)
        except Unusable as fault:
            return str(fault)

    return await asyncio.gather(*map(write, questions))


def _write_list(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=1))


def main(arguments: Sequence[str]) -> int:
    """Annotate by ``key=value`` arguments; returns the exit status."""
    config = parse(Config, arguments)
    try:
        report = asyncio.run(annotate(config))
    except InfrastructureError as error:
        print(f"error: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    run(main)
