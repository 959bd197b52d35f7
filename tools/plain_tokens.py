"""Where a tokenizer's tokens lie in a text, written from the definition, one token at a time.

It judges `logitstore.text` and `distill.alignment`, so it shares no code with them: bytes of tokens
are read from tables of its own, and places are found by walking along the text.

    start, end    the bytes of the whole text, context too, that the token stands for
    written       the bytes that it writes; where it has an added space, one more than it stands for
    place         what has been read when it is predicted: supervised bytes, and context bytes
                  behind the last of them that the token itself still has to write (`head`)

A token is a label if it stands for supervised bytes, or if it is the end of a turn or of the text.
The first token of a sequence is none: nothing predicts it.
"""

import itertools
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

Piece = tuple[str, bool]  # text, whether it is supervised


class Token(NamedTuple):
    """One token of a sequence; places count bytes of the whole text, as UTF-8."""

    id: int
    start: int
    end: int
    written: bytes
    has_added_space: bool = False
    is_end: bool = False
    is_sure: bool = True  # it writes the very bytes that it stands for


class Label(NamedTuple):
    """A token that is trained on, by what is read before it.

    Attributes:
        number: Of the token, among all of the sequence.
        token: The token.
        read: Supervised bytes before it.
        head: The context bytes at its head: it crosses from context into supervised text.
        stop: Supervised bytes up to its end, or to the first context behind those.
        tail: What it writes from there on.
    """

    number: int
    token: Token
    read: int
    head: bytes
    stop: int
    tail: bytes


class PlainTokenizer:
    """A fast tokenizer, and the bytes of its tokens from its own `tokenizer.json`.

    Args:
        tokenizer: As `transformers` loads it.
        ends: Ids of the special tokens that end a turn.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        special = {t["id"] for t in content["added_tokens"] if t["special"]}
        self.special = special | set(tokenizer.all_special_ids)
        self.ends, self.eos = set(ends), tokenizer.eos_token_id
        self.eos_text: str = tokenizer.eos_token
        spelling = _spelling(content)
        model = content["model"]["vocab"]
        of_model = set(model) if isinstance(model, dict) else {token for token, _ in model}
        self.written = {
            i: token.encode() if i in self.special or token not in of_model else spelling(token)
            for token, i in tokenizer.get_vocab().items()
        }
        self.drops_spaces = _drops_spaces(content)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        probe = self._backend.encode("a", add_special_tokens=True)
        is_text = [i is not None for i in probe.sequence_ids]
        self.prefix = probe.ids[: is_text.index(True)]

    def read(self, pieces: Sequence[Piece], *, wrapped: bool = True) -> list[Token]:
        """Tokenise a text, and find the bytes that each token stands for.

        Args:
            pieces: The text.
            wrapped: Whether the tokenizer's own BOS comes before it and its EOS behind it.
        """
        text = "".join(piece for piece, _ in pieces)
        data = text.encode()
        encoding = self._backend.encode(text, add_special_tokens=False)
        at = list(itertools.accumulate((len(c.encode()) for c in text), initial=0))
        ends = _turn_ends(pieces)
        tokens: list[Token] = []
        section: list[tuple[int, int, int]] = []
        place = 0
        for i, (low, high) in zip(encoding.ids, encoding.offsets, strict=True):
            if i not in self.special:
                section.append((i, at[low], at[high]))
                continue
            tokens += self._section(data, place, at[low], section)
            is_sure = data[at[low] : at[high]] == self.written[i]
            tokens.append(Token(i, at[low], at[high], self.written[i], is_sure=is_sure))
            section, place = [], at[high]
        tokens += self._section(data, place, len(data), section)
        tokens = _with_ends(tokens, ends, self.ends)
        if wrapped:
            first = [Token(i, 0, 0, b"") for i in self.prefix]
            tokens = [*first, *tokens]
            if self.eos is not None and [flag for piece, flag in pieces if piece][-1:] == [True]:
                tokens.append(Token(self.eos, len(data), len(data), b"", is_end=True))
        return tokens

    def _section(
        self, data: bytes, low: int, high: int, found: list[tuple[int, int, int]]
    ) -> list[Token]:
        """Place the tokens between two special ones, which hide nothing of each other."""
        written = [self.written[i] for i, _, _ in found]
        whole = b"".join(written)
        added = int(whole == b" " + data[low:high])
        if not added and whole != data[low:high]:
            return self._walk(data, low, high, found)
        tokens, place = [], low - added
        for (i, _, _), piece in zip(found, written, strict=True):
            start, end = max(place, low), place + len(piece)
            tokens.append(Token(i, start, end, piece, has_added_space=place < low))
            place = end
        return tokens

    def _walk(
        self, data: bytes, low: int, high: int, found: list[tuple[int, int, int]]
    ) -> list[Token]:
        """Place tokens where a normaliser changed the text: what does not match is not sure."""
        tokens: list[Token] = []
        place, n = low, 0
        while n < len(found):
            i, _, _ = found[n]
            fits = self._fits(data[:high], place, i, is_first=n == 0)
            if fits is not None:
                tokens.append(fits)
                place, n = fits.end, n + 1
                continue
            # The next token that begins behind all before it, and writes what is there.
            stop, after, behind = n + 1, found[n][2], high
            while stop < len(found):
                behind = self._before_gap(data, after, found[stop][1])
                if found[stop][1] >= after and self._fits(data[:high], behind, found[stop][0]):
                    break
                after = max(after, found[stop][2])
                stop += 1
            until = behind if stop < len(found) else high
            tokens += [Token(i, place, until, self.written[i], is_sure=False)
                       for i, _, _ in found[n:stop]]  # fmt: skip
            place, n = until, stop
        return tokens

    def _before_gap(self, data: bytes, low: int, place: int) -> int:
        """Step back over white space that belongs to the token at a place."""
        return max(low, len(data[:place].rstrip())) if self.drops_spaces else place

    def _fits(self, data: bytes, place: int, i: int, *, is_first: bool = False) -> Token | None:
        """Place a token if it writes what is here, perhaps behind a space that it adds."""
        piece = self.written[i]
        bare = piece.removeprefix(b" ")
        if self.drops_spaces:  # white space belongs to what follows it, and is one space to it
            gap = re.match(rb"\s*", data[place:])
            skipped = place + (gap.end() if gap else 0)
            end = skipped + len(bare)
            if not piece or not data.startswith(bare, skipped):
                return None
            added = skipped == place and bare != piece
            return Token(i, place, end, piece, added, is_sure=added or data[place:end] == piece)
        if piece and data.startswith(piece, place):
            return Token(i, place, place + len(piece), piece)
        if is_first and bare != piece and data.startswith(bare, place):
            return Token(i, place, place + len(bare), piece, has_added_space=True)
        return None


def labels(
    tokens: Sequence[Token], pieces: Sequence[Piece], *, in_template: bool = False
) -> list[Label]:
    """List the tokens that are trained on, and what each side has read before them.

    Args:
        tokens: All tokens of the text.
        pieces: The text.
        in_template: Whether the tokenizer's own chat template wrote the context. A space that it
            writes before an answer is then as good as added by the tokenizer: the other side's
            template has its own way to lead to the same answer.
    """
    data = "".join(piece for piece, _ in pieces).encode()
    flags = [flag for piece, flag in pieces for _ in piece.encode()]
    before = list(itertools.accumulate(flags, initial=0))
    made = []
    for number, token in enumerate(tokens):
        covered = flags[token.start : token.end]
        # One without bytes belongs to the text behind it.
        is_mark = not covered and flags[token.start : token.start + 1] == [True]
        if number == 0 or not (any(covered) or token.is_end or is_mark):
            continue
        head = within = 0
        if any(covered):
            head = covered.index(True)
            within = [*covered[head:], False].index(False)
        if token.is_end:
            made.append(Label(number, token, before[token.start], b"", before[token.start], b""))
            continue
        label = Label(
            number,
            token,
            before[token.start],
            data[token.start : token.start + head],
            before[token.start] + within,
            data[token.start + head + within : token.end],
        )
        if in_template and label.head == b" " and token.written[:1] == b" ":
            label = label._replace(head=b"", token=token._replace(has_added_space=True))
        made.append(label)
    return made


Place = tuple[int, int, bytes]


def places(mine: Sequence[Label], theirs: Sequence[Label]) -> list[tuple[Place, Place]]:
    """Say before and behind which place each label lies.

    Ends at one byte are events of their own where both sides have them, the first with the first:
    what follows such an event has read it, too.
    """
    others = Counter(each.read for each in theirs if each.token.is_end)
    seen: Counter[int] = Counter()
    made = []
    for label in mine:
        is_event = label.token.is_end and seen[label.read] < others[label.read]
        at = (label.read, seen[label.read], label.head)
        stop = (label.stop, seen[label.stop] + is_event, label.tail)
        if label.stop == label.read and not is_event:
            stop = at
        made.append((at, stop))
        seen[label.read] += is_event
    return made


def shared_starts(teacher: Sequence[Label], student: Sequence[Label]) -> list[tuple[int, int]]:
    """Pair the labels before which both sides have read the same: (teacher's, student's) number.

    Of several labels at one place the last has read most: it is the one that is paired.
    """
    last_t = {at: n for n, (at, _) in enumerate(places(teacher, student))}
    last_s = {at: n for n, (at, _) in enumerate(places(student, teacher))}
    return sorted((last_t[at], n) for at, n in last_s.items() if at in last_t)


def groups(teacher: Sequence[Label], student: Sequence[Label]) -> list[tuple[int, int, int, int]]:
    """List the smallest runs of labels that begin and end together, without a gap on either side.

    Returns:
        (teacher's first, the one behind its last, student's first, the one behind its last).
    """
    of_teacher = _boundaries(places(teacher, student))
    of_student = _boundaries(places(student, teacher))
    common = [at for at in of_teacher if at in of_student]
    found = []
    for begin, stop in itertools.pairwise(common):
        (a, in_a), (b, in_b) = (of_teacher[at] for at in (begin, stop))
        (c, in_c), (d, in_d) = (of_student[at] for at in (begin, stop))
        if in_a == in_b and in_c == in_d:
            found.append((a, b, c, d))
    return found


def _boundaries(side: Sequence[tuple[Place, Place]]) -> dict[Place, tuple[int, int]]:
    """List the places where labels begin and end: the labels before it, and which stretch it is in.

    A stretch has no gap. A label without width belongs to what begins where it stands.
    """
    found: dict[Place, tuple[int, int]] = {}
    stretch, behind = 0, None
    for n, (at, stop) in enumerate(side):
        stretch += at != behind
        found.setdefault(at, (n, stretch))
        if stop != at:
            found[stop] = (n + 1, stretch)
        behind = stop
    return found


def _turn_ends(pieces: Sequence[Piece]) -> set[int]:
    """Find the bytes where supervised text ends and context follows."""
    ends, place = set(), 0
    filled = [piece for piece in pieces if piece[0]]
    for (text, flag), (_, following) in itertools.pairwise([*filled, ("", True)]):
        place += len(text.encode())
        if flag and not following:
            ends.add(place)
    return ends


def _with_ends(tokens: list[Token], turn_ends: set[int], ends: set[int]) -> list[Token]:
    """Make events of the special tokens that stand where a turn ends."""
    return [
        t._replace(end=t.start, is_end=True) if t.id in ends and t.start in turn_ends else t
        for t in tokens
    ]


def _spelling(content: Any) -> Any:
    """Return a function that tells the bytes of a token of the model's vocabulary."""
    parts = json.dumps([content[p] for p in ("normalizer", "pre_tokenizer", "decoder")])
    if '"ByteLevel"' in parts:
        alphabet = _gpt2_alphabet()
        return lambda token: (
            bytes(alphabet[c] for c in token) if set(token) <= alphabet.keys() else token.encode()
        )
    continues = content["model"].get("continuing_subword_prefix")
    has_bytes = content["model"].get("byte_fallback") or '"ByteFallback"' in parts

    def spelt(token: str) -> bytes:
        byte = re.fullmatch("<0x(..)>", token)
        if byte and has_bytes:
            return bytes.fromhex(byte[1])
        if continues:
            bare = token.removeprefix(continues)
            return (bare if bare != token or _is_cut_off(token) else " " + token).encode()
        return token.replace("\u2581", " ").encode() if "\\u2581" in parts else token.encode()

    return spelt


def _is_cut_off(token: str) -> bool:
    """Tell whether BERT cuts a text before and behind this, with or without a space there."""
    is_sign = token in string.punctuation or unicodedata.category(token[0]).startswith("P")
    return len(token) == 1 and (is_sign or "\u4e00" <= token <= "\u9fff")


def _drops_spaces(content: Any) -> bool:
    parts = json.dumps(content["pre_tokenizer"])
    return any(f'"{name}"' in parts for name in ("WhitespaceSplit", "BertPreTokenizer"))


def _gpt2_alphabet() -> dict[str, int]:
    """Map each of the 256 characters of GPT-2's alphabet to its byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + n): byte for n, byte in enumerate(hidden)}
