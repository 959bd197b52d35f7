"""The batches of a store, and the loss of each, for a training loop of one's own.

    data = distill.batches("store", tokenizer, loss="uld:1.5", model=model)
    for batch in data:                                   # one epoch
        data.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

Order, batches, loss and gradient are those of :class:`CachedTeacherTrainer` with the same settings.
`distill/OWN_LOSS.md` has the loops of Lightning and TRL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.collator import Collator
from distill.data.joined import StudentData, parts_of, uses_of
from distill.data.packing import check_packing, layout_of, one_a_row
from distill.data.row_order import RowOrder
from distill.data.second_text import TwoTexts
from distill.data.self_test import try_records
from distill.head.student_head import StudentHead, chunk_tokens_of
from distill.losses import find, option_values
from distill.losses.advice import AUTO, ONE_TOKENIZER, TWO_TOKENIZERS
from distill.losses.loss import Loss
from distill.losses.own import check_declared, use
from distill.losses.requirements import has_tokenizer_of
from distill.losses.weights import check_effects, check_values, parse_losses
from distill.student.encoder_decoder import Sides
from distill.student.loading import check_embeddings
from distill.training.arguments import Uncovered
from distill.training.loop import Batches, Losses, rank_and_size, warn
from distill.training.named_stores import Teachers, check_cot_store, check_teachers
from distill.training.own_loss import try_own_losses
from distill.training.own_weights import attach
from distill.training.preflight import look_at
from distill.training.several_stores import Given, OpenStores, Student, data_of_run, open_stores
from logitstore.console.argument_types import typed
from logitstore.console.left_out import DEFAULT_MAX_LOST
from logitstore.errors import InputError
from logitstore.text.tokenizer import ByteTokenizer


@dataclass(frozen=True)
class _Settings:
    """What :func:`batches` was asked for, as a run's settings have it."""

    loss: str
    loss_options: dict[str, Any]
    allow_partial: bool
    boundaries: bool
    max_length: int | None
    chat_template_path: str | None
    chat_template_kwargs: Mapping[str, Any] | str | None
    max_lost: float
    rows: str | None
    train_top_k: int | None
    token_filter: str | None
    token_weights: str | None
    teachers: str
    cot_store: str | None

    @property
    def loss_weights(self) -> dict[str, float]:
        return parse_losses(self.loss)

    @property
    def process_index(self) -> int:
        return rank_and_size()[0]


@typed("distill.batches", leave=("loss",))
def batches(
    store: Given,
    tokenizer: PreTrainedTokenizerBase,
    *,
    loss: str | Loss = AUTO,
    model: PreTrainedModel | None = None,
    batch_size: int = 8,
    seed: int = 42,
    ce_weight: float = 1.0,
    uncovered: Uncovered = "hard",
    balance: bool = False,
    packing: bool = False,
    rows: str | None = None,
    train_top_k: int | None = None,
    token_filter: str | None = None,
    token_weights: str | None = None,
    teachers: Teachers = "mean",
    cot_store: str | None = None,
    max_length: int | None = None,
    max_lost: float = DEFAULT_MAX_LOST,
    allow_partial: bool = False,
    boundaries: bool = False,
    chat_template_path: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | str | None = None,
    self_test: bool = True,
    num_workers: int = 0,
    **options: Any,
) -> Batches:
    """Open a store for a student, and check that both and the losses fit together.

    Args:
        store: The store, or its path, as `PATH:WEIGHT` with a weight; or a list of several.
        tokenizer: The student's.
        loss: As `--loss`, or a declared function.
        model: The student, not wrapped. Without it rows are not cut at what it reads, and it must
            be a causal one, of losses without weights of their own: these hang on it from here on,
            and are saved by :func:`distill.training.own_weights.save_beside`.
        batch_size: Sequences of a batch of one process.
        seed: Of the order of rows.
        ce_weight: Weight of cross-entropy.
        uncovered: As `--uncovered`.
        balance: As `--balance`; every step is then one batch.
        packing: As `--packing`; needs the model.
        rows: As `--rows`.
        train_top_k: As `--train_top_k`.
        token_filter: As `--token_filter`.
        token_weights: As `--token_weights`.
        teachers: As `--teachers`, of several stores.
        cot_store: As `--cot_store`.
        max_length: Cut rows at so many student tokens.
        max_lost: The largest share of sequences that may be unusable.
        allow_partial: Read an unfinished store.
        boundaries: As `--boundaries`.
        chat_template_path: As `--chat_template_path`.
        chat_template_kwargs: As `--chat_template_kwargs`.
        self_test: Whether to check that records, text and labels belong together.
        num_workers: Processes that read beside this one.
        **options: Options of the losses, by the names of their flags.

    Raises:
        LogitStoreError: They do not fit together; says why.
    """
    student = ByteTokenizer(tokenizer)
    if model is not None:
        check_embeddings(model, student)
    if packing:
        _check_packing(model)
    opened = open_stores(store, allow_partial=allow_partial, flag="store")
    check_teachers(teachers, opened.named)
    settings = _Settings(
        _chosen(loss, opened, student),
        _checked(options),
        allow_partial,
        boundaries,
        max_length,
        chat_template_path,
        chat_template_kwargs,
        max_lost,
        rows,
        train_top_k,
        token_filter,
        token_weights,
        teachers,
        cot_store,
    )
    weights = settings.loss_weights
    check_cot_store(cot_store, weights, several=len(opened.each) > 1)
    _check(settings, weights, ce_weight, uncovered)
    data = data_of_run(opened, Student(student, tokenizer, model), settings)
    if isinstance(data, TwoTexts):
        look_at(data.second, settings, "cot_store")
    for part in parts_of(data):
        look_at(part, settings, "store")
        try_own_losses(part)
        if weights and self_test:
            warn(part, try_records(part).doubt)
    _attach(data, model, seed)
    width = chunk_tokens_of(student.size) if model is None else StudentHead(model).chunk_tokens
    collate = Collator(
        student.pad_id,
        uses_of(data),
        chunk_tokens=None if balance else width,
        sides=None if model is None else Sides.of(model, student),
        layout=layout_of(model) if packing and model is not None else one_a_row,
    )
    order = RowOrder(len(data), seed, opened.each[0].digest)
    losses = Losses(data, weights, ce_weight, uncovered, is_balanced=balance)
    return Batches(
        losses, collate, order, batch_size, num_workers=num_workers, has_tried=not self_test
    )


def _check(
    settings: _Settings, weights: Mapping[str, float], ce_weight: float, uncovered: Uncovered
) -> None:
    check_effects(settings.loss_options, settings.loss, weights)
    if uncovered not in (ways := get_args(Uncovered)):
        raise InputError(f"uncovered is {uncovered!r}, expected {' or '.join(ways)}. Name one.")
    if not ce_weight and not weights:
        raise InputError("loss='ce' with ce_weight=0 leaves nothing to train on. Name a loss.")


def _check_packing(model: PreTrainedModel | None) -> None:
    if model is None:
        raise InputError(
            "packing: whether a model keeps its sequences apart is tried on the model itself, and "
            "none is given. Add model=…."
        )
    check_packing(model)


def _attach(data: StudentData, model: PreTrainedModel | None, seed: int) -> None:
    """Hang the weights of losses on the student, for the optimizer that is made after this."""
    own = [loss for loss in data.losses if find(loss).module is not None]
    if own and model is None:
        raise InputError(
            f"loss={','.join(own)}: has weights of its own, which are trained with the student, "
            "and none is given. Add model=…, before the optimizer takes its parameters."
        )
    if model is not None:
        attach(model, data, seed=seed)


def _chosen(loss: str | Loss, stores: OpenStores, student: ByteTokenizer) -> str:
    """Return the losses as text; by the pair of tokenizers where that is asked for."""
    if isinstance(loss, Loss):
        return use(loss)
    check_declared(loss)
    if loss != AUTO:
        return loss
    is_one = all(has_tokenizer_of(store, student) for store in stores.each)
    return ONE_TOKENIZER if is_one else TWO_TOKENIZERS


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the options of losses."""
    values = option_values(dict(given))
    check_values(values)
    return values
