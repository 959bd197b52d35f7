"""Find a teacher of `transformers`: configuration, tokenizer, device; without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from logitstore.capture.teacher.gguf_file import QUANTIZATION, check_gguf, tokenizer_source
from logitstore.capture.teacher.quantization import (
    DTYPES,
    checkpoint_quantization,
    device_map_of,
    quantization_config,
    transformers_config,
)
from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.models.context_length import context_length
from logitstore.models.fingerprint import fingerprint_commit, fingerprint_folder, has_weights
from logitstore.models.listed_ends import listed_ends
from logitstore.models.loading import load_or_explain, load_tokenizer
from logitstore.text.stored import files_to_store
from logitstore.text.tokenizer import ByteTokenizer

_GIVE_A_TEACHER = (
    "Give a folder with config.json, weights and a fast tokenizer, or a hub id that this machine "
    "can reach or has cached."
)
_UNLIMITED_TOKENS = 1_000_000_000  # tokenizers without a limit report a number beyond this


@dataclass(frozen=True)
class Teacher:
    """Describes a teacher by everything but its weights.

    Attributes:
        name: Hub id or folder, as given.
        revision: Revision of the hub model, as given.
        config: The configuration of `transformers`.
        tokenizer: The tokenizer with byte positions; what the model lists as ends are ends.
        transformers_tokenizer: The same tokenizer of `transformers`, with its chat template.
        tokenizer_files: Name and content of the files that its `save_pretrained` writes.
        tokenizer_limit: Tokens that the model reads according to the tokenizer, if it says.
        fingerprint: Identifies the weights.
        dtype: The precision it runs in, by name.
        trust_remote_code: Whether the user allowed the model's own code.
        quantization: The `quantization_config` to load it with; None for the checkpoint's own.
        attn_implementation: Name of the attention in `transformers`; None: its choice.
        device_map: How the model is spread over devices; None: it is on one.
        gguf_file: The file that holds configuration and weights; None: there are several.
    """

    name: str
    revision: str | None
    config: Any
    tokenizer: ByteTokenizer
    transformers_tokenizer: Any
    tokenizer_files: dict[str, bytes]
    tokenizer_limit: int | None
    fingerprint: str
    dtype: str
    trust_remote_code: bool
    quantization: dict[str, Any] | None = None
    attn_implementation: str | None = None
    device_map: str | dict[str, Any] | None = None
    gguf_file: str | None = None

    @property
    def vocab_size(self) -> int:
        """Return the width of its logits."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def hidden_width(self) -> int:
        """Return the numbers of a hidden state that its output head reads, as its family has it."""
        config = self.config.get_text_config()
        return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)

    @property
    def embedding_width(self) -> int:
        """Return the numbers of a token's row in its input embedding, as its family has it."""
        config = self.config.get_text_config()
        own = getattr(config, "embedding_size", None)
        return int(own) if own else self.hidden_width

    @property
    def architecture(self) -> str:
        return str((self.config.architectures or [type(self.config).__name__])[0])

    @property
    def context_length(self) -> int | None:
        """Return the tokens that it can read at once, if its configuration says."""
        return context_length(self.config)


def find_teacher(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quantization: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    gguf_file: str | None = None,
    is_elsewhere: bool = False,
) -> Teacher:
    """Find out everything about a teacher that needs no weights in memory.

    One that `is_elsewhere` needs no weights here at all: a folder without is told by its name.

    Raises:
        InputError: There is no such model, or it cannot be used.
    """
    check_gguf(name, gguf_file)
    in_file = {} if gguf_file is None else {"gguf_file": gguf_file}
    config: Any = load_or_explain(
        name,
        lambda: AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, **in_file
        ),
        f"{name}: cannot load a teacher from here",
        _GIVE_A_TEACHER,
    )
    tokenizer = load_tokenizer(
        name,
        revision=revision,
        trust_remote_code=trust_remote_code,
        gguf_file=tokenizer_source(name, gguf_file),
        advice=_GIVE_A_TEACHER,
    )
    limit = int(min(tokenizer.model_max_length, _UNLIMITED_TOKENS))
    precision = _resolve_dtype(dtype, config)
    return Teacher(
        name=name,
        revision=revision,
        config=config,
        tokenizer=ByteTokenizer(tokenizer).with_ends(listed_ends(name, config, revision)),
        transformers_tokenizer=tokenizer,
        tokenizer_files=files_to_store(tokenizer),
        tokenizer_limit=limit if limit < _UNLIMITED_TOKENS else None,
        fingerprint=fingerprint_of(name, config, gguf_file, is_elsewhere=is_elsewhere),
        dtype="unknown" if is_elsewhere else precision,
        trust_remote_code=trust_remote_code,
        quantization=(
            QUANTIZATION if gguf_file else _quantization(name, quantization, precision, config)
        ),
        attn_implementation=attn_implementation,
        device_map=None if device_map is None else device_map_of(device_map),
        gguf_file=gguf_file,
    )


def chosen_device(name: str) -> torch.device:
    """Return the device that the user names.

    Raises:
        InputError: This machine has none of that name.
    """
    kind, count = "cpu", 0
    if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()):
        kind, count = found.type, torch.accelerator.device_count()
    known = ["cpu", *(f"{kind}:{i}" for i in range(count))]
    if name not in {kind, *known}:
        raise InputError(
            f"--device {name}: this machine has no such device; found {', '.join(known)}. Name one "
            "of these, or leave --device out to take the accelerator if there is one."
        )
    return torch.device(name)


def default_device(local_rank: int = 0) -> torch.device:
    """Choose the accelerator if there is one; of several on a machine, one for each process."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        count = torch.accelerator.device_count()
        if found is not None:
            return found if count <= 1 else torch.device(found.type, local_rank % count)
    return torch.device("cpu")


def fingerprint_of(
    name: str, config: Any, gguf_file: str | None = None, *, is_elsewhere: bool = False
) -> str:
    """Identify the weights of a hub id or a folder; of a teacher elsewhere, at least its name.

    Raises:
        InputError: They cannot be read, or nothing identifies them.
    """
    if Path(name).is_dir():
        if is_elsewhere and not has_weights(Path(name)):
            return f"named:{Path(name).resolve().name}"
        try:
            return fingerprint_folder(Path(name), gguf_file)
        except OSError as e:
            raise InputError(
                f"{e.filename or name}: cannot be read ({e.strerror}). Fix its permissions, or "
                "copy the model to where you may read it."
            ) from e
    commit = getattr(config, "_commit_hash", None)
    if not commit:
        raise InputError(
            f"{name}: the hub did not say which commit this is, so the store could not say which "
            "teacher made it. Download the model to a folder and give that."
        )
    return fingerprint_commit(str(commit), gguf_file)


def _resolve_dtype(dtype: str, config: Any) -> str:
    if dtype == "auto":
        own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        return own if own in DTYPES else "float32"
    return dtype


def _quantization(
    name: str, asked: str | Mapping[str, Any] | None, dtype: str, config: Any
) -> dict[str, Any] | None:
    if asked is None:
        return None
    if (method := checkpoint_quantization(config)) is not None:
        raise InputError(
            f"{name}: the teacher is quantised already ({method}), so --quantization would have no "
            "effect. Leave it out: what the checkpoint says is honoured."
        )
    found = quantization_config(asked, dtype)
    transformers_config(found)
    return found


def context_limit(teacher: Teacher, max_length: int | None) -> int | None:
    """Return the most tokens of a sequence: as asked for, else as the teacher can read.

    Raises:
        InputError: More was asked for than the teacher can read, or less than two.
    """
    context = teacher.context_length
    if max_length is None:
        known = [n for n in (context, teacher.tokenizer_limit) if n is not None]
        return min(known, default=None)
    if max_length < 2:
        raise InputError(
            f"--max-length is {max_length}; a record needs a token before it. Use --max-length 2 "
            "or more."
        )
    if context is not None and max_length > context:
        raise InputError(
            f"--max-length is {max_length}, but {teacher.name} reads {counted(context, 'token')} "
            "at most. "
            f"Use --max-length {context} or less."
        )
    return max_length
