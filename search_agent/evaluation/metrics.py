"""What an answer and a ranking are worth: pure functions, exact where the field has published values.

Answers: ``score_answer`` gives the five numbers of FlashRAG and of the systems reproduced here at once, each the best
over the accepted answers, taken by itself: precision, recall and F1 may come from different ones.
Rankings: ``ranking`` is passage ids, best first; ``grades`` says how relevant each judged passage is, 0 or less for not
at all. A passage that is listed twice counts where it stands first. A question without a relevant passage has no
ranking score: that is a ValueError, not a zero that would sink a mean.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from search_agent.rewards.text import compared, cover_match, exact_match, overlap


class AnswerScores(NamedTuple):
    """Each in [0, 1]; the names of FlashRAG's ``metric_score.txt``, where ``acc`` is cover match."""

    em: float
    f1: float
    precision: float
    recall: float
    acc: float


def score_answer(prediction: str, golds: Sequence[str]) -> AnswerScores:
    """Score one answer. Raises ValueError without an accepted answer, as nothing could then be right."""
    if not golds:
        raise ValueError("no accepted answer to score against")
    overlaps = [overlap(*pair) for pair in compared(prediction, golds)]
    precision, recall, f1 = (max(column) for column in zip(*overlaps, strict=True))
    return AnswerScores(exact_match(prediction, golds), f1, precision, recall, cover_match(prediction, golds))


def ndcg(
    ranking: Iterable[str], grades: Mapping[str, float], k: int, ideal: Literal["sorted", "listed"] = "sorted"
) -> float:
    """nDCG@k with the grade as gain and 1 / log2(rank + 1) as discount (Järvelin and Kekäläinen 2002; trec_eval's).

    ``ideal="listed"`` takes the judged passages in the order of ``grades`` for the ideal ranking, as DeepRetrieval's
    code does: it can exceed 1.
    """
    found = [grades.get(identifier, 0.0) for identifier in _first(ranking, k)]
    gains = [max(0.0, grade) for grade in grades.values()]
    _relevant(grades)  # raises where nothing is relevant
    return _dcg(found) / _dcg((sorted(gains, reverse=True) if ideal == "sorted" else gains)[:k])


def recall(ranking: Iterable[str], grades: Mapping[str, float], k: int) -> float:
    """Share of the relevant passages among the first ``k``."""
    relevant = _relevant(grades)
    return len(relevant.intersection(_first(ranking, k))) / len(relevant)


def hit(ranking: Iterable[str], grades: Mapping[str, float], k: int) -> float:
    """1 if one of the first ``k`` passages is relevant, else 0; some papers print it as recall@k."""
    return float(not _relevant(grades).isdisjoint(_first(ranking, k)))


def reciprocal_rank(ranking: Iterable[str], grades: Mapping[str, float]) -> float:
    """1 / rank of the first relevant passage, 0 where none is found; its mean over questions is MRR (trec_eval's)."""
    relevant, found = _relevant(grades), dict.fromkeys(ranking)
    return next((1 / rank for rank, identifier in enumerate(found, start=1) if identifier in relevant), 0.0)


def first_answer_rank(passages: Iterable[str], golds: Sequence[str]) -> int | None:
    """Rank, from 1, of the first passage that holds an accepted answer; None if none does.

    As in DPR (arXiv 2004.04906): whole words in a row, Unicode decomposed, lower case. An empty answer matches nothing.
    """
    wanted = [_row(words) for gold in golds if (words := _words(gold))]
    for rank, passage in enumerate(passages, start=1):
        text = _row(_words(passage))
        if any(words in text for words in wanted):
            return rank
    return None


_ASCII_WORD = re.compile(r"[A-Za-z0-9]+|[!-~]")


def _words(text: str) -> list[str]:
    """Runs of letters, digits and marks, and any other visible character by itself."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    words: list[str] = []
    inside = False
    for character in unicodedata.normalize("NFD", text).lower():
        kind = unicodedata.category(character)[0]
        if kind in "LNM" and inside:
            words[-1] += character
        elif kind not in "ZC":
            words.append(character)
        inside = kind in "LNM"
    return words


def _row(words: Sequence[str]) -> str:
    """Words so joined that whole words in a row are a substring; no word holds a NUL."""
    return "\0" + "\0".join(words) + "\0"


def _first(ranking: Iterable[str], k: int) -> list[str]:
    if k < 1:
        raise ValueError(f"k is {k}: the first passages that count number at least 1")
    return list(dict.fromkeys(ranking))[:k]


def _relevant(grades: Mapping[str, float]) -> set[str]:
    relevant = {identifier for identifier, grade in grades.items() if grade > 0}
    if not relevant:
        raise ValueError("no passage is judged relevant: the question has no ranking score")
    return relevant


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1) if gain > 0)
