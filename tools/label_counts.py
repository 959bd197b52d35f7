"""Count which student's token follows which teacher's token, and judge maps by these counts.

A teacher that knew the text would give each of its tokens probability one. A map sends that token
to events of the student's vocabulary; the text says which event really came:

    right             labels whose event is the one that most of the token was sent to
    total variation   half the sum over events of |how often it is asked for - how often it came|,
                      per label: what stays wrong however long one averages; mass that is sent to no
                      event counts as asked for and never coming
    paired            labels before which both sides have read the same bytes
    cut               of these, the share whose teacher's token the student never writes behind its
                      own last token: where a target leaves those out, they are not judged
    between           labels that begin inside a teacher's token whose bytes so far are written;
                      `sent between` of those have an event, the right one for `right between`

Pairs come from `tools.plain_tokens`, which shares no code with what it judges.

Shape legend: n = pairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tools.plain_tokens import Label, Piece, PlainTokenizer, labels, shared_starts

Ints = npt.NDArray[np.int64]

#: What a label is, by the text that it stands for. A first token of a turn is one of these, too.
SORTS = ("words", "numerals", "white space", "other scripts", "signs", "ends")
FIRST = "first of a turn"
PLAIN, LESS_SPACE, MORE_SPACE = 0, 1, 2

#: What each family's chat template writes: before the user, before the assistant, behind it.
MARKUP: Mapping[str, tuple[str, str, str]] = {
    "llama2": ("[INST] ", " [/INST] ", "</s>"),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "qwen3": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
    "gemma3": (
        "<start_of_turn>user\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>\n",
    ),
    "gptoss": (
        "<|start|>user<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
    "deepseek": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
}


class Row(NamedTuple):
    """A document as a row: `text`, a `prompt` and its completion, or a `talk` of several turns."""

    form: str
    parts: list[str]

    def pieces(self, name: str, tokenizer: PlainTokenizer) -> list[Piece]:
        """Write the row for one tokenizer, a talk in its own markup."""
        if self.form == "text":
            return [(self.parts[0], True)]
        if self.form == "prompt":
            return [(self.parts[0], False), (self.parts[1], True)]
        user, assistant, behind = MARKUP.get(name, ("Q: ", "\nA:\n", tokenizer.eos_text))
        made: list[Piece] = []
        for asked, answered in zip(self.parts[::2], self.parts[1::2], strict=True):
            made += [(user + asked + assistant, False), (answered, True), (behind, False)]
        return made


def rows(documents: Sequence[str], seed: int) -> list[Row]:
    """Make rows of documents: texts, prompts cut at any character, and talks cut at words."""
    rng = random.Random(seed)
    made = []
    for n, text in enumerate(documents):
        words = text.split(" ")
        if n % 3 == 1 and len(text) > 1:
            cut = rng.randrange(1, len(text))
            made.append(Row("prompt", [text[:cut], text[cut:]]))
        elif n % 3 == 2 and len(words) > 8:
            cuts = sorted(rng.sample(range(1, len(words)), 2 * rng.randint(1, 3) - 1))
            bounds = zip([0, *cuts], [*cuts, len(words)], strict=True)
            parts = [" ".join(words[a:b]).strip() for a, b in bounds]
            made.append(Row("talk", [part or "-" for part in parts]))
        else:
            made.append(Row("text", [text]))
    return made


class Side(NamedTuple):
    """The labels of some rows by one tokenizer, a list a row, and the text of each row."""

    labels: list[list[Label]]
    texts: list[bytes]
    turns: list[set[int]]


def side(name: str, tokenizer: PlainTokenizer, chosen: Sequence[Row]) -> Side:
    """Read rows with a tokenizer."""
    found = Side([], [], [])
    for row in chosen:
        pieces = row.pieces(name, tokenizer)
        tokens = tokenizer.read(pieces, wrapped=row.form != "talk")
        made = labels(tokens, pieces, in_template=row.form == "talk")
        # A tokenizer's ends are one event: training asks for the one that the row has.
        found.labels.append([_with_id(label, tokenizer.eos) for label in made])
        found.texts.append("".join(text for text, _ in pieces).encode())
        starts, read = set(), 0
        for text, is_supervised in pieces:
            if is_supervised:
                starts.add(read)
                read += len(text.encode())
        found.turns.append(starts)
    return found


def _with_id(label: Label, eos: int) -> Label:
    return label._replace(token=label.token._replace(id=eos)) if label.token.is_end else label


class Counted(NamedTuple):
    """The pairs of two sides; a label between two starts has a teacher's token around it.

    Attributes:
        labels: How many labels the student has, of each of `SORTS`, and first ones.
        teacher: (n,) the teacher's token.
        written: (n,) bytes of it that the student has written before; 0 at a shared start.
        space: (n,) how a space in front of the teacher's token is to be read.
        student: (n,) the label.
        sort: (n,) which of `SORTS` it is.
        is_first: (n,) whether it is the first of a turn or a text.
        last: (n,) the student's token that ended just where the label begins; -1 for none, inside
            of a teacher's token, and where a space in front is read in another way.
    """

    labels: dict[str, int]
    teacher: Ints
    written: Ints
    space: Ints
    student: Ints
    sort: Ints
    is_first: npt.NDArray[np.bool_]
    last: Ints


def counted(teacher: Side, student: Side) -> Counted:
    """Pair every label of the student with what the teacher asks for there."""
    count = dict.fromkeys((*SORTS, FIRST), 0)
    found: list[tuple[int, int, int, int, int, bool, int]] = []
    both = zip(teacher.labels, student.labels, student.texts, student.turns, strict=True)
    for t, s, text, turns in both:
        paired = {b: (a, 0) for a, b in shared_starts(t, s)}
        for b, around in _around(t, s).items():
            paired.setdefault(b, around)
        seen_first: set[int] = set()
        for b, label in enumerate(s):
            sort = _sort(label, text)
            is_first = label.read in turns and label.stop > label.read
            is_first &= label.read not in seen_first
            seen_first |= {label.read} if is_first else set()
            count[SORTS[sort]] += 1
            count[FIRST] += is_first
            if b not in paired or not label.token.is_sure:
                continue
            a, written = paired[b]
            if t[a].token.is_sure:
                space = _space(t[a], label)
                last = -1 if written or space != PLAIN else _last(s, b)
                found.append((t[a].token.id, written, space, label.token.id, sort, is_first, last))
    teacher_ids, behind, spaces, student_ids, sorts, firsts, lasts = (
        np.array(column, np.int64) for column in np.array(found).reshape(-1, 7).T
    )
    is_first_n = firsts.astype(bool)
    return Counted(count, teacher_ids, behind, spaces, student_ids, sorts, is_first_n, lasts)


def _last(student: Sequence[Label], b: int) -> int:
    """Find the token that ended where label b begins, in the same stretch; -1 for none."""
    label, before = student[b], student[b - 1]
    if not b or not before.read < before.stop == label.read < label.stop:
        return -1
    return -1 if before.tail or label.head else before.token.id


def _around(teacher: Sequence[Label], student: Sequence[Label]) -> dict[int, tuple[int, int]]:
    """Find labels inside a teacher's token: its number, and how many of its bytes are written."""
    found, a = {}, 0
    for b, label in enumerate(student):
        while a + 1 < len(teacher) and teacher[a].stop <= label.read:
            a += 1
        if a < len(teacher) and teacher[a].read < label.read < teacher[a].stop:
            token = teacher[a].token
            behind = label.read - teacher[a].read + len(teacher[a].head) + token.has_added_space
            if not (label.head or teacher[a].tail):
                found[b] = (a, behind)
    return found


def _sort(label: Label, text: bytes) -> int:
    if label.token.is_end:
        return SORTS.index("ends")
    shown = text[label.token.start : label.token.end]
    if any(byte in b"0123456789" for byte in shown):
        return SORTS.index("numerals")
    if shown.isspace():
        return SORTS.index("white space")
    if any(byte >= 0x80 for byte in shown):
        return SORTS.index("other scripts")
    return SORTS.index("words" if any(65 <= byte & 0xDF <= 90 for byte in shown) else "signs")


def _space(teacher: Label, student: Label) -> int:
    added = teacher.token.has_added_space, student.token.has_added_space
    return {(True, False): LESS_SPACE, (False, True): MORE_SPACE}.get(added, PLAIN)


#: Tells (n,) whether a student would end a token where (n,) its last one ended, behind which (n,)
#: the teacher's token follows.
Fits = Callable[[Ints, Ints], npt.NDArray[np.bool_]]


def judge(made: Any, pairs: Counted, fits: Fits | None = None) -> dict[str, Any]:
    """Judge a map by counts.

    Args:
        made: A `distill.alignment.event_map.EventMap`.
        pairs: The pairs of the two tokenizers that it maps.
        fits: Tells which of the teacher's tokens a target leaves out: these are not judged. None:
            no target leaves any out.

    Returns:
        JSON-ready: the figures above, how many bits a label tells as a token and as an event, and
        what is right of each of `SORTS` and of first tokens (None without labels), with their
        numbers in `labels`.
    """
    came = made.event_of(pairs.student).astype(np.int64)
    source = made.source_of_token(pairs.teacher, pairs.space)
    inside = pairs.written > 0
    source[inside] = made.source_behind(pairs.teacher[inside], pairs.written[inside])
    owner, event, share = _sent(made, source)
    best = np.full(len(source), -1, np.int64)
    order = np.lexsort((share, owner))  # the largest share of each comes last, and stays
    best[owner[order]] = event[order]
    is_right, is_sent = best == came, best >= 0
    at, is_cut = ~inside, _cut(pairs, fits)
    paired = float(at.sum())
    at &= ~is_cut
    total = sum(pairs.labels[sort] for sort in SORTS)
    figures: dict[str, Any] = {
        "right": _share(is_right[at]),
        "total variation": _variation(came[at], at[owner], owner, event, share, int(at.sum())),
        "paired": paired / max(1, total),
        "cut": float(is_cut.sum()) / max(1.0, paired),
        "between": float(inside.sum()) / max(1, total),
        "sent between": _share(is_sent[inside]),
        "right between": _share(is_right[inside & is_sent]),
        "bits of tokens": _bits(pairs.student),
        "bits of events": _bits(came),
        "labels": {},
    }
    for n, sort in enumerate((*SORTS, FIRST)):
        chosen = at & (pairs.is_first if sort == FIRST else pairs.sort == n)
        figures[sort] = _share(is_right[chosen])
        figures["labels"][sort] = int(chosen.sum())
    return figures


def _cut(pairs: Counted, fits: Fits | None) -> npt.NDArray[np.bool_]:
    """Tell (n,) which pairs are of a teacher's token that the target would leave out there."""
    is_cut = np.zeros(len(pairs.last), np.bool_)
    asked = np.flatnonzero(pairs.last >= 0)
    if fits is not None:
        is_cut[asked] = ~fits(pairs.last[asked], pairs.teacher[asked])
    return is_cut


def _bits(ids: npt.NDArray[Any]) -> float:
    """Compute the entropy of how often each occurs: what events cannot tell apart is lost."""
    counts = np.unique(ids, return_counts=True)[1]
    return float(-(counts / len(ids) * np.log2(counts / len(ids))).sum())


def _sent(made: Any, source: Ints) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """List what each pair sends: (pair, event, share), flat."""
    if made.first is None:
        owner, member = np.arange(len(source)), source
        share = np.ones(len(source))
    else:
        first, count = made.first[source], made.first[source + 1] - made.first[source]
        owner = np.repeat(np.arange(len(source)), count)
        member = first[owner] + np.arange(len(owner)) - (np.cumsum(count) - count)[owner]
        share = made.share[member].astype(np.float64)
    event = made.event[member].astype(np.int64)
    is_sent = event >= 0
    return owner[is_sent], event[is_sent], share[is_sent]


def _variation(
    came: Ints,
    is_counted: npt.NDArray[np.bool_],
    owner: Ints,
    event: Ints,
    share: npt.NDArray[np.float64],
    count: int,
) -> float | None:
    if not count:
        return None
    event, share = event[is_counted], share[is_counted]
    size = int(max(came.max(initial=0), event.max(initial=0))) + 1
    asked = np.bincount(event, share, size) - np.bincount(came, minlength=size)
    unsent = max(0.0, count - float(share.sum()))
    return float(np.abs(asked).sum() + unsent) / 2 / count


def _share(flags: npt.NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None
