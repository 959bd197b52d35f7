"""The map of a store's teacher to a student: made once for a pair of tokenizers, and kept.

Maps that learn count pairs of tokens in the store's own text, in sequences spread evenly over it.
So they also depend on the store, and on how the student reads it. Made maps are kept in the folder
where shards of remote stores are, too, under a name that all of this decides.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.alignment.align import Alignment, Spans
from distill.alignment.event_map import SPACES, EventMap
from distill.alignment.make_map import KINDS, LEARNED, Seen, make_map
from distill.alignment.runs import Ints
from distill.data.targets import aligned_pairs
from distill.losses.loss import Pairing
from logitstore.errors import MismatchError
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage.commit import write_whole
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer

#: Changes when a map of the same pair would be another one.
VERSION = 3
#: The most sequences in which pairs are counted.
COUNTED_SEQUENCES = 4_000
_ABOUT = "about"


def map_of(
    kind: str,
    teacher: ByteTokenizer,
    student: ByteTokenizer,
    read_by: Mapping[str, Any],
    count: Callable[[], Seen],
) -> EventMap:
    """Load a map that is kept, or make it and keep it.

    Args:
        kind: The kind of map, one of :mod:`distill.alignment.make_map`.
        teacher: The teacher's tokenizer.
        student: The student's.
        read_by: What decides, beside the tokenizers, what `count` finds.
        count: Counts pairs in the store's text; called only for a map that learns from it.

    Raises:
        MismatchError: The two have no event in common, or what is kept is not the map of this pair.
    """
    about = {
        "version": VERSION,
        "map": kind,
        "teacher": teacher.fingerprint,
        "ends": list(teacher.eos_ids),
        "student": student.fingerprint,
        **(read_by if kind in LEARNED else {}),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    file = ShardCache.chosen().folder / "maps" / f"{key[:32]}.npz"
    is_kept = file.exists()
    if is_kept:
        made = _load(file, about)
    else:
        made = make_map(kind, teacher, student, count() if kind in LEARNED else None)
    if not _says_something(made, teacher.eos_ids):
        raise MismatchError(
            f"{_named(kind)}: no token of the teacher ({teacher.name}) means anything that the "
            f"student ({student.name}) can write. Use --loss alm or uld, which compare no tokens, "
            "or check that both tokenizers are of text."
        )
    if not is_kept:
        _keep(file, made, about)
    return made


def _named(kind: str) -> str:
    """Name the flag that chose a map, or that a loss has none but its own."""
    return f"--map {kind}" if kind in KINDS else f"the map of this loss, {kind}"


def _says_something(made: EventMap, ends: Sequence[int]) -> bool:
    """Tell whether a map sends any token of text somewhere: ends always meet."""
    every = [np.array(ends, np.int64) + space * made.tokens for space in range(SPACES)]
    is_text = np.ones(made.sources, np.bool_)
    is_text[np.concatenate(every)] = False
    if made.first is not None:
        is_text = np.repeat(is_text, np.diff(made.first))
    return bool((made.event[is_text] >= 0).any())


def rendered_by(template: ChatTemplate | None) -> str | None:
    """Compute a digest of all that decides what a chat template writes; None for none."""
    if template is None:
        return None
    decides = [template.source, template.tool_source, dict(template.variables)]
    said = json.dumps([*decides, template.closing, template.end_ids], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def count_pairs(sides: Iterable[tuple[Alignment, Spans, Spans, Ints, Ints]]) -> Seen:
    """Count which tokens of both sides begin at the same places.

    Args:
        sides: Of each sequence its alignment, the places of its records and labels, and their ids.
    """
    parts = [np.zeros((3, 0), np.int64)]
    for alignment, teacher, student, teacher_ids, student_ids in sides:
        pairs = aligned_pairs(Pairing("starts", "counted"), alignment, teacher, student)
        t, s = pairs.table[:, 0], pairs.table[:, 2]
        is_text = ~teacher.is_eos[t] & ~student.is_eos[s] & teacher.is_verbatim[t]
        parts.append(np.stack([pairs.space, teacher_ids[t], student_ids[s]])[:, is_text])
    unique, count = np.unique(np.concatenate(parts, 1), axis=1, return_counts=True)
    return Seen(unique[0], unique[1], unique[2], count)


def _keep(file: Path, made: EventMap, about: Mapping[str, Any]) -> None:
    """Write a map to a file with a digest at the end, if there is a place for it."""
    written = io.BytesIO()
    said = {_ABOUT: np.array(json.dumps(about, sort_keys=True))}
    arrays: dict[str, Any] = {**said, **made.arrays()}
    np.savez(written, **arrays)
    data = written.getvalue()
    with contextlib.suppress(OSError):  # of a read-only home, or a full disk: it is made again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, data + hashlib.sha256(data).digest())


def _load(file: Path, about: Mapping[str, Any]) -> EventMap:
    flag, again = f"{_named(about['map'])}: {file}", f"Run `rm {file}`: the map is made again."
    size = hashlib.sha256().digest_size
    try:
        data = file.read_bytes()
    except OSError as error:
        raise MismatchError(
            f"{flag} is a kept map that cannot be read ({error}). {again}"
        ) from error
    if hashlib.sha256(data[:-size]).digest() != data[-size:]:
        raise MismatchError(
            f"{flag} is a kept map that cannot be read (its {len(data):,} bytes have another "
            f"digest than those that were written). {again}"
        )
    with np.load(io.BytesIO(data[:-size]), allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    kept = json.loads(str(arrays.pop(_ABOUT)))
    if kept != about:
        differing = ", ".join(k for k in sorted({*kept, *about}) if kept.get(k) != about.get(k))
        raise MismatchError(
            f"{flag} is a kept map of others than its name says: {differing} differs. {again}"
        )
    return EventMap(**arrays)
