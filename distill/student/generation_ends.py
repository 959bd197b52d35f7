"""Let a student stop writing where training teaches it to stop: where its chat template ends turns.

`generate` stops at what `generation_config.eos_token_id` lists. A base model lists its EOS alone,
and a student of conversations learns to end a turn with its template's own token (`<|im_end|>`);
without that in the list it would write the user's next question, too.
"""

from typing import Any

from logitstore.models.listed_ends import ends_listed
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer


def list_ends(model: Any, student: ByteTokenizer, template: ChatTemplate | None) -> str:
    """Add what a chat template ends turns with to the ends that a model's generation config lists.

    Args:
        model: The student; its generation config is changed.
        student: Its tokenizer.
        template: Its chat template; None where it reads no conversations.

    Returns:
        What was done, in a line for people; empty where nothing had to be.
    """
    config = getattr(model, "generation_config", None)
    if template is None or config is None:
        return ""
    listed, eos = ends_listed(config), student.eos_token_id
    others = [i for i in template.end_ids if i not in (*listed, eos)]
    if not others:
        return ""
    first = listed or (() if eos is None else (eos,))
    config.eos_token_id = list(dict.fromkeys([*first, *others]))
    names = ", ".join(str(student.spelt(i)) for i in others)
    return (
        f"the student's chat template ends turns with {names}: generation_config.eos_token_id is "
        f"{config.eos_token_id} now, so that generate() stops there, too"
    )
