"""A teacher from `transformers`: what it is, first without its weights, then with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from logitstore.errors import InputError
from logitstore.fingerprint import fingerprint_commit, fingerprint_folder
from logitstore.loading import saved_files, why_not_loaded
from logitstore.tokens import ByteTokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNLIMITED_TOKENS = 1_000_000_000  # tokenizers without a limit report a number beyond this


@dataclass(frozen=True)
class Teacher:
    """A teacher known by everything but its weights.

    Attributes:
        name: Hub id or folder, as given.
        revision: Of the hub model, as given.
        config: The transformers configuration.
        tokenizer: With byte positions.
        transformers_tokenizer: The same as transformers has it, with its chat template.
        tokenizer_files: What `save_pretrained` writes of it, by name.
        tokenizer_limit: Tokens the tokenizer says the model reads, if it says.
        fingerprint: What the weights are.
        dtype: The precision it runs in, by name.
        trust_remote_code: Whether the user allowed the model's own code.
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

    @property
    def vocab_size(self) -> int:
        """Width of its logits."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def architecture(self) -> str:
        return str((self.config.architectures or [type(self.config).__name__])[0])

    @property
    def context_length(self) -> int | None:
        """Tokens it can read at once, if it says."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(positions) if positions else None

    def load(self, device: torch.device) -> Any:
        """The model, in eval mode, on a device.

        Raises:
            InputError: Its weights cannot be read, or some are missing.
        """
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.name,
                revision=self.revision,
                dtype=_DTYPES[self.dtype],
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
            )
        except Exception as e:  # a broken file gives any class
            raise InputError(
                f"{self.name}: AutoModelForCausalLM cannot load the teacher "
                f"({why_not_loaded(self.name, e)}). Give a causal model, or download this one "
                "again."
            ) from e
        model, found = loaded
        if missing := sorted(found["missing_keys"]):  # filled with random numbers by transformers
            raise InputError(
                f"{self.name}: {len(missing)} of the teacher's weights are missing, first "
                f"{missing[0]}. Download the model again, or save all of it with "
                "model.save_pretrained(FOLDER)."
            )
        return model.to(device).eval()


def find_teacher(
    name: str, *, revision: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> Teacher:
    """Everything about a teacher that needs no weights in memory.

    Raises:
        InputError: There is no such model, or it cannot be used.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as e:  # a broken file gives any class, a bare Exception too
        raise InputError(
            f"{name}: cannot load a teacher from here ({why_not_loaded(name, e)}). Give a folder "
            "with config.json, weights and a fast tokenizer, or a hub id that this machine can "
            "reach or has cached."
        ) from e
    limit = int(min(tokenizer.model_max_length, _UNLIMITED_TOKENS))
    return Teacher(
        name=name,
        revision=revision,
        config=config,
        tokenizer=ByteTokenizer(tokenizer),
        transformers_tokenizer=tokenizer,
        tokenizer_files=saved_files(tokenizer),
        tokenizer_limit=limit if limit < _UNLIMITED_TOKENS else None,
        fingerprint=_fingerprint(name, config),
        dtype=_resolve_dtype(dtype, config),
        trust_remote_code=trust_remote_code,
    )


def chosen_device(name: str) -> torch.device:
    """The device that the user names.

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
    """The accelerator if there is one; of several on this machine, one for each process."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        count = torch.accelerator.device_count()
        if found is not None:
            return found if count <= 1 else torch.device(found.type, local_rank % count)
    return torch.device("cpu")


def _fingerprint(name: str, config: Any) -> str:
    if Path(name).is_dir():
        try:
            return fingerprint_folder(Path(name))
        except OSError as e:
            raise InputError(
                f"{e.filename or name}: cannot be read ({e.strerror}). Mend its permissions, or "
                "copy the model to where you may read it."
            ) from e
    commit = getattr(config, "_commit_hash", None)
    if not commit:
        raise InputError(
            f"{name}: the hub did not say which commit this is, so the store could not say which "
            "teacher made it. Download the model to a folder and give that."
        )
    return fingerprint_commit(str(commit))


def _resolve_dtype(dtype: str, config: Any) -> str:
    if dtype == "auto":
        own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        return own if own in _DTYPES else "float32"
    if dtype not in _DTYPES:
        raise InputError(f"--dtype is {dtype}, expected auto, {', '.join(_DTYPES)}.")
    return dtype


def context_limit(teacher: Teacher, max_length: int | None) -> int | None:
    """Tokens of a sequence at most: what was asked for, or what the teacher can read.

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
            f"--max-length is {max_length}, but {teacher.name} reads {context} tokens at most. "
            f"Use --max-length {context} or less."
        )
    return max_length
