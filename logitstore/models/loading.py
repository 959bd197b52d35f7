"""Load and save models and tokenizers, and explain why one does not load."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from logitstore.console.counts import counted
from logitstore.errors import InputError, in_a_line
from logitstore.format.canonical_json import canonical_json
from logitstore.storage.files import MAX_TOKENIZER_BYTES, read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The cache has one of these for whatever was loaded before: a model, a tokenizer or adapters.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt", "tokenizer_config.json"),
)
_DESCRIBING = ("config.json", "tokenizer_config.json", "adapter_config.json")
#: The next step of a message about a model or a tokenizer that does not load.
GIVE_A_MODEL = (
    "Give the folder of a language model with its tokenizer, or a hub id that this machine can "
    "reach or has cached."
)
#: Ids that a vocabulary may leave out: so many, and so many more for each token.
_FREE_IDS, _IDS_A_TOKEN = 1_000_000, 4
_Loaded = TypeVar("_Loaded")


def load_tokenizer(
    name: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    named_by: str = "",
    advice: str = GIVE_A_MODEL,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or a hub id.

    Args:
        name: Hub id or folder, as the user gave it.
        revision: Branch, tag or commit of a hub id.
        local_files_only: Whether the hub is never asked.
        trust_remote_code: Whether code that comes with the tokenizer may run.
        gguf_file: The file there that holds it; None: it has files of its own.
        named_by: The flag that names it, for the message.
        advice: The last sentence of the message: what to give instead.

    Raises:
        InputError: It cannot be loaded; says why.
    """

    def load() -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        check_vocabulary(Path(name))
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(name),
            revision=revision,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
            **({} if gguf_file is None else {"gguf_file": gguf_file}),
        )
        return loaded

    where = f"{named_by} {name}".lstrip()
    if gguf_file is None and _has_no_tokenizer(Path(name)):
        raise InputError(f"{where}: no tokenizer is in this folder (no tokenizer.json). {advice}")
    return load_or_explain(str(name), load, f"{where}: AutoTokenizer cannot load it", advice)


def _has_no_tokenizer(folder: Path) -> bool:
    """Tell whether a folder of a model has none of the files that a tokenizer may come in."""
    is_model = (folder / "config.json").is_file()
    return is_model and not any((folder / file).exists() for file in _TOKENIZER_FILES)


def check_vocabulary(folder: Path) -> None:
    """Reject a tokenizer with ids far above the number of its tokens, before it is loaded.

    A vocabulary takes about 30 bytes for each id up to the largest, so a file of 10 KB with one
    large id could ask for all memory. That of a name that is no folder is not looked at.

    Raises:
        ValueError: An id is far above the number of tokens, or a file is no ordinary one, or larger
            than a vocabulary can be.
    """
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json"):
        try:
            data = read_file(folder / name, MAX_TOKENIZER_BYTES)
        except OSError:  # it is missing, or whoever loads it says why it cannot be read
            continue
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):  # it is damaged: the same
            continue
        ids = _ids_in(content) if isinstance(content, dict) else []
        most = _FREE_IDS + _IDS_A_TOKEN * len(ids)
        if ids and max(ids) > most:
            raise ValueError(
                f"{name} has a token with the id {max(ids):,}, but {counted(len(ids), 'token')}"
            )


def _ids_in(content: dict[str, Any]) -> list[int]:
    """List the ids of a vocabulary: of a `tokenizer.json`, or of one that is all of a file."""
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else content
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if isinstance(vocabulary, list):  # in the order of their ids
        ids = list(range(len(vocabulary)))
    if isinstance(added, list):
        ids += [token.get("id") for token in added if isinstance(token, dict)]
    return [i for i in ids if type(i) is int]


def load_or_explain(
    name: str, load: Callable[[], _Loaded], fault: str, advice: str = GIVE_A_MODEL
) -> _Loaded:
    """Call `load`, and turn whatever it raises into one error in a line.

    Args:
        name: Hub id or folder of what is loaded, as the user gave it.
        load: Calls `transformers`.
        fault: The first words of the message: what cannot be loaded, by what.
        advice: The last sentence of the message: what to give instead.

    Raises:
        InputError: It cannot be loaded, or the hub cannot be reached.
    """
    why, cause = why_unreachable(name), None
    if why is None:
        try:
            return load()
        except Exception as error:  # a broken file gives any class, a bare Exception too
            why, cause = why_not_loaded(name, error), error
    raise InputError(f"{fault} ({why}). {advice}") from cause


def why_not_loaded(name: str, error: Exception) -> str:
    """Explain in a line why something does not load; for a folder, name the file at fault.

    `transformers` takes a path that does not exist for the id of a model on the hub, and does not
    name the file where one is damaged.

    Args:
        name: Hub id or folder, as the user gave it.
        error: What `transformers` raised.
    """
    folder = Path(name)
    if folder.is_file():
        return "it is a file, not a folder"
    if not folder.is_dir():
        is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
        return "there is no such folder" if is_path else in_a_line(error)
    return _damage(folder) or in_a_line(error)


def why_unreachable(name: str) -> str | None:
    """Explain why a hub id cannot be loaded at all, without a minute of `huggingface_hub` retries.

    Returns:
        The reason; None where loading may work: a folder, something loaded before, or behind a
        proxy, which resolves names for this machine.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    host = urlsplit(constants.ENDPOINT).hostname
    if Path(name).exists() or constants.HF_HUB_OFFLINE or getproxies() or host is None:
        return None
    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in _DESCRIBING):
            return None
        socket.getaddrinfo(host, None)
    except HFValidationError:  # a path
        return None
    except OSError as error:
        return (
            f"there is no such folder here, and {host} cannot be reached: {error.strerror or error}"
        )
    return None


def _damage(folder: Path) -> str | None:
    """Find the first damaged file of a model folder, and say what is wrong with it."""
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(read_file(path, MAX_TOKENIZER_BYTES))
            elif path.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(path, "pt"):
                    pass
        except Exception as error:  # safetensors has a class of its own
            return f"{path.name} is damaged: {in_a_line(error)}"
    return None


def saved_files(tokenizer: Any) -> dict[str, bytes]:
    """Return the files that `save_pretrained` writes for a tokenizer, by name.

    The bytes do not depend on where the tokenizer was loaded from: a store's digest covers them.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    for where_it_came_from in ("is_local", "local_files_only", "name_or_path"):
        config.pop(where_it_came_from, None)
    return files | {"tokenizer_config.json": canonical_json(config)}
