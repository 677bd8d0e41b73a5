"""From what a teacher wrote to ExSearch's chat: its queries are carried out, and its facts stand on what was found.

The teacher's text is data: it is read line by line, every sentence that it quotes must be one of the question's own,
and a fact that stands on no passage shown is not taught. Pure, but for the search that is handed in.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from preprocess.annotate.evidence import Annotated
from preprocess.annotate.rouge import rouge_l
from search_agent.protocols.base import Passage
from search_agent.protocols.exsearch import ExSearch, selection, selection_prompt

Search = Callable[[str], Awaitable[Sequence[Passage]]]
_LINE = re.compile(r"\s*<\s*(search|reference|keyword|final)\s*(\d{0,3})\s*>\s*:?\s*(.*)", re.IGNORECASE)
_TAG = re.compile(r"<\s*/?\s*(?:query|think|search|fact|final|user query)\s*>", re.IGNORECASE)
_QUOTED = 0.7
"""ROUGE-L F from which a reference counts as a quotation of a gold sentence: teachers drop a comma or a bracket."""

INSTRUCTION = """\
Below are a question, its answer, and the sentences that together support the answer. Write how a careful searcher \
would have come to it, one step after another. A step is three lines:
<Search n> a short query for the next thing to find out, in words that can be known at that point
<Reference n> the sentence below that answers the query, copied word for word (several: a line each)
<Keyword n> what that sentence says about the question, in one short sentence
Number the steps from 1. Use only the sentences below, and each of them once. Write <Final> on a line of its own after \
the last step, and nothing else.

Question: {question}
Answer: {answer}
Sentences:
{sentences}"""


class Unusable(Exception):
    """Why a teacher's text is not learned from."""


@dataclass(frozen=True, slots=True)
class Step:
    """One query, the gold sentences that are to be found by it, and what is noted down."""

    query: str
    evidence: tuple[str, ...]
    fact: str


@dataclass(frozen=True, slots=True)
class Written:
    """What is learned from one question."""

    messages: list[dict[str, str]]
    selections: list[list[dict[str, str]]]
    """A chat of one turn for each search: the numbers of the useful passages among all that were found."""


def teacher_prompt(question: Annotated) -> str:
    """What the teacher is asked."""
    listed = "\n".join(f"- {sentence}" for sentence in question.evidence)
    texts = {"question": question.question, "answer": question.answer, "sentences": listed}
    return re.sub(r"\{(\w+)\}", lambda field: texts[field[1]], INSTRUCTION)  # in one go: a text may hold braces


def read_steps(text: str, question: Annotated) -> list[Step]:
    """The steps of a teacher's text. Raises Unusable that says what is wrong with it."""
    lines = [match for line in text.rpartition("</think>")[2].splitlines() if (match := _LINE.match(line))]
    if not lines or lines[-1][1].lower() != "final":
        raise Unusable("it does not end with <Final>")
    parts: dict[int, dict[str, list[str]]] = {}
    for match in lines[:-1]:
        kind, number, said = match[1].lower(), match[2], " ".join(match[3].split())
        if kind == "final" or not number:
            raise Unusable("<Final> stands before the end, or a line has no number")
        parts.setdefault(int(number), {}).setdefault(kind, []).append(said)
    if list(parts) != list(range(1, len(parts) + 1)) or not parts:
        raise Unusable("its steps are not numbered from 1 in order")
    return [_step(part, question) for part in parts.values()]


def _step(part: dict[str, list[str]], question: Annotated) -> Step:
    if len(part.get("search", [])) != 1 or len(part.get("keyword", [])) != 1 or not part.get("reference"):
        raise Unusable("a step has not one query, its references and one fact")
    query, fact = part["search"][0], part["keyword"][0]
    if not query or not fact:
        raise Unusable("a query or a fact is empty")
    if _TAG.search(query) or _TAG.search(fact):
        raise Unusable("a query or a fact spells a tag of the protocol")
    return Step(query, tuple(dict.fromkeys(_gold(said, question) for said in part["reference"])), fact)


def _gold(said: str, question: Annotated) -> str:
    """The gold sentence that a reference quotes."""
    best = max(question.evidence, key=lambda sentence: rouge_l(sentence, said).f)
    if rouge_l(best, said).f < _QUOTED:
        raise Unusable("a reference quotes none of the question's sentences")
    return best


async def write_chat(
    steps: Sequence[Step], question: Annotated, search: Search, protocol: ExSearch, least_recall: float
) -> Written:
    """Carry the queries out; each gold sentence stands for the passage found that has the highest ROUGE-L F with it.

    Those passages are what the search shows. Raises Unusable if one of them holds less than ``least_recall`` of the
    sentence's words in order: the fact would then stand on nothing that was read.
    """
    messages, selections, fact = [_user(protocol.prompt(question.question))], [], ""
    for step in steps:
        messages.append(_assistant(f"{fact}<QUERY> {step.query}"))
        passages = await search(step.query)
        if not passages:
            raise Unusable("a query finds nothing")
        numbers = list(dict.fromkeys(_found(sentence, passages, least_recall) for sentence in step.evidence))
        chosen = [passages[number] for number in numbers]
        messages.append(_user("".join(protocol.observe_results(chosen))))
        selections.append([_user(selection_prompt(step.query, passages)), _assistant(selection(numbers))])
        fact = f"<FACT> {step.fact}\n"
    messages.append(_assistant(f"{fact}<FINAL>"))
    messages += [_user(protocol.last_call(question.question).lstrip()), _assistant(question.answer)]
    return Written(messages, selections)


def _found(sentence: str, passages: Sequence[Passage], least_recall: float) -> int:
    scores = [rouge_l(sentence, f"{passage.title} {passage.text}") for passage in passages]
    best = max(range(len(scores)), key=lambda number: scores[number].f)
    if scores[best].recall < least_recall:
        raise Unusable("a query does not find its evidence")
    return best


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
