"""Matching short answers: the measures that question answering has used since SQuAD (arXiv 1606.05250).

Pure functions of strings. ``golds`` is the list of accepted answers; each function takes the best match over it.
Punctuation is ASCII punctuation, as the published scores have it: curly quotes, dashes and accents count.

A gold answer that normalises to nothing (``A`` of a multiple choice, the band ``The The``) keeps its articles, and if
it is all punctuation that too. The published scores give ``A`` away to an empty answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED = frozenset({"yes", "no", "noanswer"})


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, white space collapsed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 if an accepted answer is equal after normalisation, else 0."""
    return float(any(ours == theirs for ours, theirs in compared(prediction, golds)))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """Token F1 in [0, 1]; an answer of yes, no or noanswer earns nothing unless it is equal."""
    return max((overlap(*pair)[2] for pair in compared(prediction, golds)), default=0.0)


def cover_match(prediction: str, golds: Sequence[str]) -> float:
    """1 if an accepted answer is a substring after normalisation, else 0; the published ``cem``, ``acc``, ``sub_em``.

    Characters, not words: ``11`` covers ``1``. One that normalises to nothing has to be equal: any text holds it.
    """
    pairs = compared(prediction, golds)
    return float(any(theirs in ours if normalise(theirs) else theirs == ours for ours, theirs in pairs))


def word_match(prediction: str, golds: Sequence[str]) -> float:
    """1 if an accepted answer stands in the prediction as whole words, else 0.

    Golds of yes, no, noanswer and nothing never match: any longer text holds them, whatever it says.
    """
    normal = f" {normalise(prediction)} "
    wanted = [normalise(gold) for gold in golds]
    return float(any(f" {gold} " in normal for gold in wanted if gold and gold not in _CLOSED))


def compared(prediction: str, golds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Prediction and each gold in one form: normalised, or with as much kept as the gold needs to be something."""
    normal = normalise(prediction)
    for gold in golds:
        if theirs := normalise(gold):
            yield normal, theirs
        elif theirs := _with_articles(gold):
            yield _with_articles(prediction), theirs
        else:
            yield _raw(prediction), _raw(gold)


def _with_articles(text: str) -> str:
    return _raw(text.translate(_PUNCTUATION))


def _raw(text: str) -> str:
    return " ".join(text.lower().split())


def overlap(prediction: str, gold: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of the words of two ``compared`` texts; all 0 where one is a different yes or no."""
    if prediction == gold:
        return 1.0, 1.0, 1.0
    if prediction in _CLOSED or gold in _CLOSED:
        return 0.0, 0.0, 0.0
    ours, theirs = prediction.split(), gold.split()
    common = (Counter(ours) & Counter(theirs)).total()
    if not common:
        return 0.0, 0.0, 0.0
    return common / len(ours), common / len(theirs), 2 * common / (len(ours) + len(theirs))
