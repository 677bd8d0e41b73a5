"""A supervised target ends with the token that ends a turn of its model, whatever the family's template."""

from __future__ import annotations

import copy
from datetime import date
from typing import Any

import pytest

from search_agent.data.chat_traces import ChatReader

_LOOP = "{% for m in messages %}"
LLAMA = (
    f"{_LOOP}<|start_header_id|>{{{{ m.role }}}}<|end_header_id|>\n\n{{{{ m.content | trim }}}}<|eot_id|>{{% endfor %}}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    f"<s>{_LOOP}{{% if m.role == 'user' %}}[INST] {{{{ m.content }}}}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
QWEN = (
    f"{_LOOP}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEEPSEEK = (
    f"{_LOOP}{{% if m.role == 'user' %}}<｜User｜>{{{{ m.content }}}}{{% else %}}<｜Assistant｜>"
    "{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
FAMILIES = {
    "llama": (LLAMA, "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "mistral": (MISTRAL, "</s>", ["<s>", "[INST]", "[/INST]"]),
    "qwen": (QWEN, "<|im_end|>", []),
    "deepseek": (DEEPSEEK, "<｜end▁of▁sentence｜>", ["<｜User｜>", "<｜Assistant｜>"]),
}
PREDICT = "<think>\nso it is\n</think>\n<answer>B</answer>"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_whole_reply_and_the_token_that_ends_it(family: str, tokenizer: Any) -> None:
    template, end, others = FAMILIES[family]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [end, *others]})
    tokenizer.chat_template = template
    row = {"instruction": "# Retrieved Documents\nit is B", "predict": PREDICT}
    trace = ChatReader(tokenizer, None, date(2026, 1, 1)).read(row, "row 1")
    (turn,) = trace.turns
    assert turn.text == PREDICT + end, "thoughts stay, whatever the template does with earlier ones"
    assert turn.token_ids[-1] == tokenizer.convert_tokens_to_ids(end)
    assert "it is B" in trace.segments[0].text
    assert trace.num_policy_tokens == len(turn.token_ids)
