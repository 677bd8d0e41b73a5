"""Boolean queries as PubMed reads them, over one SQLite FTS5 table.

    (aspirin OR "acetylsalicylic acid") AND stroke[ti] NOT child*

AND, OR and NOT in capitals are operators and are evaluated from left to right; parentheses override; terms that stand
side by side are joined by AND; quotes make a phrase, ``*`` at a word's end matches every continuation; a tag in square
brackets says which fields to look in. (https://pubmed.ncbi.nlm.nih.gov/help, "Boolean operators")

A query is a tree of set operations over what single terms match, so its cost is bounded by its number of terms.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FIELDS = {"ti": "title", "title": "title", "ab": "abstract", "tiab": "title abstract", "mh": "mesh", "mesh": "mesh"}
"""Which columns a tag looks in; an unknown tag looks in all, as does none."""
MAX_TERMS = 256
MAX_DEPTH = 64

_token = re.compile(r'\s*(?:(\()|(\))|"([^"]*)"?|([^\s()"\[\]]+)|(\[[^\]]*\]?)|(\]))')
_word = re.compile(r"\w+", re.UNICODE)


class BadQuery(ValueError):
    """The query cannot be read; its writer's fault."""


@dataclass(frozen=True)
class Record:
    """One thing that can be found: an article or a trial."""

    id: str
    title: str
    abstract: str
    mesh: str = ""
    date: str = "1970/01/01"
    """``YYYY/MM/DD``."""


Found = frozenset[int]
Match = Callable[[str, str | None, bool], Found]
"""What a term finds: its text, its tag, and whether it is a prefix."""


def evaluate(query: str, match: Match, everything: Callable[[], Found], *, strict: bool = False) -> Found:
    """The rows that ``query`` finds. Raises BadQuery for too many terms or too deep a nesting, and, with ``strict``,
    for parentheses that do not balance (PubMed closes what is open and drops what was never opened)."""
    return _Reader(_tokens(query), match, everything, strict).read()


def _tokens(query: str) -> list[tuple[str, str]]:
    tokens = []
    for match in _token.finditer(query):
        opened, closed, phrase, word, tag, _ = match.groups()
        if opened or closed:
            tokens.append((opened or closed, ""))
        elif phrase is not None:
            tokens.append(("phrase", phrase))
        elif word is not None:
            tokens.append((word, "") if word in ("AND", "OR", "NOT") else ("word", word))
        elif tag is not None:
            tokens.append(("tag", tag.strip("[]").lower()))
    return tokens


class _Reader:
    """Reads tokens from left to right and keeps the rows found so far."""

    def __init__(
        self, tokens: list[tuple[str, str]], match: Match, everything: Callable[[], Found], strict: bool
    ) -> None:
        if sum(kind in ("word", "phrase") for kind, _ in tokens) > MAX_TERMS:
            raise BadQuery(f"more than {MAX_TERMS} terms")
        self._tokens, self._at = tokens, 0
        self._match, self._everything, self._strict = match, everything, strict

    def read(self) -> Found:
        found = self._expression(0)
        while self._at < len(self._tokens):  # a closing parenthesis that nothing opened
            if self._strict:
                raise BadQuery("a closing parenthesis without an opening one")
            self._at += 1
            rest = self._expression(0)
            found = _joined("AND", found, rest, self._everything)
        return found if found is not None else frozenset()

    def _expression(self, depth: int) -> Found | None:
        if depth > MAX_DEPTH:
            raise BadQuery(f"parentheses nested deeper than {MAX_DEPTH}")
        found: Found | None = None
        operator = "AND"
        while self._at < len(self._tokens) and self._tokens[self._at][0] != ")":
            kind, text = self._tokens[self._at]
            self._at += 1
            if kind in ("AND", "OR", "NOT"):
                operator = kind if operator != "NOT" else "NOT"
                continue
            if kind == "(":
                operand = self._expression(depth + 1)
                if self._at < len(self._tokens):
                    self._at += 1
                elif self._strict:
                    raise BadQuery("an opening parenthesis without a closing one")
            elif kind == "tag":
                continue
            else:
                operand = self._term(kind, text)
            found = _joined(operator, found, operand, self._everything)
            operator = "AND"
        return found

    def _term(self, kind: str, text: str) -> Found | None:
        tag = None
        if self._at < len(self._tokens) and self._tokens[self._at][0] == "tag":
            tag = self._tokens[self._at][1]
            self._at += 1
        prefix = kind == "word" and text.endswith("*")
        words = _word.findall(text)
        return self._match(" ".join(words), tag, prefix) if words else None


def _joined(operator: str, left: Found | None, right: Found | None, everything: Callable[[], Found]) -> Found | None:
    """``left operator right``; an operand that says nothing (None) leaves the other as it is."""
    if right is None:
        return left
    if operator == "NOT":
        return (everything() if left is None else left) - right
    if left is None:
        return right
    return left | right if operator == "OR" else left & right


class Library:
    """Records in an FTS5 table, in memory. Safe to call from several threads."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self._lock = threading.Lock()
        self._table = sqlite3.connect(":memory:", check_same_thread=False)
        self._table.execute("CREATE VIRTUAL TABLE t USING fts5(title, abstract, mesh, tokenize='porter unicode61')")
        rows = ((number, record.title, record.abstract, record.mesh) for number, record in enumerate(self.records))
        self._table.executemany("INSERT INTO t(rowid, title, abstract, mesh) VALUES (?, ?, ?, ?)", rows)
        # PubMed's order where none is asked for: the newest first.
        newest = sorted(range(len(self.records)), key=lambda row: (self.records[row].date, row), reverse=True)
        self._rank = {row: rank for rank, row in enumerate(newest)}
        self.by_id: Mapping[str, Record] = {record.id: record for record in self.records}

    def search(self, query: str, *, earliest: str = "", latest: str = "9999", strict: bool = False) -> list[Record]:
        """What ``query`` finds among records of those dates (inclusive), the newest first. Raises BadQuery."""
        found = evaluate(query, self._match, lambda: frozenset(self._rank), strict=strict)
        rows = sorted(found, key=self._rank.__getitem__)
        dated = (self.records[row] for row in rows)
        return [record for record in dated if earliest <= record.date <= latest]

    def _match(self, text: str, tag: str | None, prefix: bool) -> Found:
        columns = FIELDS.get(tag or "")
        expression = f'"{text}"' + (" *" if prefix else "")
        if columns:
            expression = f"{{{columns}}} : {expression}"
        with self._lock:
            rows: list[tuple[Any, ...]] = self._table.execute(
                "SELECT rowid FROM t WHERE t MATCH ?", (expression,)
            ).fetchall()
        return frozenset(row for (row,) in rows)
