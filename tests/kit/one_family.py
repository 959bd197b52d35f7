"""Tokenizers of one family: base models and fine-tunes, of one vocabulary under other roles."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from logitstore.testing import tiny

BASE_END, CHAT_END = "<|endoftext|>", "<|im_end|>"
_TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}END\n{% endfor %}"
#: Each ends a turn with another token.
CHATML, PLAIN = _TURN.replace("END", CHAT_END), _TURN.replace("END", BASE_END)


def member(
    eos: str, also: Sequence[str] = (), *, template: str | None = None
) -> PreTrainedTokenizerFast:
    """Make a member of the family, a new object every time.

    Args:
        eos: Its EOS.
        also: Tokens that it has behind the last of the others.
        template: Its chat template.
    """
    backend = Tokenizer.from_str(tiny.byte_bpe().backend_tokenizer.to_str())
    backend.add_special_tokens(["<|im_start|>", CHAT_END])
    backend.add_tokens([AddedToken(each, normalized=False, special=False) for each in also])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    made.chat_template = template
    return made


def base(*also: str, template: str | None = None) -> PreTrainedTokenizerFast:
    return member(BASE_END, also, template=template)


def instruct(*also: str, template: str | None = None) -> PreTrainedTokenizerFast:
    return member(CHAT_END, also, template=template)
