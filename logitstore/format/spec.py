"""Write and read `store.json`: what a store holds, and how it was made.

Two parts have a digest. *Content* decides what a record means: the teacher, its tokenizer, how rows
were rendered, what was kept, how it is coded. *Plan* decides which rows are in which shard. A third
part, *provenance*, is for people: names and paths, the software, the token budget. It is in no
digest, so a store can be resumed from a moved folder.

    {"format": "logitstore", "version": 1,
     "content": {…}, "content_sha256": …, "plan": {…}, "plan_sha256": …, "provenance": {…}}
"""

import hashlib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from logitstore.errors import (
    CorruptStoreError,
    FormatError,
    InputError,
    NotAStoreError,
    StorageError,
)
from logitstore.format.canonical_json import canonical_json, parse_json
from logitstore.format.hidden import HiddenSpec, is_hidden
from logitstore.format.plan import Plan as Plan  # one of the two parts of the description
from logitstore.storage.files import MAX_SPEC_BYTES
from logitstore.storage.paths import StorePath, store_path

FORMAT_NAME = "logitstore"
#: Of a shard, of the seal, and of a `store.json` that holds the whole plan.
FORMAT_VERSION = 1
#: Of `store.json`: 2 has the boundaries of its plan in a file beside it (`plan.py`).
FORMAT_VERSIONS = (1, 2)
SPEC_FILE = "store.json"
DONE_FILE = "DONE"
INDEX_FILE = "index.parquet"
SHARDS_FOLDER = "shards"
TOKENIZER_FOLDER = "tokenizer"
#: The records at the boundaries of students' tokens: a store for each student, in a store.
BOUNDARIES_FOLDER = "boundaries"
#: The hidden states of each shard, in files that its readers alone open.
HIDDEN_FOLDER = "hidden"
#: The teacher's output embedding, of a store of hidden states that has it.
LM_HEAD_FILE = "lm_head.zarr.zip"
#: In such a store: the student's tokenizer.
STUDENT_FOLDER = "student"
CODECS = ("portable", "compact")

#: Fields that the source of an import may lack; section 5 of FORMAT.md says what is stored instead.
CAN_BE_MISSING = ("entropy", "tail_logmass", "token_logprob")

_MAX_U16, _MAX_U32 = 0xFFFF, 0xFFFF_FFFF
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_TEMPERATURES = 64
_MAX_CHUNK_RECORDS, _MAX_CHUNK_ENTRIES = 65_536, 1_048_576


@dataclass(frozen=True)
class StoreSpec:
    """The content part of a store.

    Attributes:
        teacher: ``fingerprint`` of the weights, ``architecture``, ``dtype``, ``vocab_size`` (the
            width of its logits); ``quantization``, if it was quantised when it was loaded;
            ``engine``, if another than transformers in this process ran it; ``experts``, which of
            a mixture's it used, if not those that its routers choose.
        tokenizer: ``fingerprint``, ``size`` (ids are below it), ``eos_ids`` and ``files``, the
            SHA-256 of each file under ``tokenizer/``.
        rendering: ``kind`` of the rows, ``max_length`` in tokens, ``add_eos``.
        capture: ``top_k`` (0: no entries), ``max_tail`` (None: every record keeps top_k entries),
            ``ids``, ``temperatures``, ``logit_std``, ``draws``, and the ``seed`` of draws that were
            made with one; ``hidden``, which hidden states lie beside the records; and of an import
            ``missing``, the fields that its source lacks.
        codec: ``name`` (``portable`` or ``compact``), how many records and entries an inner chunk
            holds, and the ``layout`` of draws (``distances.py``), 1 where it is not named.
    """

    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    rendering: dict[str, Any]
    capture: dict[str, Any]
    codec: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "portable",
            "layout": 2,
            "records_per_chunk": 2048,
            "entries_per_chunk": 32768,
        }
    )

    @property
    def top_k(self) -> int:
        return int(self.capture["top_k"])

    @property
    def max_tail(self) -> float | None:
        value = self.capture["max_tail"]
        return None if value is None else float(value)

    @property
    def has_ids(self) -> bool:
        return bool(self.capture["ids"])

    @property
    def temperatures(self) -> tuple[float, ...]:
        return tuple(float(t) for t in self.capture["temperatures"])

    @property
    def has_logit_std(self) -> bool:
        return bool(self.capture["logit_std"])

    @property
    def draws(self) -> int:
        return int(self.capture["draws"])

    @property
    def seed(self) -> int | None:
        """The seed of the draws; None where none was given."""
        value = self.capture.get("seed")
        return None if value is None else int(value)

    @property
    def missing(self) -> tuple[str, ...]:
        """Fields that the source of an import lacks, of those in `CAN_BE_MISSING`."""
        return tuple(self.capture.get("missing", ()))

    @property
    def hidden(self) -> HiddenSpec | None:
        """Which hidden states lie beside the records; None: none do."""
        value = self.capture.get("hidden")
        return None if value is None else HiddenSpec.of(value)

    @property
    def layout(self) -> int:
        """The layout of draws, 1 or 2."""
        return int(self.codec.get("layout", 1))

    @property
    def vocab_size(self) -> int:
        return int(self.teacher["vocab_size"])

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return tuple(int(i) for i in self.tokenizer["eos_ids"])

    @property
    def tokenizer_fingerprint(self) -> str:
        return str(self.tokenizer["fingerprint"])

    @property
    def boundaries_of(self) -> dict[str, Any] | None:
        """What says whose boundaries the records are at; None: the teacher's own tokens."""
        value = self.rendering.get("boundaries_of")
        return value if isinstance(value, dict) else None

    def at_boundaries(self, student: dict[str, Any] | None) -> "StoreSpec":
        """Describe the same records, but at the boundaries of a student; None: the teacher's."""
        rest = {k: v for k, v in self.rendering.items() if k != "boundaries_of"}
        said = {} if student is None else {"boundaries_of": student}
        return replace(self, rendering=rest | said)

    @property
    def has_head(self) -> bool:
        """Whether the teacher's output embedding lies beside the shards."""
        return self.hidden is not None and self.hidden.has_head

    def without_hidden(self) -> "StoreSpec":
        """Describe the same records without the hidden states beside them."""
        kept = {name: value for name, value in self.capture.items() if name != "hidden"}
        return replace(self, capture=kept)

    @property
    def digest(self) -> str:
        """SHA-256 of the content as canonical JSON, in hex."""
        return _sha256(vars(self))

    def check(self) -> None:
        """Check the type and range of every field: readers compute sizes and paths from them.

        Raises:
            ValueError: A field is missing, unknown, or cannot be.
        """
        for part, wanted in _CONTENT.items():
            value = getattr(self, part)
            optional = _OPTIONAL.get(part, {})
            if not isinstance(value, dict) or set(value) - set(optional) != set(wanted):
                raise ValueError(f"{part} has other fields than {', '.join(wanted)}")
            for name, is_good in (wanted | optional).items():
                if name in value and not is_good(value[name]):
                    raise ValueError(f"{part}.{name} cannot be {str(value[name])[:60]!r}")
        size = self.tokenizer["size"]
        if any(i >= size for i in self.tokenizer["eos_ids"]):
            raise ValueError(f"tokenizer.eos_ids are not all below tokenizer.size, {size}")
        if not isinstance(self.rendering, dict):
            raise ValueError("rendering is not an object")  # noqa: TRY004
        _check_student(self.rendering.get("boundaries_of"))

    def differences(self, other: "StoreSpec") -> list[tuple[str, Any, Any]]:
        """List (setting, value here, value there) for every setting that is not the same."""
        here, there = vars(self), vars(other)
        return [
            (f"{part}.{key}", here[part].get(key), there[part].get(key))
            for part in here
            for key in sorted(here[part].keys() | there[part].keys())
            if here[part].get(key) != there[part].get(key)
        ]


@dataclass(frozen=True)
class StoreHeader:
    """The whole of `store.json`: content, plan and provenance."""

    spec: StoreSpec
    plan: Plan
    provenance: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Encode the header as the bytes of `store.json`."""
        return canonical_json(
            {
                "format": FORMAT_NAME,
                "version": self.plan.version,
                "content": vars(self.spec),
                "content_sha256": self.spec.digest,
                "plan": self.plan.described(),
                "plan_sha256": self.plan.digest,
                "provenance": self.provenance,
            }
        )

    @classmethod
    def read(cls, store: str | os.PathLike[str] | StorePath) -> Self:
        """Read and check `store.json`.

        Raises:
            NotAStoreError: There is none, or it is not that of a store.
            FormatError: It has a version that this reader does not know.
            CorruptStoreError: It is not what was written.
        """
        store = store_path(store)
        path = store / SPEC_FILE
        raw, body = _read_json(path)
        version = body.get("version")
        if version not in FORMAT_VERSIONS:
            raise FormatError(
                f"{store}: the store is of format version {version}, this reader knows versions 1 "
                f"to {FORMAT_VERSIONS[-1]}. Upgrade with `pip install --upgrade logitstore`."
            )
        try:
            spec = StoreSpec(**_only(StoreSpec, body["content"]))
            plan = Plan.read(store, int(version), body["plan"])
            digests = (body["content_sha256"], body["plan_sha256"])
            header = cls(spec, plan, dict(body["provenance"]))
            spec.check()
            expected = header.to_bytes()
        except (KeyError, TypeError, ValueError) as e:
            why = f"its fields are not those of format version {version} ({e!r})"
            raise _damaged(path, why) from None
        if digests != (spec.digest, plan.digest):
            raise _damaged(path, "content or plan does not match its digest")
        if raw != expected:  # another spelling, a field twice, or fields that nobody reads
            raise _damaged(path, "it is not the canonical JSON that was written")
        return header


def _read_json(path: StorePath) -> tuple[bytes, dict[str, Any]]:
    not_a_store = (
        f"{path.parent}: no {SPEC_FILE} of a logit store here, so this is not a store. Make one "
        "with `logitstore capture TEACHER DATASET --out STORE`, or check the path."
    )
    try:
        raw = path.read_limited(MAX_SPEC_BYTES)
        body = parse_json(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStoreError(not_a_store) from None
    except (StorageError, InputError):  # from a bucket: the message already says what to do
        raise
    except OSError as e:
        raise StorageError(f"{path}: cannot be read ({e.strerror}). Fix that first.") from e
    except ValueError as e:
        raise _damaged(path, f"it is not the JSON of a store ({e})") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT_NAME:
        raise NotAStoreError(not_a_store)
    return raw, body


def _only(cls: type, value: Any) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    if not isinstance(value, dict) or set(value) != names:
        raise ValueError(f"expected {', '.join(sorted(names))}")
    return value


def _damaged(path: StorePath, why: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"{path}: {why}. Restore the file from a copy; the shards beside it are still good.",
        path=path,
    )


def _sha256(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_digest(value: Any) -> bool:
    """Tell whether a value is a SHA-256 as it is written here: 64 hex digits in lower case."""
    return _is_text(value) and _DIGEST.fullmatch(value) is not None


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any, most: int, least: int = 0) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _upto(most: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: _is_count(value, most, least)


def _is_temperatures(value: Any) -> bool:
    fits = isinstance(value, list) and len(value) <= _MAX_TEMPERATURES
    return fits and all(map(_is_number, value))


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(_is_count(i, _MAX_U32) for i in value)


def is_plain_name(name: str) -> bool:
    """Tell whether a name stays in its folder on every system."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0")


def _is_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_plain_name(name) and is_digest(digest) for name, digest in value.items()
    )


def _check_student(student: Any) -> None:
    """Check what the rendering of a store at a student's boundaries says of the student.

    Raises:
        ValueError: It lacks something that is needed to read it.
    """
    if student is None:
        return
    if not isinstance(student, dict) or not _is_text(student.get("fingerprint")):
        raise ValueError("rendering.boundaries_of has no fingerprint")
    if not _is_files(student.get("files")):
        raise ValueError("rendering.boundaries_of.files cannot be what it is")


def _is_missing(value: Any) -> bool:
    """Tell whether this is the one spelling of a set of missing fields: sorted, never empty."""
    is_list = isinstance(value, list) and bool(value) and all(map(_is_text, value))
    return is_list and value == sorted(set(value) & set(CAN_BE_MISSING))


def _is_experts(value: Any) -> bool:
    """Tell whether this says which experts a teacher used: all, or N-1, drawn at some tokens."""
    if not isinstance(value, dict) or value.get("active") not in ("all", "N-1"):
        return False
    if set(value) == {"active"}:
        return True
    return (
        set(value) == {"active", "sample", "seed"}
        and value["active"] == "N-1"
        and _is_number(value["sample"])
        and value["sample"] <= 1
        and _upto(_MAX_U32)(value["seed"])
    )


_CONTENT: dict[str, dict[str, Callable[[Any], bool]]] = {
    "teacher": {
        "fingerprint": _is_text,
        "architecture": _is_text,
        "dtype": _is_text,
        "vocab_size": _upto(_MAX_U32, 1),
    },
    "tokenizer": {
        "fingerprint": _is_text,
        "size": _upto(_MAX_U32, 1),
        "eos_ids": _is_ids,
        "files": _is_files,
    },
    "capture": {
        "top_k": _upto(_MAX_U16),
        "max_tail": lambda value: value is None or _is_number(value),
        "ids": _is_flag,
        "temperatures": _is_temperatures,
        "logit_std": _is_flag,
        "draws": _upto(_MAX_U16),
    },
    "codec": {
        "name": lambda value: value in CODECS,
        "records_per_chunk": _upto(_MAX_CHUNK_RECORDS, 1),
        "entries_per_chunk": _upto(_MAX_CHUNK_ENTRIES, 1),
    },
}

#: Optional fields of each part.
_OPTIONAL: dict[str, dict[str, Callable[[Any], bool]]] = {
    "teacher": {
        "quantization": lambda value: isinstance(value, dict),
        "engine": _is_text,
        "experts": _is_experts,
    },
    "capture": {"missing": _is_missing, "seed": _upto(_MAX_U32), "hidden": is_hidden},
    "codec": {"layout": _upto(2, 2)},  # the first has no number
}


def boundaries_name(fingerprint: str) -> str:
    """Folder name of a student's boundaries, below ``boundaries/``."""
    return fingerprint[:16]


def shard_name(index: int) -> str:
    """File name of a shard, below ``shards/``."""
    return f"{index:05d}.zarr.zip"


def sidecar_name(index: int, digest: str) -> str:
    """File name of a shard's hidden states, below ``hidden/``: by their own digest."""
    return f"{index:05d}-{digest[:16]}.zarr.zip"
