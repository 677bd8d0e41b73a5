"""Plain vLLM, in a process of its own: ``LLM.generate`` on given prompts to given lengths, and its sleep levels.

The engine has the settings that ours would have (``verl.rollout.engine_settings``), but for what ours needs and vLLM's
own use does not: the worker extension, a scheduler in the same process, steps that wait for one another.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl.rollout.engine_config import EngineConfig
from verl.rollout.engine_settings import engine_arguments, environment

_OURS = ("worker_extension_cls", "async_scheduling", "logprobs_mode", "enable_sleep_mode")
ASKED = ("with log-probs", "with log-probs, seeds and text")
"""What a request may ask for: a trainer cannot do without log-probs; ours asks for all of it."""


def generate(model: str, config: str, work: str, repeats: str) -> None:
    """The process: the last line is ``{asked: seconds}`` as JSON, medians of ``repeats`` times in turn.

    ``work`` is a file that ``bench.rollout.ceiling`` wrote.
    """
    given = json.loads(Path(work).read_text())
    llm = _llm(model, EngineConfig(**json.loads(config)))
    _timed(llm, given["warm"], ASKED[0])
    found = [[_timed(llm, given["timed"], asked) for asked in ASKED] for _ in range(int(repeats))]
    print(json.dumps({asked: statistics.median(times) for asked, *times in zip(ASKED, *found, strict=True)}))


def sleep(model: str, config: str) -> None:
    """The process: the last line is, for levels 1 and 2, seconds to sleep and to wake, and GiB that were given back."""
    import torch

    llm = _llm(model, EngineConfig(**json.loads(config)), enable_sleep_mode=True)
    found: dict[str, float] = {}
    for level in (1, 2):
        free, began = torch.cuda.mem_get_info()[0], time.perf_counter()
        llm.sleep(level=level)
        slept = time.perf_counter()
        given_back = torch.cuda.mem_get_info()[0] - free
        woken = time.perf_counter()
        llm.wake_up()
        found |= {
            f"sleep level {level}: asleep (s)": slept - began,
            f"sleep level {level}: awake (s)": time.perf_counter() - woken,
            f"sleep level {level}: given back (GiB)": given_back / 2**30,
        }
    print(json.dumps(found))


def _llm(model: str, config: EngineConfig, **more: Any) -> Any:
    import torch

    on_cpu = not torch.cuda.is_available()
    settings = environment(config, on_cpu=on_cpu)
    del settings["VLLM_ENABLE_V1_MULTIPROCESSING"]  # plain vLLM has its scheduler in another process
    os.environ.update(settings)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    arguments = engine_arguments(model, config, seed=0, on_cpu=on_cpu)
    return LLM(**{key: value for key, value in arguments.items() if key not in _OURS} | more)


def _timed(llm: Any, requests: Sequence[tuple[list[int], int]], asked: str) -> float:
    """Seconds until every prompt (ids, tokens to generate) has its tokens."""
    from vllm import SamplingParams

    def params(number: int, tokens: int) -> Any:
        more: dict[str, Any] = {"logprobs": 0, "detokenize": False}
        if asked == ASKED[1]:
            more |= {"seed": number, "detokenize": True}
        return SamplingParams(max_tokens=tokens, ignore_eos=True, **more)

    settings = [params(number, tokens) for number, (_, tokens) in enumerate(requests)]
    prompts = [{"prompt_token_ids": ids} for ids, _ in requests]
    if hasattr(llm, "reset_prefix_cache"):
        llm.reset_prefix_cache()  # each way of asking reads every prompt
    began = time.perf_counter()
    done = llm.generate(prompts, settings, use_tqdm=False)
    seconds = time.perf_counter() - began
    assert [len(output.outputs[0].token_ids) for output in done] == [tokens for _, tokens in requests]
    return seconds
