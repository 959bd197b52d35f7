"""Train a student from a cached teacher. An ordinary HF Trainer: only the loss is new.

**One training step**, in the order in which things happen:

1. :class:`RowOrder` says which rows are next. A worker reads their records from the store,
   tokenises their text for the student, aligns both sides by bytes and makes the arrays that each
   loss compares (:class:`StoreDataset`).
2. :class:`Collator` lays these rows into a batch, and says where its labels may be cut into pieces
   small enough for a student's head to answer for at once.
3. `get_batch_samples` takes all micro-batches of the step, and counts labels (or pairs) over all
   processes: what each term is divided by is known before the model runs.
4. `compute_loss` runs the model. Where its hidden states meet its output embedding,
   :class:`StudentHead` answers what the losses ask of the student, a piece at a time, so that no
   tensor of [tokens, vocabulary] is ever made; :mod:`distill.training.loss_terms` makes the terms.
5. A loss or a gradient norm that is not finite stops the run before the weights are touched; and a
   run that has left the student as it was ends with an error, not with a student.
6. All else is Trainer's: backward pass, clipping, optimizer, schedule, checkpoints. What is logged
   is collected on the device in a :class:`Meter`.

**The loss** is

    loss = ce_weight * sum(CE) / labels  +  sum over losses of  weight * sum(KD) / labels

where sum(KD) is over the pairs of the loss, and takes CE at every label that none of them covers,
and where groups of tokens are compared, CE of the label within its group: so all labels weigh the
same, whatever the teacher says of them. :mod:`distill.training.loss_terms` says why;
`--uncovered none` leaves those labels out and divides by pairs, as papers do.
With --balance, the second part, KD, is scaled in every step to the size of CE:

    loss = ce_weight * CE  +  stopgrad(CE / KD) * KD

Every term is divided once, by its own count over the whole accumulated, distributed batch. So the
gradient does not depend on how a batch was cut. Trainer has one count for all of the loss;
`_get_num_items_in_batch` is where it asks, and where this class answers with one count a term.

Logged beside Trainer's own values, each a mean over the steps since the last log:

    ce_loss, uld_loss, …   each term, unweighted, the cross-entropy that stands in included
    kd_loss                what the distillation terms add to `loss`: their weighted sum
    kd_gap                 certified: the part of kd_loss of losses that state a bound, had it come
                           from the live teacher's full vocabulary, differs by at most so much
    covered_fraction       labels that a pair of any loss covers; beside it, of several losses,
                           covered_fraction_uld, …: labels that its own pairs cover. For the others
                           see --uncovered, loss by loss
    store_wait_fraction    of the time of steps, spent waiting for data
    tokens_per_second      input tokens without padding, over all processes
    skipped_sequences      so far, rows that this student cannot read (when not 0)
    template_changed_text  of them, those whose supervised text its chat template changes
    unaligned_sequences    so far, rows with labels of which no teacher pair covers any (when not 0)

Shape legend: N = labels, P = pairs of a loss.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import (
    EvalLoopOutput,
    TrainOutput,
)

from distill.data.batch_cuts import Pieces, piece_of
from distill.data.collator import Collator
from distill.data.coverage import warn_if_wrong
from distill.data.dataset import StoreDataset
from distill.data.example import Store
from distill.data.packing import check_packing, layout_of, one_a_row
from distill.data.row_order import RowOrder
from distill.data.self_test import Tried, try_records
from distill.head.query import HeadAnswer, Partition
from distill.head.student_head import StudentHead
from distill.losses import find
from distill.losses.requirements import has_tokenizer_of
from distill.student.encoder_decoder import SEEN, Sides
from distill.training.config import CachedTeacherConfig
from distill.training.first_batch import FirstBatch, try_first_batch
from distill.training.loss_terms import (
    Term,
    bad_rows,
    counts_of,
    covered_fractions,
    joined,
    named,
    placed,
    query_of,
    row_sums,
    terms_of,
    unpacked,
)
from distill.training.meter import Meter
from distill.training.one_cycle import one_cycle, parse_one_cycle
from distill.training.preflight import (
    ORIGIN_FILE,
    check_checkpoint,
    check_eval_store,
    check_no_template,
    check_nothing_to_evaluate,
    check_student,
    look_at,
    settings_of,
)
from distill.training.router_loss import router_loss, router_weight
from distill.training.untrained import Untrained
from logitstore import open_store
from logitstore.errors import InputError, MismatchError
from logitstore.models.context_length import context_length
from logitstore.storage import commit
from logitstore.text.chat_template import ChatTemplate, parse_kwargs, read_template
from logitstore.text.tokenizer import ByteTokenizer

log = logging.getLogger(__name__)


class CachedTeacherTrainer(Trainer):
    """`transformers.Trainer` whose loss comes from a store instead of a teacher.

    Args:
        model: A causal language model or an encoder-decoder, unwrapped; adapters may be on it.
        args: The run. `args.store` and `args.eval_store` are opened when none is given here. Where
            its loss is `auto`, the trainer's own `args` say which loss that is for the pair.
        store: What to train from, already open.
        eval_store: What to evaluate on, already open.
        processing_class: The student's tokenizer; saved with the student.
        **trainer_options: Of `Trainer`: callbacks, optimizers, …

    Raises:
        LogitStoreError: Before anything is trained or written, when store, student and settings
            do not fit together.
    """

    # The loss below is already divided by the counts of the whole accumulated batch.
    # Read by transformers >= 5.19; the floor in pyproject.toml says so.
    loss_is_scaled_for_ga = True
    args: CachedTeacherConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: CachedTeacherConfig,
        store: Store | None = None,
        eval_store: Store | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **trainer_options: Any,
    ) -> None:
        if processing_class is None:
            raise InputError(
                "CachedTeacherTrainer: processing_class is missing, the student's tokenizer that "
                "reads the store's text. AutoTokenizer.from_pretrained(…) makes one."
            )
        student = ByteTokenizer(processing_class)
        check_student(model, args, student)
        if args.packing:
            check_packing(model)
        opened = _opened(store, args.store, args)
        args = args.settled(one_tokenizer=has_tokenizer_of(opened, student))
        self.weights = args.loss_weights
        self.options = args.loss_options
        self.store: Store = _at_boundaries(opened, student, args)
        self.data = _dataset(self.store, student, processing_class, model, args)
        #: What of the store this student can use; counted before the first step.
        self.usable = look_at(self.data, args)
        #: What tests before the first step found, as JSON.
        self.self_test: dict[str, Any] = {}
        self._has_tried = args.no_self_test or not self.weights
        if not self._has_tried:
            self._note_test("records", try_records(self.data), args)
        if args.process_index == 0:
            warn_if_wrong(self.data)
        held_out: StoreDataset | None = None
        if eval_store is not None or args.eval_store:
            evaluated = _at_boundaries(_opened(eval_store, args.eval_store, args), student, args)
            check_eval_store(evaluated, self.store, args)
            held_out = _dataset(evaluated, student, processing_class, model, args)
            look_at(held_out, args, "--eval_store")
        else:
            check_nothing_to_evaluate(args)
        if args.checkpoint:  # now, since Trainer's own set-up makes the output folder
            origin = self._origin(args)  # Trainer has not taken them yet
            check_checkpoint(args.checkpoint, str(args.output_dir), origin, self.store.path)
        if args.chat_template_path is not None:  # saved with the student, which learns to read it
            processing_class.chat_template = read_template(
                args.chat_template_path, "--chat_template_path"
            )
        self.head = StudentHead(model)
        self._router_weight = router_weight(model)
        seed = args.seed if args.data_seed is None else args.data_seed
        lengths = self.data.records if args.train_sampling_strategy == "group_by_length" else None
        self._order = RowOrder(len(self.data), seed, self.store.digest, lengths)
        # With --balance the weights are not known before all of the loss is.
        chunk_tokens = None if args.balance else self.head.chunk_tokens
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(
                student.pad_id,
                tuple(self.weights),
                chunk_tokens=chunk_tokens,
                sides=Sides.of(model, student),
                layout=layout_of(model) if args.packing else one_a_row,
            ),
            train_dataset=self.data,
            eval_dataset=held_out,
            processing_class=processing_class,
            **trainer_options,
        )
        self._meter = Meter(["ce", *self.weights])
        #: What was measured last in training, of the steps after the last log too.
        self.last_report: dict[str, float] = {}
        self._eval_sums: Tensor | None = None
        self._on_device: dict[str, Partition] | None = None
        #: Whether the student's weights are random, so that it cannot know any text.
        self.is_new = not getattr(model, "name_or_path", "")
        self._rows: list[int] = []  # of the dataset, in this step of this process
        self._untrained: Untrained | None = None

    # ---- the loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute a micro-batch's share of the loss of its whole accumulated, distributed batch.

        Args:
            model: The model, or what a wrapper made of it.
            inputs: A batch as :mod:`distill.data.dataset` lays it out, on the device.
            return_outputs: Whether to return `(loss, terms)`.
            num_items_in_batch: Counts of the whole batch, one a term; None: this is all of it.
        """
        counts = self._counts([inputs]) if num_items_in_batch is None else num_items_in_batch
        assert isinstance(counts, Tensor)
        counts = counts.to(inputs["rows"].device).clamp(min=1)
        if model.training and not self._has_tried:
            self._has_tried = True
            seen, batch = self._seen(inputs), unpacked(inputs)
            tried = try_first_batch(self.head, model, seen, batch)
            self._note_test("student", tried, self.args, can_doubt=not self.is_new)
        loss, terms = self._loss(model, inputs, counts)
        learnt = loss
        routed: Tensor | None = None
        if self._router_weight and model.training:
            share = self._counts([inputs])[0] / counts[0]
            found = self.head.router_loss
            routed = router_loss(found, self._router_weight, model, share)
            loss = loss + routed
        if model.training:
            means = [t.values_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            self._stop_if_not_finite(loss, dict(zip(terms, means, strict=True)), terms, inputs)
            bounds = [t.bound_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            self._meter.add(inputs, means, bounds, routed)
            if self._untrained is not None:
                self._untrained.add(learnt, len(inputs["rows"]))
            # DDP and FSDP average gradients over ranks, which the factor undoes.
            loss = loss * self.accelerator.num_processes
        return (loss, terms) if return_outputs else loss

    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], counts: Tensor
    ) -> tuple[Tensor, dict[str, Term]]:
        """Compute the loss and its terms, piece by piece if the batch is cut.

        The terms then have no gradient: it is taken already.
        """
        inputs = unpacked(inputs)
        pieces: Pieces | None = inputs.get("pieces") if torch.is_grad_enabled() else None
        by_start = {} if pieces is None else {piece.start: piece for piece in pieces.each}
        shares: list[dict[str, Term]] = []

        def objective(answer: HeadAnswer, start: int, stop: int) -> Tensor:
            teacher = inputs["teacher"]
            if by_start and stop - start < len(inputs["rows"]):
                teacher = piece_of(teacher, by_start[start])
            terms = terms_of(teacher, answer, self.options, self.args.uncovered)
            shares.append(terms if pieces is None else placed(terms, start))
            means = [t.values_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            return self._total(terms, means)

        query = query_of(inputs, self.options, self._partitions())
        ranges = None if pieces is None else [(each.start, each.stop) for each in pieces.each]
        loss = self.head.loss(model, self._seen(inputs), inputs["rows"], query, objective, ranges)
        return loss, joined(shares)

    def _note_test(
        self,
        name: str,
        found: Tried | FirstBatch,
        args: CachedTeacherConfig,
        *,
        can_doubt: bool = True,
    ) -> None:
        """Keep what a test found, and warn of what it doubts."""
        self.self_test[name] = found.facts()
        if can_doubt and found.doubt and args.process_index == 0:
            log.warning("%s: %s. --no_self_test silences this.", self.store.path, found.doubt)

    def _seen(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Choose what the model itself is given, as it would be by any other collator."""
        seen: dict[str, Any] = {key: inputs[key].long() for key in SEEN if key in inputs}
        if "position_ids" in seen:
            # Models make the mask of packed sequences where they are given no other, nor a cache.
            del seen["attention_mask"]
            seen["use_cache"] = False
        return seen

    def _terms(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Term]:
        inputs = unpacked(inputs)
        query = query_of(inputs, self.options, self._partitions())
        answer = self.head(model, self._seen(inputs), inputs["rows"], query)
        return terms_of(inputs["teacher"], answer, self.options, self.args.uncovered)

    def _partitions(self) -> Mapping[str, Partition]:
        """Return what the ids of losses are events of, on the device, where they stay.

        They depend on both tokenizers alone, so evaluation has the same ones.
        """
        if self._on_device is None:
            of_loss = self.data.partitions.items()
            self._on_device = {name: each.to(self.args.device) for name, each in of_loss}
        return self._on_device

    def _total(self, terms: Mapping[str, Term], means: list[Tensor]) -> Tensor:
        """Weight and add the terms; the sum depends on the student even if nothing is to learn."""
        loss = terms["ce"].values_P[:0].sum()
        ce, *others = means
        kd = sum((w * mean for w, mean in zip(self.weights.values(), others, strict=True)), loss)
        if self.args.ce_weight:  # 0 times an infinite loss is NaN
            loss = loss + self.args.ce_weight * ce
        return loss + (self._balance(ce, kd) * kd if self.args.balance else kd)

    def _balance(self, ce: Tensor, kd: Tensor) -> Tensor:
        """Compute CE / KD of the whole distributed batch, without gradient; 1 if KD is not > 0."""
        both = torch.stack([ce.detach(), kd.detach()])
        whole_ce, whole_kd = self.accelerator.reduce(both, "sum")
        return torch.where(whole_kd > 0, whole_ce / whole_kd, 1)

    def _counts(self, batches: list[dict[str, Any]]) -> Tensor:
        """Count the values of each term in these batches of this process."""
        losses = tuple(self.weights)
        counts = [counts_of(batch, losses, self.args.uncovered) for batch in batches]
        return torch.tensor(counts, dtype=torch.long).reshape(-1, 1 + len(self.weights)).sum(0)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count over all micro-batches and processes; Trainer's hook, here with a count a term."""
        counts: Tensor = self.accelerator.reduce(self._counts(batch_samples).to(device), "sum")
        return counts

    def _stop_if_not_finite(
        self,
        loss: Tensor,
        means: Mapping[str, Tensor],
        terms: Mapping[str, Term],
        inputs: Mapping[str, Any],
    ) -> None:
        if not bool(torch.isfinite(loss)):
            parts = ", ".join(f"{name} {mean.item():g}" for name, mean in means.items())
            raise InputError(
                f"step {self.state.global_step + 1}, {_rows(bad_rows(terms, inputs))}: the loss is "
                f"{loss.item():g} ({parts}); training stopped before this step touched the "
                "weights. Lower --learning_rate or raise --warmup_steps; with --fp16, try --bf16."
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        # With fp16, infinite gradients are how the loss scaler finds its scale.
        if not self.args.fp16 and not bool(torch.isfinite(torch.as_tensor(norm))):
            raise InputError(
                f"step {self.state.global_step + 1}, {_rows(self._rows)}: the gradient norm is "
                f"{torch.as_tensor(norm).item():g} though the loss is finite; training stopped "
                "before this step touched the weights. Lower --learning_rate; with --bf16, try "
                "without."
            )
        return norm

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device.

        DeepSpeed would also round the teacher's float32 to the model's dtype.
        """
        ours = ("teacher", "pieces")
        prepared = super()._prepare_inputs({k: v for k, v in inputs.items() if k not in ours})
        teacher = {
            name: {key: array.to(self.args.device) for key, array in arrays.items()}
            for name, arrays in inputs["teacher"].items()
        }
        return {**prepared, "teacher": teacher, "pieces": inputs.get("pieces")}

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Make Trainer's schedule, or with `--one_cycle` one that it does not know."""
        if self.lr_scheduler is None and self.args.one_cycle is not None:
            chosen = optimizer or self.optimizer
            assert chosen is not None  # Trainer makes it first
            self.lr_scheduler = one_cycle(  # type: ignore[assignment]  # declared as a LambdaLR
                chosen,
                num_training_steps,
                self.args.learning_rate,
                parse_one_cycle(self.args.one_cycle),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        """Choose the order of rows.

        Trainer's own shuffle depends on how its loader is wrapped, and on torch's version.
        """
        if self.args.train_sampling_strategy == "sequential":
            return SequentialSampler(self.data)
        args = self.args  # of the batch size, --auto_find_batch_size makes another one
        batches = args.gradient_accumulation_steps * args.world_size
        self._order.step_rows = self._train_batch_size * batches
        return self._order

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int]:
        """Choose the order of evaluation; Trainer's own would look for lengths in the rows."""
        return SequentialSampler(eval_dataset)  # type: ignore[arg-type]  # a StoreDataset is sized

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self._order.epoch = kwargs["epoch"]
        if self._untrained is None:
            self._untrained = Untrained(kwargs["model"])
        return super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    # ---- what is logged ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Take the micro-batches of one step, timing how long the student waits for the store."""
        self._meter.start()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._meter.received()
        self._rows = [row for batch in batches for row in batch["row"].tolist()]
        return batches, self._get_num_items_in_batch(batches, device)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._meter.stop()  # what follows is not part of a step
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        self._meter.reset()  # also when --auto_find_batch_size begins again
        self._untrained = None
        return super()._init_training_state(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_runtime" in logs:  # the latter once, at the end
            report = self._meter.report(self.accelerator, self.weights)
            self.last_report = report or self.last_report
            logs |= report if "loss" in logs else self._meter.totals()
        super().log(logs, start_time)

    # ---- evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, None, None]:
        """Add a batch to the sums of :meth:`evaluation_loop`, row by row."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = row_sums(inputs, self._terms(model, inputs))
        # This gather drops the rows that were repeated to give every process as many.
        total = self.accelerator.gather_for_metrics(sums).cpu().double().sum(0)
        self._eval_sums = total if self._eval_sums is None else self._eval_sums + total
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as Trainer does, but with sums that are divided once.

        Trainer's mean of batch means depends on the size of batches.
        """
        self._eval_sums = None
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        names, sums = ["ce", *self.weights], self._evaluated_sums()
        triples = sums[: 3 * len(names)].double().reshape(-1, 3)
        covered, *each = sums[3 * len(names) :].tolist()
        values, bounds = (triples[:, :2] / triples[:, 2:].clamp(min=1)).T.tolist()
        report = named(
            dict(zip(names, values, strict=True)),
            dict(zip(names, bounds, strict=True)),
            self.weights,
        )
        report["loss"] = self.args.ce_weight * report["ce_loss"] + report.get("kd_loss", 0.0)
        if self.weights:
            of_losses = dict(zip(self.weights, each, strict=False))  # of several
            report |= covered_fractions(covered, of_losses, float(triples[0, 2]))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in report.items()}
        return output._replace(metrics={**(output.metrics or {}), **metrics})

    def _evaluated_sums(self) -> Tensor:
        assert self._eval_sums is not None  # a dataset without rows is rejected when it is made
        return self._eval_sums

    # ---- the end ----

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """End as Trainer does, unless the student is as it was: then raise.

        One that goes on from a checkpoint was trained before. Its schedule has perhaps ended there.
        """
        steps = self.state.global_step
        if self._untrained is not None and not self._initial_global_step:
            self._untrained.check(self.model_wrapped, self.args, steps, self.accelerator)
        return super()._finalize_training(*args, **kwargs)  # type: ignore[no-untyped-call]

    # ---- checkpoints ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as Trainer does, once a checkpoint to resume from is known to be of this store."""
        if resume_from_checkpoint:
            output_dir = str(self.args.output_dir)
            origin = self._origin(self.args)
            check_checkpoint(resume_from_checkpoint, output_dir, origin, self.store.path)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def end(self) -> None:
        """End as Trainer does, once all are here: gloo aborts a process that leaves too early."""
        self.accelerator.wait_for_everyone()
        super().end()  # type: ignore[no-untyped-call]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.is_dir():  # --save_total_limit may have removed it
            origin = json.dumps(self._origin(self.args), indent=1) + "\n"
            commit.write_whole(folder / ORIGIN_FILE, origin.encode())

    def _origin(self, args: CachedTeacherConfig) -> dict[str, Any]:
        template = None
        written_by = self.data.reader.template
        if written_by is not None:
            template = (written_by.source, written_by.tool_source)
        return {
            "store_digest": self.store.digest,
            "sequences": len(self.data),
            "settings": settings_of(args, template),
        }


def _rows(rows: Sequence[int]) -> str:
    """Name rows of the dataset in a message: if there are many, the first eight."""
    shown = ", ".join(f"{row:,}" for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    return f"row{'' if len(rows) == 1 else 's'} {shown} of the dataset"


def _opened(store: Store | None, path: str | None, args: CachedTeacherConfig) -> Store:
    if store is not None:
        return store
    assert path is not None
    return open_store(path, allow_partial=args.allow_partial)


def _at_boundaries(store: Store, student: ByteTokenizer, args: CachedTeacherConfig) -> Store:
    """Choose the records to learn from: at the teacher's own tokens, or at the student's.

    Raises:
        MismatchError: The store has none at the boundaries of this student.
        InputError: A loss chooses its labels by the tokens of the teacher's text.
    """
    if not args.boundaries:
        return store
    for name in args.loss_weights:
        if find(name).pairing_of(args.loss_options).kind == "strict":
            raise InputError(
                f"--boundaries: a strict {name} is for labels that are the teacher's tokens, and "
                "at the boundaries of a student the teacher's tokens are not known. Leave "
                "--map strict out, or --boundaries."
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


def _dataset(
    store: Store,
    student: ByteTokenizer,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    args: CachedTeacherConfig,
) -> StoreDataset:
    template = None
    if store.spec.rendering["kind"] == "conversation":
        kwargs = parse_kwargs(args.chat_template_kwargs, "--chat_template_kwargs")
        template = ChatTemplate.of(
            tokenizer,
            student,
            path=args.chat_template_path,
            kwargs=kwargs,
            flag="--chat_template_path",
        )
        _check_template(store, template)
    else:
        check_no_template(args, store.path)
    readable = context_length(model.config)
    return StoreDataset(
        store,
        student,
        tuple(args.loss_weights),
        max_length=min([n for n in (args.max_length, readable) if n], default=None),
        template=template,
        **args.loss_options,
    )
