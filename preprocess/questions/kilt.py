"""Rows of KILT's files (Wizard of Wikipedia and others) as rows that the loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_agent.evaluation.kilt import PROVENANCE


def flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """``input`` as the question (of a dialogue: all its turns, a line each), the answers of ``output``, each once, and
    the titles of the pages that each stands on. Any other row as it is."""
    outputs = row.get("output")
    if "input" not in row or not isinstance(outputs, list):
        return row
    outputs = [output for output in outputs if isinstance(output, Mapping)]
    answers = [output["answer"].strip() for output in outputs if isinstance(output.get("answer"), str)]
    named = [[str(page["title"]) for page in output.get("provenance") or [] if "title" in page] for output in outputs]
    return {
        "id": row.get("id"),
        "question": row["input"],
        "golden_answers": list(dict.fromkeys(answer for answer in answers if answer)),
        PROVENANCE: [list(dict.fromkeys(titles)) for titles in named if titles],
    }
