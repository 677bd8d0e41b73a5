"""DeepRetrieval's protocol (arXiv 2503.00223): one turn, in which the policy thinks and writes what is executed.

    <think> ... </think> <answer>{"query": "..."}</answer>          (SQL: {"sql": "..."})

The prompt ends with an opened ``<think>``. What the answer asks for is carried out when the episode has ended; nothing
is shown to the policy any more. Wordings are ours; what they ask for is the published prompts'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search_agent.protocols.actions import Action, Answer, Call, Invalid, Turns
from search_agent.protocols.base import Passage, TagProtocol
from search_agent.protocols.render import read_prompt
from verl.trajectory import Segment

Family = Literal["literature", "trials", "evidence", "sparse", "dense", "sql", "short", "sql_short"]

MAX_QUERY_CHARS = 20_000
"""A longer query is no query: whoever carries it out is not to be kept busy by it."""
_BOOLEAN = "Combine terms with AND and OR, and group them with parentheses."
_ROLES: dict[Family, str] = {
    "literature": "You search the medical literature for systematic reviews. From the question's population (P), "
    f"intervention (I), comparison (C) and outcome (O), write a PubMed query that finds the publications. {_BOOLEAN}",
    "trials": "You search for clinical trials. From the question's population (P), intervention (I), comparison (C) "
    f"and outcome (O), write a query for ClinicalTrials.gov that finds the trials. {_BOOLEAN}",
    "evidence": "Rewrite the question as a query that finds Wikipedia passages which answer it, with a search engine "
    "that matches words (BM25). A question that is a good query already may stay as it is.",
    "sparse": "Rewrite the text below as a query that finds the documents relevant to it, with a search engine that "
    "matches words (BM25). Add words that such documents use.",
    "dense": "Extend the text below to a query that finds the documents relevant to it, with a search engine that "
    "matches meanings. Keep the text and add to it, or leave it as it is.",
    "sql": "Write one SQLite query that answers the question. Use the tables and columns of the schema alone.",
    "short": "",
    "sql_short": "",
}


@dataclass(frozen=True)
class Config:
    """Settings of the protocol."""

    family: Family = "evidence"
    """What is searched, and so how the prompt words the task; ``short`` and ``sql_short`` are the bare question, for
    tiny models."""
    reasoning: bool = True
    """Whether the policy thinks first; false asks for the answer at once, and its tags alone are the format."""
    prompt_file: str | None = None
    """A file whose text, with ``{question}`` in it, replaces the family's prompt."""


class DeepRetrieval(TagProtocol):
    """One turn whose answer is executed."""

    name = "deepretrieval"
    system = None
    stop = ("</answer>",)
    tools = ()
    results = "results"

    def __init__(self, config: Config) -> None:
        self.tool = "sql" if config.family.startswith("sql") else "query"
        """What is called; the query's key in the answer has the same name."""
        self.blocks = ("think", "answer") if config.reasoning else ("answer",)
        self.prefill = f"<{self.blocks[0]}>"
        self._template = read_prompt(config.prompt_file, needs_question=True) if config.prompt_file else None
        self._config = config

    def prompt(self, question: str) -> str:
        """The role, the format and the question."""
        if self._template is not None:
            return self._template.replace("{question}", question.strip())
        if not _ROLES[self._config.family]:
            return f"{question.strip()}\n"
        think = "Think first, between <think> and </think>. " if self._config.reasoning else ""
        return (
            f"{_ROLES[self._config.family]}\n{think}Then write the query as JSON between <answer> and </answer>, like "
            f'this: <answer>{{"{self.tool}": "..."}}</answer>\n\n{question.strip()}\n'
        )

    def parse(self, turns: Turns) -> Action:
        """The answer in the last answer block, with the call that it asks for where it holds one."""
        body = answer_body(turns.newest)
        if body is None:
            return Invalid("<answer> is not closed")
        query = query_in(body, self.tool)
        return Answer(body, None if query is None else Call(self.tool, query))

    def format_valid(self, turns: Sequence[Segment], actions: Sequence[Action]) -> bool:
        """Each tag exactly once, in order; what stands outside them is not looked at, as published."""
        return len(turns) == 1 and tags_once(turns[0].text, self.blocks)

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """Nothing is shown: there is no turn after the first."""
        return [""]

    def observe_invalid(self, reason: str) -> str:
        """Nothing is said either."""
        return ""


def build(config: Config) -> DeepRetrieval:
    """Make the protocol."""
    return DeepRetrieval(config)


def answer_body(text: str) -> str | None:
    """The stripped contents of the last ``<answer>`` block; None if none is closed."""
    bodies = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return bodies[-1].strip() if bodies else None


def query_in(body: str, key: str) -> str | None:
    """The query in an answer's JSON; None unless it is an object whose ``key`` is a string of bearable length."""
    if len(body) > 2 * MAX_QUERY_CHARS:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    query = value.get(key) if isinstance(value, dict) else None
    return query.strip() if isinstance(query, str) and query.strip() and len(query) <= MAX_QUERY_CHARS else None


def tags_once(text: str, blocks: Sequence[str]) -> bool:
    """Whether every block's tags occur exactly once, and one after the other."""
    tags = [tag for block in blocks for tag in (f"<{block}>", f"</{block}>")]
    if any(text.count(tag) != 1 for tag in tags):
        return False
    places = [text.find(tag) for tag in tags]
    return places == sorted(places)
