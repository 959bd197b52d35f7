"""Read rows that DistillKit's sampler packed: the log-probabilities of the k most probable tokens.

    compressed_logprobs   bytes of each token: the first `exact_k` numbers as they are, the
                          coefficients of a curve through the others, and what these are off the
                          curve, a few bits each; all of differences, if `delta_encoding`
    bytepacked_indices    the ids, ceil(log2 d) bits each, the highest bit first

`compression_config.yaml` beside the files says how. Rows that are not packed have `token_ids` and
`top_values`. Row t is of token t + 1, and the last token has none. Its older packed rows
(`packed_indices`) are logits without their normaliser, so no log-probabilities.

Shape legend: T = tokens, k = entries, e = exact ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from logitstore.errors import InputError, MissingLibraryError, in_a_line
from logitstore.format.numpy_types import F32, F64, I64, Array
from logitstore.moving.dumps.columns import paired
from logitstore.moving.dumps.row import Dumped, documents, flattened, integers, wanted
from logitstore.storage.files import read_file
from logitstore.writing.lists.lists import Lists, reject_lengths

CONFIG = "compression_config.yaml"
_PACKED = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_PLAIN = ("input_ids", "token_ids", "top_values")
_OLD = "packed_indices"
_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_MAX_CONFIG_BYTES = 64 * 1024
_MOST = 1 << 16  # entries of a list
_MOST_DEGREE = 16


@dataclass(frozen=True)
class Packing:
    """How the numbers of a token are packed.

    Attributes:
        index_bits: Bits of an id.
        k, exact_k: Entries, and how many of them are stored as they are.
        exact_dtype, term_dtype: Types of these, and of the coefficients.
        terms: The functions of the curve: a power, `sqrt` or `exp`.
        bins: (type of the scale, bits of a number, numbers) of each group of residuals.
        is_delta: Whether each number is the difference from the one before.
        is_normalised: Whether the curve runs over 0 to 1, not over 0 to k - e - 1.
    """

    index_bits: int
    k: int
    exact_k: int
    exact_dtype: str
    term_dtype: str
    terms: tuple[int | str, ...]
    bins: tuple[tuple[str, int, int], ...]
    is_delta: bool
    is_normalised: bool

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file that says how.

        Raises:
            InputError: There is none, or it says something that cannot be.
            MissingLibraryError: PyYAML is not installed.
        """
        try:
            import yaml  # type: ignore[import-untyped]
        except ImportError as e:
            raise MissingLibraryError(
                f"{path}: PyYAML is needed to read it. Run `pip install pyyaml`."
            ) from e
        try:
            said = yaml.safe_load(read_file(path, _MAX_CONFIG_BYTES))
            return cls._of(said)
        except OSError as e:
            raise InputError(
                f"{path}: cannot be read ({e.strerror or e}), and without it packed rows are only "
                "bytes. Put the file there that the sampler wrote, or name it with "
                "--compression-config."
            ) from e
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as e:
            raise InputError(
                f"{path}: does not say how rows were packed ({in_a_line(e)}). Give the "
                f"{CONFIG} that the sampler wrote."
            ) from e

    @classmethod
    def _of(cls, said: Any) -> Self:
        k, exact_k = int(said["k"]), int(said["exact_k"])
        bins = tuple(
            (_dtype(b["scale_dtype"]), int(b["element_bits"]), int(b["num_elements"]))
            for b in said.get("residual_bins") or ()
        )
        terms = tuple(_term(term) for term in said.get("polynomial_terms") or ())
        d = int(said["d"])
        if not (0 <= exact_k <= k <= _MOST and 2 <= d < 2**32):
            raise ValueError(f"d {d}, k {k}, exact_k {exact_k}")
        if not all(1 <= bits <= 62 and 1 <= n <= _MOST for _, bits, n in bins):
            raise ValueError("residual_bins")
        if sum(n for *_, n in bins) > k - exact_k:
            raise ValueError("more residuals than entries")
        return cls(
            math.ceil(math.log2(d)),
            k,
            exact_k,
            _dtype(said.get("exact_dtype", "float32")),
            _dtype(said.get("term_dtype", "float32")),
            terms,
            bins,
            bool(said.get("delta_encoding", True)),
            bool(said.get("normalize_t", False)),
        )

    @property
    def is_exact(self) -> bool:
        """Tell whether every number is stored as it is."""
        return self.exact_k == self.k

    def unpack(self, packed: Array, indices: Array) -> tuple[I64, F64]:
        """Return (T, k) ids and log-probabilities of (T, bytes) each.

        Raises:
            ValueError: They have another number of bytes.
        """
        widths = [self.exact_k * _BITS[self.exact_dtype] // 8]
        widths.append(len(self.terms) * _BITS[self.term_dtype] // 8)
        for dtype, bits, n in self.bins:
            widths += [_BITS[dtype] // 8, -(-bits * n // 8)]
        index_bytes = -(-self.index_bits * self.k // 8)
        if packed.shape[1] != sum(widths) or indices.shape[1] != index_bytes:
            raise ValueError(
                f"{packed.shape[1]} and {indices.shape[1]} bytes a token, expected {sum(widths)} "
                f"and {index_bytes}"
            )
        parts = np.split(packed, np.cumsum(widths)[:-1], axis=1)
        numbers = np.concatenate(
            [_floats(parts[0], self.exact_dtype).astype(np.float64), self._curve(parts)], axis=1
        )
        if self.is_delta:
            numbers = np.cumsum(numbers, axis=1)
        return _integers(indices, self.index_bits, self.k), numbers

    def _curve(self, parts: list[Array]) -> F64:
        """Return (T, k - e) the numbers that are on a curve, or nearly."""
        rest = self.k - self.exact_k
        found = np.zeros((len(parts[0]), rest))
        if self.terms:
            t = np.linspace(0, 1, rest) if self.is_normalised else np.arange(rest, dtype=np.float64)
            curves = [getattr(np, f)(t) if isinstance(f, str) else t**f for f in self.terms]
            found += _floats(parts[1], self.term_dtype).astype(np.float64) @ np.stack(curves)
        done = 0
        for (dtype, bits, n), scale, packed in zip(
            self.bins, parts[2::2], parts[3::2], strict=True
        ):
            codes = _integers(packed, bits, n).astype(np.float64)
            steps = codes * 2 - 1 if bits == 1 else codes - 2 ** (bits - 1)
            found[:, done : done + n] += steps * _floats(scale, dtype)
            done += n
        return found


def looks_like(row: Mapping[str, Any], where: str) -> bool:
    """Tell whether a row is DistillKit's.

    Raises:
        InputError: It is an older one, of logits without their normaliser.
    """
    if row.get(_OLD) is not None:
        raise InputError(
            f"{where}: {_OLD} are DistillKit's older rows, of logits without their normaliser, "
            "from which no log-probabilities can be had. Sample again with its newer format."
        )
    return any(all(row.get(name) is not None for name in names) for names in (_PACKED, _PLAIN))


def is_packed(row: Mapping[str, Any]) -> bool:
    """Tell whether the numbers of a row are bytes."""
    return row.get(_PACKED[1]) is not None


def read_row(row: Mapping[str, Any], packing: Packing | None, where: str) -> Dumped:
    """Read a row.

    Raises:
        InputError: Its columns do not belong together, or are not packed as the first row's.
    """
    if is_packed(row) != (packing is not None):
        raise InputError(
            f"{where}: {'is' if packing is None else 'is not'} packed, unlike the first row. "
            "Import the two kinds of rows into two stores."
        )
    if packing is not None:
        return _read_packed(row, packing, where)
    ids = integers(row["input_ids"], f"{where}: input_ids")
    lists = paired(row, _PLAIN[1], _PLAIN[2], where)
    return _dumped(row, ids, lists, where)


def _read_packed(row: Mapping[str, Any], packing: Packing, where: str) -> Dumped:
    ids = integers(row["input_ids"], f"{where}: input_ids")
    packed, indices = (_bytes(row[name], f"{where}: {name}") for name in _PACKED[1:])
    if len(packed) != len(indices):
        reject_lengths(where, "rows of compressed_logprobs", len(packed), len(indices))
    try:
        top, logprobs = packing.unpack(packed, indices)
    except ValueError as e:
        raise InputError(f"{where}: {e}. Give the {CONFIG} of these files.") from None
    lists = Lists(np.full(len(top), packing.k), top.ravel(), logprobs.ravel())
    return _dumped(row, ids, lists, where, is_rounded=not packing.is_exact)


def _dumped(
    row: Mapping[str, Any], ids: I64, lists: Lists, where: str, *, is_rounded: bool = False
) -> Dumped:
    """Put lists and tokens together; nothing is said of what comes after the last token."""
    if len(lists) not in (len(ids), len(ids) - 1):
        reject_lengths(where, "lists", len(lists), len(ids))
    if len(lists) < len(ids):
        lists = Lists(np.append(lists.counts, 0), lists.ids, lists.logprobs)
    places = documents(row, len(ids), where)
    is_wanted = wanted(row, ids, where)
    return Dumped(lists, ids, is_wanted, documents=places, is_rounded=is_rounded)


def _bytes(value: Any, where: str) -> Array:
    """Read a list of as many bytes for each token: (T, bytes)."""
    flat = flattened(value, where)
    counts = flat.counts[1] if len(flat.counts) == 2 else np.zeros(0, np.int64)
    numbers = flat.numbers(np.int64) if len(flat.values) else np.zeros(0, np.int64)
    is_byte = not len(numbers) or 0 <= numbers.min() <= numbers.max() < 256
    if not is_byte or len(np.unique(counts)) > 1:
        raise InputError(f"{where}: expected as many bytes for every token. Fix or drop the row.")
    return np.asarray(numbers, np.uint8).reshape(len(counts), -1)


def _floats(data: Array, dtype: str) -> F32 | F64:
    """Read the bytes of (T, n) numbers."""
    whole = np.ascontiguousarray(data)
    if dtype == "bfloat16":  # the upper half of a float32
        upper: F32 = (whole.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return upper
    found: F32 | F64 = whole.view(np.dtype(dtype).newbyteorder("<"))
    return found


def _integers(data: Array, bits: int, count: int) -> I64:
    """Read (T, count) numbers of some bits each, the highest bit first."""
    all_bits = np.unpackbits(data, axis=1, count=bits * count)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    found: I64 = all_bits.reshape(len(data), count, bits).astype(np.int64) @ weights
    return found


def _dtype(name: Any) -> str:
    if name not in _BITS:
        raise ValueError(f"the type {name!r}")
    return str(name)


def _term(term: Any) -> int | str:
    if term in ("sqrt", "exp"):
        return str(term)
    if type(term) is int and 0 <= term <= _MOST_DEGREE:
        return term
    raise ValueError(f"the term {term!r}")
