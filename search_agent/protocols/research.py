"""The ReSearch protocol: think, search while reasoning, answer in a box (arXiv 2503.19470).

    <think> .. </think> <search> .. </search>              -> <result> passages </result>
    <think> .. </think> <answer> .. \\boxed{..} .. </answer>  and the end of the turn, which the policy samples

The first turn opens with a thought; later turns may. Only a search stops a turn: the policy must end its last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search_agent.protocols.actions import Action, Answer, Call, Invalid, Turns
from search_agent.protocols.base import Passage, TagProtocol, parse_action
from search_agent.protocols.boxed import last_boxed, plain
from search_agent.protocols.render import read_prompt
from verl.trajectory import Segment


@dataclass(frozen=True)
class Config:
    """Settings of the ReSearch protocol."""

    template: Literal["base", "chat"] = "base"
    """``base`` writes a conversation as raw text, for base models; ``chat`` gives the instruction as the system message
    and the question as the user's, and needs ``environment.framing: chat``."""
    instruction: Literal["short", "published"] = "published"
    """``published`` explains every tag, for models that have never seen them; ``short`` is one line, for models that
    a warm-up has taught the format."""
    prompt_file: str | None = None
    """A file whose text replaces the instruction: the exact wording that a released checkpoint was trained on, say.
    ``base`` needs ``{question}`` in it; under ``chat`` it is the system message. null uses ``instruction``."""
    prefill: str = ""
    """What begins the assistant's turn in the policy's stead, ``<think>`` say: read with the turn, never trained."""
    compat: Literal["none", "upstream"] = "none"
    """``upstream`` judges the format as the published code does (counts of tags, one answer with a box, orders not
    checked), searches wherever a turn stops at ``</search>``, whatever it answered before, and leaves LaTeX in the
    answer, so that ``\\text{Paris}`` is wrong; ``none`` checks the order of the blocks and reads ``Paris``."""


class ReSearch(TagProtocol):
    """Implements ``SearchProtocol``."""

    name = "research"
    blocks = ("think", "search", "answer")
    results = "result"
    stop = ("</search>",)

    def __init__(self, config: Config) -> None:
        self.config, self.prefill = config, config.prefill
        chat = config.template == "chat"
        if config.prompt_file:
            text = read_prompt(config.prompt_file, needs_question=not chat)
        else:
            text = _SHORT if config.instruction == "short" else _PUBLISHED
            text = text if chat else f"{text} User: {{question}}. Assistant:"
        self.system = text if chat else None
        self._template = "{question}" if chat else text

    def prompt(self, question: str) -> str:
        """The whole text for a base model, the user's message for a chat model."""
        return self._template.replace("{question}", question.strip())

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """``<result>``, the passages with blank lines between them, ``</result>``."""
        texts = [(f'"{passage.title}"\n' if passage.title else "") + passage.text.strip() for passage in passages]
        return [" <result>\n", *(text if i == 0 else f"\n\n{text}" for i, text in enumerate(texts)), "\n</result>"]

    def observe_invalid(self, reason: str) -> str:
        """The fault, in the place of a result."""
        return f" <result>\nnothing was searched: {reason}\n</result>"

    def parse(self, turns: Turns) -> Action:
        """The action that closes first, but for an answer without a box that a search or a boxed answer follows."""
        text = turns.newest
        if self.config.compat == "upstream":
            return _published_action(text)
        first, rest = parse_action(text), text
        action: Action = first
        while isinstance(action, Answer) and last_boxed(action.text) is None:
            rest = rest[rest.index("</answer>") + len("</answer>") :]
            action = parse_action(rest)
        return first if isinstance(action, Invalid) else action

    def final_answer(self, text: str) -> str | None:
        """What the last box holds."""
        box = last_boxed(text)
        return box if box is None or self.config.compat == "upstream" else plain(box)

    def in_order(self, names: Sequence[str], after_results: bool) -> bool:
        """``think`` first, optional after results."""
        opening = list(names[:-1])
        allowed = ([], ["think"]) if after_results else (["think"],)
        return opening in allowed and names[-1] in (*self.tools, "answer")

    def format_valid(self, turns: Sequence[Segment], actions: Sequence[Action]) -> bool:
        """The order of the blocks, and a box in the answer."""
        if self.config.compat == "upstream":
            return _counts_valid([turn.text for turn in turns])
        if not super().format_valid(turns, actions):
            return False
        return isinstance(actions[-1], Answer) and last_boxed(actions[-1].text) is not None


def build(config: Config) -> ReSearch:
    """Make the protocol."""
    return ReSearch(config)


def _published_action(text: str) -> Action:
    """What the published code does: it searches for the last query wherever a turn stops at the end of a search."""
    end = text.rfind("</search>")
    if end < 0:
        return parse_action(text)
    begin = text.rfind("<search>", 0, end)
    query = text[begin + len("<search>") : end].strip() if begin >= 0 else ""
    return Call("search", query) if query else Invalid("the query is empty")


def _counts_valid(turns: Sequence[str]) -> bool:
    """The published code's check, on what the policy wrote: passages can neither break nor mend a format."""
    text = "".join(turns)
    if not 0 < text.count("<think>") == text.count("</think>"):
        return False
    if not text.count("<answer>") == text.count("</answer>") == 1:
        return False
    if any("</search>" not in turn[turn.find("<search>") :] for turn in turns if "<search>" in turn):
        return False
    begin, end = text.find("<answer>"), text.find("</answer>")
    return begin < end and "\\boxed{" in text[begin:end] and "}" in text[begin:end]


_SHORT = "Search, then answer in a box."
_PUBLISHED = """\
An Assistant works out the question of a User step by step, with a wikipedia search tool at hand. It thinks before it \
answers, and searches while it thinks whenever a fact is missing. Reasoning stands between <think> and </think>, the \
final part between <answer> and </answer>; a query stands between <search> and </search>, and what was found is given \
between <result> and </result>. For example: <think> reasoning </think> <search> a query </search> <result> what was \
found </result> <think> more reasoning </think> <answer> so it is \\[ \\boxed{the answer} \\] </answer>. The exact \
answer, and nothing else, stands inside \\boxed{}."""
