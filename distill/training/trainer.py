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
    kd_factor              what --kd_schedule multiplies that with in the last step, if it is given
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
    read_otherwise         so far, of several stores, those left out of a row since the student does
                           not read the same in them (when not 0)

Shape legend: N = labels, P = pairs of a loss.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import (
    TrainOutput,
)

from distill.data.collator import Collator
from distill.data.coverage_warning import warn_if_wrong
from distill.data.joined import StudentData, parts_of, uses_of
from distill.data.packing import check_packing, layout_of, one_a_row
from distill.data.row_order import RowOrder
from distill.data.second_text import TwoTexts
from distill.data.self_test import try_records
from distill.head.student_head import StudentHead
from distill.losses import advice
from distill.losses.requirements import has_tokenizer_of
from distill.student.encoder_decoder import Sides
from distill.student.generation_ends import list_ends
from distill.training.batch_loss import BatchLoss
from distill.training.config import CachedTeacherConfig
from distill.training.kd_schedule import parse_schedule
from distill.training.meter import Meter
from distill.training.one_cycle import one_cycle, parse_one_cycle
from distill.training.own_loss import try_own_losses
from distill.training.own_weights import (
    attach,
    check_not_sharded,
    give_own_rate,
    load_beside,
    parameters_of,
    save_beside,
)
from distill.training.preflight import (
    ORIGIN_FILE,
    check_checkpoint,
    check_nothing_to_evaluate,
    check_student,
    look_at,
)
from distill.training.pushing import PushingTrainer
from distill.training.router_loss import router_weight
from distill.training.several_stores import (
    Given,
    Student,
    data_of_run,
    held_out_of_run,
    open_stores,
    origin_of,
    say_joined,
)
from distill.training.untrained import Untrained
from logitstore.errors import InputError
from logitstore.storage import commit
from logitstore.text.chat_template import read_template
from logitstore.text.tokenizer import ByteTokenizer

log = logging.getLogger(__name__)


class CachedTeacherTrainer(PushingTrainer):
    """`transformers.Trainer` whose loss comes from a store instead of a teacher.

    Args:
        model: A causal language model or an encoder-decoder, unwrapped; adapters may be on it.
        args: The run. `args.store` and `args.eval_store` are opened when none is given here. Where
            its loss is `auto`, the trainer's own `args` say which loss that is for the pair.
        store: What to train from, already open: a store, or a list of several, in the order of
            `args.store`.
        eval_store: What to evaluate on, likewise.
        processing_class: The student's tokenizer; saved with the student.
        **trainer_options: Of `Trainer`: callbacks, optimizers, …

    Raises:
        LogitStoreError: Before anything is trained or written, when store, student and settings
            do not fit together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: CachedTeacherConfig,
        store: Given | None = None,
        eval_store: Given | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **trainer_options: Any,
    ) -> None:
        if processing_class is None:
            raise InputError(
                "CachedTeacherTrainer: processing_class is missing, the student's tokenizer that "
                "reads the store's text. AutoTokenizer.from_pretrained(…) makes one."
            )
        student = ByteTokenizer(processing_class)
        reads = Student(student, processing_class, model)
        check_student(model, args, student)
        if args.packing:
            check_packing(model)
        opened = open_stores(store, args.store, allow_partial=args.allow_partial)
        is_one = all(has_tokenizer_of(each, student) for each in opened.each)
        args = args.settled(one_tokenizer=is_one)
        weights = args.loss_weights
        self.data = data_of_run(opened, reads, args)
        parts = parts_of(self.data)
        self.stores = opened._replace(each=tuple(part.store for part in parts))
        #: The store, of several the first.
        self.store = parts[0].store
        if args.process_index == 0:
            say_joined(self.data)
        #: What of each store this student can use; counted before the first step.
        self.usable = [look_at(part, args) for part in parts]
        if isinstance(self.data, TwoTexts):
            look_at(self.data.second, args, "--cot_store")
        #: What tests before the first step found, as JSON.
        self.self_test: dict[str, Any] = {}
        self._has_tried = args.no_self_test
        for number, part in enumerate(parts):
            try_own_losses(part)
            if weights and not args.no_self_test:
                name = f"records of store {number}" if number else "records"
                self._note_test(name, try_records(part), args, part.store.path)
            if args.process_index == 0:
                warn_if_wrong(part)
        if args.process_index == 0 and args.boundaries:
            log.warning("%s: %s.", self.store.path, advice.BOUNDARIES)
        #: What was changed of the student's own notion of where it stops, for people.
        self.ends_listed = list_ends(model, student, self.data.reader.template)
        held_out: StudentData | None = None
        if eval_store is not None or args.eval_store:
            held_out = held_out_of_run(eval_store, self.data, reads, args)
            for part in parts_of(held_out):
                look_at(part, args, "--eval_store")
        else:
            check_nothing_to_evaluate(args)
        if attach(model, self.data, seed=args.seed) is not None:
            check_not_sharded(args)
        if args.checkpoint:  # now, since Trainer's own set-up makes the output folder
            origin = self._origin(args)  # Trainer has not taken them yet
            check_checkpoint(args.checkpoint, str(args.output_dir), origin, self.store.path)
        if args.chat_template_path is not None:  # saved with the student, which learns to read it
            processing_class.chat_template = read_template(
                args.chat_template_path, "--chat_template_path"
            )
        #: The loss of a batch, which evaluation divides by rows.
        self.batch_loss = BatchLoss(
            self.data,
            StudentHead(model),
            weights,
            ce_weight=args.ce_weight,
            uncovered=args.uncovered,
            summed=self._summed if args.balance else None,
        )
        self._router_weight = router_weight(model)
        self._kd_schedule = parse_schedule(args.kd_schedule) if args.kd_schedule else None
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
                uses_of(self.data),
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
        #: Whether the student's weights are random, so that it cannot know any text.
        self.is_new = not getattr(model, "name_or_path", "")
        self._rows: list[int] = []  # of the dataset, in this step of this process
        self._untrained: Untrained | None = None

    def _summed(self, here: Tensor) -> Tensor:
        """Add up a tensor over all processes."""
        everywhere: Tensor = self.accelerator.reduce(here, "sum")
        return everywhere

    # ---- the order of rows ----

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
            if report and self._kd_schedule is not None:
                report["kd_factor"] = self.batch_loss.kd_factor
            logs |= report if "loss" in logs else self._meter.totals()
        super().log(logs, start_time)

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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the student as Trainer does, and the weights of losses beside it."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # of several processes one
            save_beside(self.head.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_beside(self.head.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        load_beside(self.head.model, Path(self.state.best_model_checkpoint))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make Trainer's optimizer, with a learning rate of their own for the weights of losses."""
        optimizer = super().create_optimizer(model)
        give_own_rate(optimizer, parameters_of(self.head.model), self.data.options)
        return optimizer

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.is_dir():  # --save_total_limit may have removed it
            origin = json.dumps(self._origin(self.args), indent=1) + "\n"
            commit.write_whole(folder / ORIGIN_FILE, origin.encode())

    def _origin(self, args: CachedTeacherConfig) -> dict[str, Any]:
        return origin_of(self.stores, self.data, args)
