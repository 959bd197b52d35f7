"""Encode and open the file with the teacher's output embedding: an archive of the shards' profile.

    lm_head.zarr.zip
      zarr.json              group; its attributes say whose it is, and what follows the product
      weight/…               [V, D] u16 (bf16), f16 or f32, as the teacher had it
      bias/…                 [V] f32, of a teacher whose output embedding adds one

With it the logits that a hidden state h (behind the final norm) stands for are known in full:

    logits = cap tanh(s / cap),   s = (W h + bias) factor / divisor

each step only where the teacher has it. Shape legend: V = vocabulary, D = width of a state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitstore.format.canonical_json import canonical_json, parse_json
from logitstore.format.limits import total
from logitstore.format.numpy_types import F32, Array
from logitstore.format.shard_group import GROUP_MEMBER, MAX_GROUP_BYTES, Members, group_of
from logitstore.format.spec import FORMAT_VERSION, StoreSpec
from logitstore.format.zarr_arrays import ArrayReader, ArraySpec, array_metadata, encode_array
from logitstore.format.zip_archive import Archive
from logitstore.storage.files import Buffer

#: The type in which weights of each dtype are stored.
WEIGHT_TYPES = {"bf16": "<u2", "f16": "<f2", "f32": "<f4"}
#: The most bytes of weights: an archive has less than 4 GiB, with its directory and checksums.
MAX_WEIGHT_BYTES = 4 * 1024**3 - 64 * 1024**2
_STEPS = ("factor", "divisor", "cap")
_BIAS = "bias"
_CHUNK_BYTES, _CHUNK_NUMBERS = 1024 * 1024, 65_536
_BF16_EXPONENT = 0x7F80  # all ones: infinite, or no number


@dataclass(frozen=True)
class LmHead:
    """The teacher's output embedding, and the steps from its product to logits.

    Attributes:
        codes: (V, D) its weights: float32, float16, or uint16 whose bits are those of bfloat16.
        bias: (V,) float32 that it adds; None: nothing.
        factor: Multiplies; None: nothing does.
        divisor: Divides likewise.
        cap: Bounds: tanh(x / cap) cap.
    """

    codes: Array
    bias: F32 | None = None
    factor: float | None = None
    divisor: float | None = None
    cap: float | None = None

    @property
    def dtype(self) -> str:
        """`bf16`, `f16` or `f32`."""
        return next(name for name, kind in WEIGHT_TYPES.items() if self.codes.dtype == kind)

    def weight(self, start: int = 0, stop: int | None = None) -> F32:
        """Decode some rows as (…, D) float32; without arguments all, which may be gigabytes."""
        rows = self.codes[start:stop]
        if self.dtype != "bf16":
            return rows.astype(np.float32)
        return (rows.astype(np.uint32) << 16).view(np.float32)

    @property
    def _arrays(self) -> dict[str, Array]:
        return {"weight": self.codes} | ({} if self.bias is None else {_BIAS: self.bias})

    @property
    def _about(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in _STEPS}
        return {
            "dtype": self.dtype,
            "bias": self.bias is not None,
            "steps": {name: float(value) for name, value in given.items() if value is not None},
        }


def weight_bytes(rows: int, width: int, dtype: str) -> int:
    """Count the bytes of weights before compression, of a dtype of torch's or of this file's."""
    item = 4 if dtype.endswith("32") else 2
    return rows * width * item


def build_lm_head(spec: StoreSpec, head: LmHead) -> dict[str, Buffer]:
    """Build the members of the file, ready for `zip_archive.pack`.

    Raises:
        ValueError: It is not that of the store's teacher, or has a number that is not finite.
    """
    _check_values(spec, head)
    members: dict[str, Buffer] = {GROUP_MEMBER: _group(spec, head._about)}
    arrays = head._arrays
    for each in _specs(spec, head.dtype, has_bias=_BIAS in arrays):
        members[each.metadata_member] = array_metadata(each)
        members[each.data_member] = _encoded(each, arrays[each.name])
    return members


def read_lm_head(archive: Archive, spec: StoreSpec) -> LmHead:
    """Read the file whole, every byte checked.

    Raises:
        ValueError: It is another store's, or not what was written.
        CorruptStoreError: Its bytes are damaged.
    """
    archive.check_digest()
    about = _read_group(archive, spec)
    specs = _specs(spec, about["dtype"], has_bias=about["bias"])
    expected = {GROUP_MEMBER, *(s.metadata_member for s in specs), *(s.data_member for s in specs)}
    if set(archive.names) != expected:
        odd = sorted(set(archive.names) ^ expected)
        raise ValueError(f"its members are not those of an output embedding: {', '.join(odd[:5])}")
    arrays = {}
    for each in specs:
        text, wanted = archive[each.metadata_member], array_metadata(each)
        if len(text) != len(wanted) or bytes(text) != wanted:
            raise ValueError(f"{each.metadata_member} does not describe the array it must")
        reader, length = ArrayReader(each, archive[each.data_member]), each.shape[0]
        total([reader.cost(0, length)]).check()
        arrays[each.name] = reader[0:length]
    head = LmHead(arrays["weight"], arrays.get(_BIAS), **about["steps"])
    _check_values(spec, head)
    return head


def _group(spec: StoreSpec, about: Mapping[str, Any]) -> bytes:
    whose = {"version": FORMAT_VERSION, "content_sha256": spec.digest}
    return canonical_json(group_of(whose | {"lm_head": dict(about)}))


def _read_group(archive: Members, spec: StoreSpec) -> dict[str, Any]:
    member = archive.members.get(GROUP_MEMBER)
    if member is None or member.size > MAX_GROUP_BYTES:
        raise ValueError(f"{GROUP_MEMBER} is not that of an output embedding")
    raw = archive.check_member(GROUP_MEMBER)
    try:
        about = dict(parse_json(bytes(raw))["attributes"]["logitstore"]["lm_head"])
        steps = dict(about["steps"])
        is_known = about["dtype"] in WEIGHT_TYPES and type(about["bias"]) is bool
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{GROUP_MEMBER} is not that of an output embedding") from None
    if not is_known or set(about) != {"dtype", "bias", "steps"} or set(steps) - set(_STEPS):
        raise ValueError("it describes an output embedding that cannot be")
    if not all(type(value) is float and value != 0 for value in steps.values()):
        raise ValueError("it has a step that cannot be")
    if raw != _group(spec, about):
        raise ValueError("it is of another store")
    return about


def _specs(spec: StoreSpec, dtype: str, *, has_bias: bool) -> list[ArraySpec]:
    assert spec.hidden is not None
    rows, width = spec.vocab_size, spec.hidden.width
    kind = np.dtype(WEIGHT_TYPES[dtype])
    if rows * width * kind.itemsize > MAX_WEIGHT_BYTES:
        raise ValueError("its weights would not fit into the file")
    of_chunk = max(1, _CHUNK_BYTES // (width * kind.itemsize))
    specs = [ArraySpec("weight", kind, (rows, width), of_chunk)]
    bias = ArraySpec(_BIAS, np.dtype("<f4"), (rows,), _CHUNK_NUMBERS)
    return [*specs, bias] if has_bias else specs


def _check_values(spec: StoreSpec, head: LmHead) -> None:
    assert spec.hidden is not None
    shape = (spec.vocab_size, spec.hidden.width)
    if head.codes.shape != shape:
        raise ValueError(f"its weights are {head.codes.shape}, expected {shape}")
    is_finite = head.bias is None or bool(np.isfinite(head.bias).all())
    for start in range(0, len(head.codes), 4096):
        rows = head.codes[start : start + 4096]
        if head.dtype == "bf16":
            is_finite &= not bool(((rows & _BF16_EXPONENT) == _BF16_EXPONENT).any())
        else:
            is_finite &= bool(np.isfinite(rows).all())
    if not is_finite:
        raise ValueError("it has a number that is not finite")


def _encoded(spec: ArraySpec, values: Array) -> bytes:
    """Encode an array; uncompressed where it would look like a bomb to its reader."""
    coded = encode_array(spec, values)
    try:
        ArrayReader(spec, memoryview(coded)).cost(0, len(values)).check()
    except ValueError:
        return encode_array(spec, values, copy=True)
    return coded
