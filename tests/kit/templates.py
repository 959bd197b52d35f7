"""Chat templates of the shapes that people meet, and tiny tokenizers that have their turn tokens.

Written here after the shapes, not copied:

    chatml          every turn is the same; also with `{% generation %}` marks
    llama3          headers, BOS written by the template, contents trimmed
    mistral         [INST] … [/INST], turns must alternate, a space before the answer, </s> after it
    gemma           the assistant is called `model`, contents trimmed, no system role
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from logitstore.testing import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHATML_MARKED = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant!') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)

GEMMA = (
    "{{ bos_token }}"
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def chatml(template: str = CHATML, vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen has it."""
    return _with(tiny.byte_bpe(vocab_size), template, "<|im_start|>", "<|im_end|>")


def llama3(vocab_size: int = 380) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose post-processor would add a second BOS."""
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return _with(tiny.byte_bpe(vocab_size, bos=True), LLAMA3, *names)


def mistral() -> PreTrainedTokenizerFast:
    """Unigram behind a Metaspace; the marks of instructions are special."""
    return _with(tiny.unigram(), MISTRAL, "[INST]", "[/INST]")


def gemma(bos: bool = True) -> PreTrainedTokenizerFast:
    """BPE whose normaliser writes spaces as `▁`; `bos`: whether it puts BOS there by itself."""
    return _with(tiny.sp_bpe(bos=bos), GEMMA, "<start_of_turn>", "<end_of_turn>")


FAMILIES: dict[str, Any] = {
    "chatml": chatml,
    "chatml_marked": lambda: chatml(CHATML_MARKED, 300),
    "llama3": llama3,
    "mistral": mistral,
    "gemma": gemma,
}
#: What ends a turn of each family.
TURN_ENDS = {
    "chatml": "<|im_end|>",
    "chatml_marked": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
}


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation of user and assistant in turn, behind a system message if there is one."""
    roles = ("user", "assistant")
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def _with(
    tokenizer: PreTrainedTokenizerFast, template: str, *special: str
) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer
