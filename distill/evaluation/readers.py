"""How a model under evaluation reads text: the rows of a dataset, or the lines of a store."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.data.example import Store
from distill.student.text import StudentReader
from logitstore.errors import InputError
from logitstore.models.context_length import context_length
from logitstore.rows.dataset import Rows
from logitstore.rows.renderer import Renderer
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.tokenizer import ByteTokenizer

#: Tokens: models claim to read far more than attention over it is worth here.
LONGEST_WINDOW = 4096


def reader_of(
    store: Store,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    path: str | None = None,
    kwargs: str | None = None,
) -> StudentReader:
    """Make a reader of a store's lines: conversations through the model's own chat template.

    Args:
        store: Whose lines are read.
        model: Says how many tokens it reads.
        tokenizer: The model's.
        max_length: Tokens of a line at most; by default what the model reads, at most
            LONGEST_WINDOW.
        path: Another chat template, a Jinja file or a tokenizer's folder.
        kwargs: Variables of the chat template, as JSON.

    Raises:
        InputError: The chat template cannot be used, or `max_length` is too small.
    """
    reader, template = ByteTokenizer(tokenizer), None
    if store.spec.rendering["kind"] == "conversation":
        given = parse_kwargs(kwargs, "--chat-template-kwargs")
        template = ChatTemplate.of(
            tokenizer, reader, path=path, kwargs=given, flag="--chat-template-path"
        )
    return StudentReader(
        reader,
        store.spec.rendering,
        store.path,
        template=template,
        max_length=window_width(model, max_length),
    )


def renderer_of(rows: Rows, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Renderer:
    """Make a reader of a dataset's rows: conversations through the model's own chat template.

    No end of sequence follows a text: it has no bytes.

    Raises:
        InputError: For rows of tokens, and whatever `Renderer.make` rejects.
    """
    if rows.kind == "tokens":
        raise InputError(
            f"{rows.name}: its rows are token ids of one tokenizer, but bits per byte are for "
            "comparing models of any. Name a column of strings with --text-column."
        )
    return Renderer.make(rows, tokenizer, ByteTokenizer(tokenizer), add_eos=False, **settings)


def window_width(model: Any, max_length: int | None) -> int:
    """Tokens that a model is given at once.

    Raises:
        InputError: `max_length` is below 2: the first token is never predicted.
    """
    limits = (max_length, context_length(model.config), LONGEST_WINDOW)
    width = min(limit for limit in limits if limit is not None)
    if width < 2:
        raise InputError(f"--max-length is {max_length}, expected at least 2 tokens.")
    return width
