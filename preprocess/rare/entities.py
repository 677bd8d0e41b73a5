"""Entity extractor, a plug-in: the names that a text speaks of, by a spaCy pipeline or by capital letters."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from verl.errors import UserError

Entities = Callable[[str], list[str]]
"""A text to the names in it, each as often as it stands there."""
_SPAN = re.compile(r"\b[A-Z][\w'-]*(?:\s+(?:(?:of|the|de|van|von|and)\s+)?[A-Z][\w'-]*)*")


@dataclass(frozen=True)
class Config:
    """How names are found."""

    spacy: str = ""
    """An installed spaCy pipeline, ``en_core_web_sm`` as published; empty takes spans of capitalised words."""


def build(config: Config) -> Entities:
    """Make the extractor. Raises UserError if the pipeline is not installed."""
    if not config.spacy:
        return _SPAN.findall
    try:
        import spacy  # type: ignore[import-not-found]

        pipeline = spacy.load(config.spacy)
    except (ImportError, OSError) as error:
        raise UserError(f"entities.spacy={config.spacy}: install spacy and that pipeline, or write none") from error
    return lambda text: [entity.text for entity in pipeline(text).ents]
