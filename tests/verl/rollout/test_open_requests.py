"""What an engine's open requests amount to, on vLLM's outputs made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from verl.errors import InfrastructureError
from verl.rollout.open_requests import OpenRequests


class Words:
    """A tokenizer of three words."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(("who ", "wrote ", "it")[token] for token in token_ids)

    def __len__(self) -> int:
        return 3


def output(token: int, finish_reason: str | None = None) -> Any:
    chances = SimpleNamespace(logprobs=np.array([[-0.5]]))
    return SimpleNamespace(
        request_id="one", new_token_ids=[token], new_logprobs=chances, finish_reason=finish_reason, prefill_stats=None
    )


@pytest.mark.parametrize(("ended", "reason"), [("stop", "end_of_turn"), ("length", "length")])
def test_a_request_ends_as_vllm_says(ended: str, reason: str) -> None:
    requests = OpenRequests(Words())
    requests.add("one", 4, ())
    assert requests.take([output(0)]) == ([], [])
    requests.begin_version(7)
    [(key, generation)], untold = requests.take([output(2, ended)])
    assert (key, generation.text, generation.finish_reason, untold) == ("one", "who it", reason, [])
    assert (generation.versions, generation.logprobs) == ([0, 7], [-0.5, -0.5])
    assert (requests.tokens.generated, requests.tokens.prompt, len(requests)) == (2, 4, 0)


@pytest.mark.parametrize("ended", ["error", "abort", "repetition"])
def test_what_vllm_could_not_finish_is_no_turn_that_ran_out_of_length(ended: str) -> None:
    requests = OpenRequests(Words())
    requests.add("one", 4, ())
    with pytest.raises(InfrastructureError, match=f"request one as {ended}"):
        requests.take([output(0, ended)])
