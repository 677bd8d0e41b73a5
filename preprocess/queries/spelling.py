"""The second spelling of a word: the same for every world, and no word of the first one."""

from __future__ import annotations

import random
from functools import cache

from preprocess.embedded import names
from verl.seeds import derive_seed

_ONSETS = (
    "b",
    "br",
    "ch",
    "d",
    "dr",
    "f",
    "g",
    "gl",
    "h",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "sk",
    "t",
    "v",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "oa")
_ENDS = ("x", "k", "m", "th", "sh", "b")


@cache
def second_spellings() -> dict[str, str]:
    """Every word of the inventories and its second spelling; no two are alike, and none ends like an inflected word."""
    lists = (
        names.FIRST_NAMES,
        names.LAST_NAMES,
        names.WORK_COLOURS,
        names.WORK_NOUNS,
        names.CITY_FIRST,
        names.CITY_SECOND,
    )
    words = [word for inventory in lists for word in inventory]
    rng = random.Random(derive_seed(0, "second spellings"))
    taken, spelled = set(words), {}
    for word in words:
        while (other := _invent(rng)) in taken:
            pass
        taken.add(other)
        spelled[word] = other
    return spelled


def _invent(rng: random.Random) -> str:
    draw = rng.choice
    return draw(_ONSETS) + draw(_VOWELS) + draw(_ONSETS) + draw(_VOWELS) + draw(_ENDS)


def spell(name: str, rng: random.Random, second: float) -> str:
    """A name whose words are each in their second spelling with the probability ``second``."""
    spellings = second_spellings()
    return " ".join(spellings[word] if rng.random() < second else word for word in name.split())


def first_spelling(name: str) -> str:
    """A name in its first spelling, however it was spelled."""
    first = {second: word for word, second in second_spellings().items()}
    return " ".join(first.get(word, word) for word in name.split())
