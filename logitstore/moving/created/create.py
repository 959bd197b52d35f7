"""`logitstore.create`: write a store from logits that come from anywhere."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from logitstore.console.argument_types import typed
from logitstore.moving.created.row_writer import RowWriter
from logitstore.moving.created.settings import CreateSettings
from logitstore.storage.paths import StorePath
from logitstore.writing.places import try_place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@typed("logitstore.create")
def create(
    out: str | os.PathLike[str] | StorePath,
    *,
    tokenizer: "str | os.PathLike[str] | PreTrainedTokenizerBase",
    rows: int,
    top_k: int = 64,
    teacher: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    vocab_size: int | None = None,
    aligned_to: str = "next",
    max_tail: float | None = None,
    temperatures: Sequence[float] = (),
    logit_std: bool = False,
    add_eos: bool = False,
    supervise: str | None = None,
    chat_template_path: str | os.PathLike[str] | None = None,
    chat_template_kwargs: str | Mapping[str, Any] | None = None,
    shard_rows: int | None = None,
    codec: str = "portable",
    allow_partial: bool = False,
) -> RowWriter:
    """Write a store row by row from your own logits, or resume one. Needs no torch.

        with logitstore.create("store", tokenizer="teacher", rows=len(data)) as w:
            for row in w.missing():
                w.add(row, data[row], logits=my_model(data[row]))   # [tokens, vocab]

    Rows come in any order, each once. A shard is committed when all of its rows are there; killed
    at any moment and run again, the same program goes on with the rows that are not (`missing`).
    When the block ends without an error and every row is there, the store is sealed.

    Args:
        out: The store's folder, or a URL: `s3://bucket/name`.
        tokenizer: The teacher's: a folder, a hub id, or the object of `transformers`.
        rows: How many rows the data have; `add` is called for rows 0 to `rows` - 1.
        top_k: Entries to keep per record at most.
        teacher: Name of the teacher, or its folder, which also tells its fingerprint; None: that of
            the tokenizer, if it is of a hub or in the folder of a model.
        dataset: Name and version of the data: a store is not resumed with other data. None: the
            name of the store.
        vocab_size: Width of the teacher's logits; None: that of the first logits, or of entries
            the size of the tokenizer.
        aligned_to: What row t of every array describes: the `next` token, t + 1, as models return
            logits; or `token` t itself, as servers return log-probabilities.
        max_tail: Keep as few entries as leave at most this probability; needs full rows.
        temperatures: Temperatures besides 1 whose log-normaliser is kept; needs full rows.
        logit_std: Whether to keep the standard deviation of the logits; needs logits.
        add_eos: Whether the tokens of a text end with EOS.
        supervise: `all` turns of the assistant, or the `last`.
        chat_template_path: A Jinja file or a tokenizer's folder, instead of the tokenizer's own.
        chat_template_kwargs: Variables of the chat template.
        shard_rows: Rows of a shard: what a kill can cost, and what is in memory at once; None: 256,
            or more where that would be more than 100,000 shards.
        codec: `portable`, or `compact`, which needs pcodec to be read.
        allow_partial: Whether this process may end with rows missing, which others add.

    Returns:
        A context manager with `add`, `skip` and `missing`.

    Raises:
        InputError: A tokenizer or a setting that cannot be used.
        MismatchError: `out` holds something else, or a store begun otherwise.
        StorageError: Nothing can be written there.
    """
    settings = CreateSettings(
        tokenizer=os.fspath(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer,
        rows=rows,
        top_k=top_k,
        teacher=None if teacher is None else os.fspath(teacher),
        dataset=dataset,
        vocab_size=vocab_size,
        aligned_to=aligned_to,
        max_tail=max_tail,
        temperatures=tuple(float(t) for t in temperatures),
        logit_std=logit_std,
        add_eos=add_eos,
        supervise=supervise,
        chat_template_path=None if chat_template_path is None else os.fspath(chat_template_path),
        chat_template_kwargs=chat_template_kwargs,
        shard_rows=shard_rows,
        codec=codec,
        allow_partial=allow_partial,
    )
    settings.check()
    return RowWriter(try_place(out), settings)
