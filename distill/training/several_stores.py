"""Open the stores of a run, and make one dataset of them."""

import hashlib
import logging
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.dataset import StoreDataset
from distill.data.example import Store
from distill.data.joined import JoinedDataset, StudentData, parts_of, stores_of
from distill.data.second_text import TwoTexts
from distill.data.selection import Floats, RowSums
from distill.training.config import CachedTeacherConfig
from distill.training.named_stores import NamedStore, parse_stores
from distill.training.preflight import check_eval_store, has_teacher_of, settings_of
from distill.training.sources import Reading, at_boundaries, dataset_of_run
from logitstore import open_store
from logitstore.console.counts import counted
from logitstore.errors import InputError, MismatchError
from logitstore.text.tokenizer import ByteTokenizer

log = logging.getLogger(__name__)

#: One store, or several: open, or as a run names them.
Given = Store | str | PathLike[str] | Sequence[Store | str | PathLike[str]]


class OpenStores(NamedTuple):
    """The stores of a run, and what each counts for."""

    each: tuple[Store, ...]
    weights: tuple[float, ...]

    @property
    def named(self) -> list[NamedStore]:
        """Their paths and weights, as a run names them."""
        each = zip(self.each, self.weights, strict=True)
        return [NamedStore(str(s.path), weight, has_weight=weight != 1) for s, weight in each]

    @property
    def digest(self) -> str:
        """What they hold together; of one store its own digest."""
        if len(self.each) == 1:
            return self.each[0].digest
        together = "\n".join(store.digest for store in self.each)
        return hashlib.sha256(together.encode()).hexdigest()


class Student(NamedTuple):
    """A student, as a dataset is made for it."""

    by_bytes: ByteTokenizer
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel | None


def open_stores(
    given: Given | None,
    named: Given | None = None,
    *,
    allow_partial: bool = False,
    flag: str = "--store",
) -> OpenStores:
    """Open the stores of a run, where they are not open already.

    Args:
        given: The stores; None: those that are named.
        named: How the run names them, with their weights; None: as they are given.
        allow_partial: Open unfinished ones.
        flag: What named them, for messages.

    Raises:
        InputError: There are as many weights as not stores.
        LogitStoreError: One cannot be opened.
    """
    listed = _listed(named if given is None else given)
    weights = [1.0] * len(listed)
    texts = [fspath(each) for each in _listed(given if named is None else named) if _is_path(each)]
    if texts:
        parsed = parse_stores(texts, flag)
        if len(parsed) != len(listed):
            raise InputError(
                f"{flag} names {counted(len(parsed), 'store')}, but {len(listed)} are given open. "
                "Name each."
            )
        weights = [each.weight for each in parsed]
        paths = iter(parsed)
        listed = [
            open_store(next(paths).path, allow_partial=allow_partial) if _is_path(each) else each
            for each in listed
        ]
    return OpenStores(tuple(listed), tuple(weights))


def _listed(given: Given | None) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _is_path(given: object) -> bool:
    return isinstance(given, str | PathLike)


def data_of_run(stores: OpenStores, student: Student, args: Reading) -> StudentData:
    """Make the rows of a run's stores for a student.

    Raises:
        LogitStoreError: Stores, student and settings do not fit together.
    """
    placed = [at_boundaries(store, student.by_bytes, args) for store in stores.each]
    among = placed if len(placed) > 1 else []
    parts = [dataset_of_run(store, *student, args, among=among) for store in placed]
    if len(parts) == 1:
        return with_second_text(parts[0], student, args)
    joined = JoinedDataset(
        parts,
        stores.weights,
        surprise=_surprises(stores.each, args),
        of_first=args.rows is not None,
    )
    joined.check_read_alike()
    return joined


def with_second_text(data: StoreDataset, student: Student, args: Reading) -> StoreDataset:
    """Give the rows of a store their second texts, if the run names a store of these.

    Raises:
        LogitStoreError: It does not fit the store or the settings.
    """
    if args.cot_store is None:
        return data
    store = open_store(args.cot_store, allow_partial=args.allow_partial)
    placed = at_boundaries(store, student.by_bytes, args)
    # Of several stores `--rows` is of the first.
    return TwoTexts(data, dataset_of_run(placed, *student, args, among=[data.store, placed]))


def held_out_of_run(
    given: Given | None, data: StudentData, student: Student, args: CachedTeacherConfig
) -> StudentData:
    """Make the rows of held-out stores, each in the place of the training store of its teacher.

    Args:
        given: The stores, open; None: those that the run names.
        data: What the run trains on.
        student: The student.
        args: The run's settings.

    Raises:
        MismatchError: One has a teacher that no training store has.
        LogitStoreError: Stores, student and settings do not fit together.
    """
    named, partial = args.eval_store, args.allow_partial
    stores = open_stores(given, named, allow_partial=partial, flag="--eval_store")
    placed = [at_boundaries(store, student.by_bytes, args) for store in stores.each]
    slots = _places(placed, data, args)
    parts = [dataset_of_run(store, *student, args, for_training=False) for store in placed]
    if stores_of(data) == 1:
        return parts[0]
    assert isinstance(data, JoinedDataset)
    return JoinedDataset(
        parts,
        [data.weights[slot] for slot in slots],
        surprise=_surprises(stores.each, args),
        slots=slots,
        stores=stores_of(data),
    )


def _places(held_out: Sequence[Store], data: StudentData, args: CachedTeacherConfig) -> list[int]:
    """Find the training store of each held-out store's teacher; no two of one."""
    trained, found = [part.store for part in parts_of(data)], list[int]()
    if len(held_out) > len(trained):
        raise InputError(
            f"--eval_store names {counted(len(held_out), 'store')}, but --store {len(trained)}: "
            "there is one of held-out text for each teacher at most. Leave the others out."
        )
    for store in held_out:
        left = [slot for slot in range(len(trained)) if slot not in found]
        alike = [slot for slot in left if has_teacher_of(store, trained[slot])]
        slot = alike[0] if alike else left[0]
        check_eval_store(store, trained[slot], args)
        found.append(slot)
    return found


def origin_of(stores: OpenStores, data: StudentData, args: CachedTeacherConfig) -> dict[str, Any]:
    """Describe what a run trains on and how, as `ORIGIN_FILE` of its checkpoints has it."""
    template = None
    written_by = data.reader.template
    if written_by is not None:
        template = (written_by.source, written_by.tool_source)
    chosen: dict[str, Any] = {} if data.rows is None else {"rows": data.rows_digest}
    if len(stores.each) > 1:
        chosen |= {"teachers": args.teachers, "weights of stores": list(stores.weights)}
    chosen |= {"cot_store": data.second.store.digest if isinstance(data, TwoTexts) else None}
    return {
        "store_digest": stores.digest,
        "sequences": len(data),
        "settings": settings_of(args, template) | chosen,
    }


def _surprises(stores: Sequence[Store], args: Reading) -> list[Floats] | None:
    """Read how surprised each teacher is by each row, nats a byte; None where nothing asks it."""
    if args.teachers != "best" or len(stores) == 1:
        return None
    return [_surprise(store) for store in stores]


def _surprise(store: Any) -> Floats:
    if "token_logprob" in store.spec.missing:
        raise MismatchError(
            f"{store.path}: was imported without the log-probability of every token, by which "
            "--teachers best chooses. Use --teachers mean, or capture the text with the teacher."
        )
    return RowSums.of(store).surprise_R


def say_joined(data: StudentData) -> None:
    """Log how much of each of several stores is used, or how many rows have a second text."""
    if isinstance(data, TwoTexts):
        facts = data.facts()
        both, count = facts["with_second_text"], facts["sequences"]
        log.warning(
            "--cot_store %s: %s of %s sequences of %s have a second text there%s.",
            data.second.store.path,
            f"{both:,}",
            f"{count:,}",
            data.store.path,
            "" if both == count else "; the others are learnt alone",
        )
    if not isinstance(data, JoinedDataset):
        return
    log.warning("%s", "\n".join(lines_of(data)))


def lines_of(data: JoinedDataset) -> list[str]:
    """Say how much of each store is used, for people."""
    lines = [f"{counted(len(data.parts), 'store')}, {counted(len(data), 'sequence')}:"]
    for part, facts in zip(data.parts, data.facts(), strict=True):
        parts = [
            f"{counted(facts['sequences'], 'sequence')}",
            f"{facts['sequences_alone']:,} that no other has",
        ]
        if facts["sequences_learnt"] != facts["sequences"]:
            parts.append(f"{facts['sequences_learnt']:,} learnt from it")
        if facts["rows_cut_otherwise"]:
            parts.append(f"{counted(facts['rows_cut_otherwise'], 'row')} cut otherwise, not used")
        lines.append(f"    {part.store.path}: {', '.join(parts)}")
    return lines
