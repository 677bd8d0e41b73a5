"""Entity extractor, a plug-in: the names that a text speaks of, by a spaCy pipeline or by a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from verl.errors import UserError

Entities = Callable[[str], list[str]]
"""A text to the names in it, each as often as it stands there."""
_CAPITALISED = r"\b[A-Z][\w'-]*(?:\s+(?:(?:of|the|de|van|von|and)\s+)?[A-Z][\w'-]*)*"


@dataclass(frozen=True)
class Config:
    """How names are found."""

    spacy: str = ""
    """An installed spaCy pipeline, ``en_core_web_sm`` as published; empty takes what ``pattern`` finds."""
    pattern: str = _CAPITALISED
    """A regular expression of names, without groups that capture: spans of capitalised words."""

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise UserError(f"pattern={self.pattern}: is no regular expression ({error})") from error
        if groups:
            raise UserError(f"pattern={self.pattern}: captures {groups} groups; write (?:...) for each")


def build(config: Config) -> Entities:
    """Make the extractor. Raises UserError if the pipeline is not installed."""
    if not config.spacy:
        return re.compile(config.pattern).findall
    try:
        import spacy  # type: ignore[import-not-found]

        pipeline = spacy.load(config.spacy)
    except (ImportError, OSError) as error:
        raise UserError(f"entities.spacy={config.spacy}: install spacy and that pipeline, or write none") from error
    return lambda text: [entity.text for entity in pipeline(text).ents]
