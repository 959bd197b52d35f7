"""Open what a run learns from: a store, its records at a student's boundaries, its rows.

:mod:`distill.training.several_stores` does so where a run names several stores.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.dataset import StoreDataset
from distill.data.example import Store
from distill.data.records_asked import check_top_k
from distill.data.targets import asks_at_boundaries
from distill.losses import find
from distill.losses.advice import TWO_TOKENIZERS
from distill.student.template import template_of
from logitstore.errors import InputError, MismatchError
from logitstore.models.context_length import context_length
from logitstore.moving.row_list import chosen_rows
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer


class Reading(Protocol):
    """How a run reads its store: the part of its settings that decides it."""

    @property
    def loss_weights(self) -> dict[str, float]: ...
    @property
    def loss_options(self) -> dict[str, Any]: ...
    @property
    def boundaries(self) -> bool: ...
    @property
    def allow_partial(self) -> bool: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def chat_template_path(self) -> str | None: ...
    @property
    def chat_template_kwargs(self) -> Mapping[str, Any] | str | None: ...
    @property
    def rows(self) -> str | None: ...
    @property
    def train_top_k(self) -> int | None: ...
    @property
    def token_filter(self) -> str | None: ...
    @property
    def token_weights(self) -> str | None: ...
    @property
    def teachers(self) -> str: ...
    @property
    def cot_store(self) -> str | None: ...


def at_boundaries(store: Store, student: ByteTokenizer, args: Reading) -> Store:
    """Choose where records are read: at the teacher's own tokens, or also at the student's.

    Raises:
        MismatchError: The store has none at the boundaries of this student.
        InputError: No loss asks what can follow there.
    """
    if not args.boundaries:
        return store
    pairings = {name: find(name).pairing_of(args.loss_options) for name in args.loss_weights}
    for name, pairing in pairings.items():
        if pairing.kind == "strict":
            raise InputError(
                f"--boundaries: a strict {name} is for labels that are the teacher's tokens, and "
                "at the boundaries of a student the teacher's tokens are not known. Leave "
                f"--map {args.loss_options['map']} out, or --boundaries."
            )
    if not any(map(asks_at_boundaries, pairings.values())):
        raise InputError(
            f"--boundaries: {', '.join(pairings) or 'ce'} would learn nothing from it, since only "
            "losses that send the teacher's tokens to the student's ask what can follow a boundary "
            f"of the student's. Use --loss {TWO_TOKENIZERS}, or leave --boundaries out."
        )
    return store.boundaries_of(student.fingerprint, student.name)


def _check_template(store: Store, template: ChatTemplate) -> None:
    """Reject another chat template than the one whose boundaries a store has records at.

    Raises:
        MismatchError: It is another.
    """
    known = (store.spec.boundaries_of or {}).get("chat_template_sha256", template.digest)
    if known != template.digest:
        raise MismatchError(
            f"{store.path}: has records at the boundaries of this student with chat template "
            f"{known[:12]}…, but this run's is {template.digest[:12]}…. Give that template with "
            "--chat_template_path, or train without --boundaries."
        )


def dataset_of_run(
    store: Store,
    student: ByteTokenizer,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None,
    args: Reading,
    *,
    for_training: bool = True,
    among: Sequence[Store] = (),
) -> StoreDataset:
    """Make the rows of a store for a student, in its chat template and as long as it reads.

    Args:
        store: The store.
        student: The student's tokenizer, by bytes.
        tokenizer: The same.
        model: The student, which reads so many tokens; None: it is not known how many.
        args: How to read.
        for_training: Whether to read only the rows, entries and tokens that the run asks for; a
            held-out store is read whole.
        among: All stores of the run, where it has several.

    Raises:
        LogitStoreError: Store, student and settings do not fit together.
    """
    template = template_of(store, tokenizer, student, args)
    if template is not None:
        _check_template(store, template)
    readable = None if model is None else context_length(model.config)
    asked = _asked(store, args, among) if for_training else {}
    return StoreDataset(
        store,
        student,
        tuple(args.loss_weights),
        max_length=min([n for n in (args.max_length, readable) if n], default=None),
        template=template,
        **asked,
        **args.loss_options,
    )


def _asked(store: Store, args: Reading, among: Sequence[Store]) -> dict[str, Any]:
    """Return the part of a store that a run trains on, as the dataset takes it.

    Of several stores, rows are those of the first, and some store must have more entries.

    Raises:
        InputError: A flag of it would have no effect, or names what is not there.
    """
    needs = {name: find(name).needs_of(args.loss_options) for name in args.loss_weights}
    if args.train_top_k is not None and not any("entries" in each for each in needs.values()):
        raise InputError(
            f"--train_top_k {args.train_top_k} would have no effect: --loss "
            f"{','.join(needs) or 'ce'} compares no entries. Leave it out."
        )
    with_draws = [name for name, each in needs.items() if "draws" in each]
    top_k = args.train_top_k
    if top_k is not None and _has_few(store, top_k) and not all(_has_few(s, top_k) for s in among):
        top_k = None
    check_top_k(store, top_k, with_draws)
    is_first = not among or among[0] is store
    return {
        "rows": chosen_rows(args.rows, store) if args.rows is not None and is_first else None,
        "top_k": top_k,
        "token_filter": args.token_filter,
        "token_weights": args.token_weights,
    }


def _has_few(store: Store, top_k: int) -> bool:
    """Tell whether a store has no more entries of a token than that."""
    return (store.spec.top_k or 0) <= top_k
