"""What ``method=`` and ``benchmark=`` of ``cmd/eval.sh`` stand for, as keys; a key that the user names stays theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verl.config.compose import last_value, quoted
from verl.config.nearest import nearest
from verl.errors import UserError

_NO_SEARCH = {"environment.max_turns": "0", "retriever": "none"}
METHODS: Mapping[str, Mapping[str, str]] = {
    "agent": {},
    "direct": _NO_SEARCH,
    "given": _NO_SEARCH,
    "rag": {"environment.max_turns": "0"},
    "ircot": {"environment.max_turns": "4"},
    "iterretgen": {"environment.max_turns": "2"},
}
"""Each with FlashRAG's settings: so many searches after the first, then the last turn. ``agent`` is the recipe's."""


def chosen(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``method=`` and ``benchmark=`` replaced by what they stand for.

    Raises UserError if there is no such method.
    """
    method, sets = last_value(arguments, "method"), last_value(arguments, "benchmark")
    others = [argument for argument in arguments if not argument.startswith(("method=", "benchmark="))]
    if sets is not None:
        if (data := last_value(others, "data")) not in (None, "benchmark"):
            raise UserError(f"benchmark={sets} is the data: leave data={data} out")
        names = ",".join(quoted(name.strip()) for name in sets.split(","))
        others = ["data=benchmark", f"data.sets=[{names}]", *(each for each in others if each != "data=benchmark")]
    if method is None or method == "agent":
        return others
    if method not in METHODS:
        raise UserError(f"method={method}: no such method{nearest(method, METHODS)}; there are: {', '.join(METHODS)}")
    if (protocol := last_value(others, "protocol")) not in (None, method):
        raise UserError(f"method={method} is a protocol itself: leave protocol={protocol} out, or write method=agent")
    stands_for = {"protocol": method, "environment.plugin": "search_agent.methods.composing", "reward": "em"}
    return [
        *(
            f"{key}={value}"
            for key, value in {**stands_for, **METHODS[method]}.items()
            if last_value(others, key) is None
        ),
        *others,
    ]
