"""The needs of each loss, and the check that a store meets them before anything is trained.

A loss declares its needs beside its formula, in its `LOSS`, in these words:

    entries          the most probable tokens of each record; a store of draws may have none
    ids              which token an entry's probability belongs to
    tail             the probability beyond the entries; an import may lack it
    token logprob    the log-probability of every token itself; an import may lack some
    byte spans       where tokens lie in the text; every store of format 1 has them
    same tokenizer   one vocabulary on both sides, whatever roles its tokens have, see
                     :mod:`logitstore.text.vocabulary`
    temperature      the log-normaliser at the temperature that the run asks for
    logit std        the standard deviation of logits, and the log-normaliser at it
    draws            draws from the tail
    hidden           the teacher's last hidden states, in files beside the records
    embedding        likewise the rows of its input embedding
    lm head          its output embedding
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from distill.losses import all_losses, find, option_values
from distill.losses.loss import Options
from logitstore.errors import MismatchError
from logitstore.text.stored import stored_bytes
from logitstore.text.tokenizer import ByteTokenizer

#: The order of the last loss that is named in place of another; those behind it are for who asks
#: for them.
LAST_COMMON = 6


class Described(Protocol):
    """A store, or the part of it that describes what it holds."""

    @property
    def spec(self) -> Any: ...
    @property
    def provenance(self) -> Any: ...
    @property
    def path(self) -> Any: ...
    @property
    def digest(self) -> str: ...
    @property
    def tokenizer_path(self) -> Path: ...


def has_tokenizer_of(store: Described, student: ByteTokenizer) -> bool:
    """Tell whether a store's teacher and the student have one tokenizer, but for roles of tokens.

    Raises:
        LogitStoreError: The store's tokenizer cannot be read as the one that it was.
    """
    known = store.spec.tokenizer_fingerprint
    if known == student.fingerprint:
        return True
    return stored_bytes(store.tokenizer_path, known, store.path).is_one_with(student)


def _embeds(store: Described) -> bool:
    return store.spec.hidden is not None and store.spec.hidden.embedding_width is not None


#: The check of each need, in the order in which they are made.
_IS_MET: dict[str, Callable[[Described, ByteTokenizer, Options], bool]] = {
    "same tokenizer": lambda store, student, _: has_tokenizer_of(store, student),
    "entries": lambda store, *_: bool(store.spec.top_k),
    "ids": lambda store, *_: bool(store.spec.has_ids),
    "temperature": lambda store, _, options: (
        options["temperature"] in (1.0, *store.spec.temperatures)
    ),
    "tail": lambda store, *_: "tail_logmass" not in store.spec.missing,
    "token logprob": lambda store, *_: "token_logprob" not in store.spec.missing,
    "logit std": lambda store, *_: bool(store.spec.has_logit_std),
    "draws": lambda store, *_: bool(store.spec.draws),
    "embedding": lambda store, *_: _embeds(store),
    "hidden": lambda store, *_: store.spec.hidden is not None,
    "lm head": lambda store, *_: store.spec.hidden is not None and store.spec.hidden.has_head,
}


def check_needs(store: Described, student: ByteTokenizer, name: str, **options: Any) -> None:
    """Reject a loss that the store cannot serve.

    Args:
        store: The store.
        student: The student's tokenizer.
        name: Name of the loss.
        **options: Options of losses in the run; the others have their defaults.

    Raises:
        MismatchError: Names what is missing, and what to do about it.
    """
    values = option_values(options)
    for need in unmet(store, student, name, values):
        raise MismatchError(
            f"{store.path}: {_MESSAGES[need](_Rejected(store, student, name, values))}"
        )


def unmet(store: Described, student: ByteTokenizer, name: str, options: Options) -> Iterator[str]:
    """List what the loss needs and the store lacks."""
    needs = find(name).needs_of(options)
    return (
        n for n, is_met in _IS_MET.items() if n in needs and not is_met(store, student, options)
    )


class _Rejected(NamedTuple):
    """A loss that a store cannot serve."""

    store: Described
    student: ByteTokenizer
    name: str
    options: Options

    @property
    def other(self) -> str:
        """Find the first loss that the store can serve, as a flag: one of the common ones."""
        common = (n for n, loss in all_losses().items() if loss.order <= LAST_COMMON)
        served = (n for n in common if not any(unmet(self.store, self.student, n, self.options)))
        return f"--loss {next(served, 'ce')}"


def _other_tokenizer(loss: _Rejected) -> str:
    made_with, student = loss.store.spec.tokenizer_fingerprint, loss.student
    return (
        f"made with tokenizer {_short(made_with)} ({teacher_name(loss.store)}), but the student "
        f"uses {_short(student.fingerprint)} ({student.name}). {loss.name} compares tokens by "
        f"id, so they must be the same. Use {loss.other}, or a student with the teacher's "
        "tokenizer."
    )


def _no_entries(loss: _Rejected) -> str:
    return (
        f"captured with --top-k 0, so without the entries that {loss.name} compares. Use "
        f"{loss.other}, or run `logitstore capture …` again with --top-k 64."
    )


def _no_ids(loss: _Rejected) -> str:
    return (
        f"captured with --no-ids, but {loss.name} must know which tokens the probabilities "
        f"belong to. Use {loss.other}, or run `logitstore capture …` again without --no-ids."
    )


def _other_temperature(loss: _Rejected) -> str:
    held = ", ".join(f"{t:g}" for t in (1.0, *loss.store.spec.temperatures))
    asked = loss.options["temperature"]
    return (
        f"holds temperature {held}, but --temperature is {asked:g}: the tail is not known at "
        f"another one. Run `logitstore capture …` again with --temperature {asked:g}, or train "
        "with one that the store holds."
    )


def _no_tail(loss: _Rejected) -> str:
    return (
        "its entries were renormalised before they were imported, so the tail is not known, and "
        f"{loss.name} needs it. Use {loss.other}, or import a dump of log-probabilities over "
        "the full vocabulary."
    )


def _no_token_logprob(loss: _Rejected) -> str:
    return (
        f"imported without the log-probability of every token, which {loss.name} needs. Use "
        f"{loss.other}, or run `logitstore import …` again with --unlisted drop, which leaves "
        "tokens out that are not in their lists."
    )


def _no_embedding(loss: _Rejected) -> str:
    flag = "--hidden last,embedding"
    if loss.store.spec.hidden is None:
        return _without("the teacher's hidden states and input embedding", flag)(loss)
    return (
        f"captured with --hidden last, so without the teacher's input embedding, which {loss.name} "
        f"reads. Run `logitstore capture …` again with {flag}, or use {loss.other}."
    )


def _no_lm_head(loss: _Rejected) -> str:
    return (
        "captured without --with-lm-head, so without the teacher's output embedding, which "
        f"{loss.name} reads as it is asked to. Run `logitstore capture …` again with --hidden "
        f"last,embedding --with-lm-head, or use --{loss.name}_space student."
    )


def _without(arrays: str, flag: str) -> Callable[[_Rejected], str]:
    return lambda loss: (
        f"captured without {flag.split()[0]}, so without {arrays}, which {loss.name} reads. Run "
        f"`logitstore capture …` again with {flag}, or use {loss.other}."
    )


_MESSAGES: dict[str, Callable[[_Rejected], str]] = {
    "same tokenizer": _other_tokenizer,
    "entries": _no_entries,
    "ids": _no_ids,
    "temperature": _other_temperature,
    "tail": _no_tail,
    "token logprob": _no_token_logprob,
    "logit std": _without("logit_std and lognorm_std", "--logit-std"),
    "draws": _without("sample_ids and sample_counts", "--draws 50"),
    "embedding": _no_embedding,
    "hidden": _without("the teacher's hidden states", "--hidden last"),
    "lm head": _no_lm_head,
}


def teacher_name(store: Described) -> str:
    """Return the name that the teacher had when the store was captured."""
    return str(store.provenance.get("teacher") or "its teacher")


def _short(fingerprint: str) -> str:
    return f"{fingerprint.removeprefix('sha256:')[:8]}…"
