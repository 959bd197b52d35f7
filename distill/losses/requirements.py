"""What each loss needs of a store, checked before anything is trained.

A loss declares its needs beside its formula, as `NEEDS`, in these words:

    entries          the most probable tokens of each record; a store of draws may have none
    ids              which token an entry's probability belongs to
    tail             the probability outside the entries; an import may lack it
    token logprob    the log-probability of every token itself; an import may lack some
    byte spans       where tokens lie in the text; every store of format 1 has them
    same tokenizer   one vocabulary on both sides, known by the tokenizers' fingerprints
    temperature      the log-normaliser at the temperature that the run asks for
    logit std        the standard deviation of logits, and the log-normaliser at it
    draws            draws from the tail
"""

from collections.abc import Sequence
from typing import Any, Protocol

from distill.losses import alm, mapped_kl, multilevel_ot, sampled_kl, tail_kl, uld
from logitstore.errors import MismatchError
from logitstore.text.tokenizer import ByteTokenizer

NEEDS: dict[str, frozenset[str]] = {
    "mapped_kl": mapped_kl.NEEDS,
    "tail_kl": tail_kl.NEEDS,
    "sampled_kl": sampled_kl.NEEDS,
    "uld": uld.NEEDS,
    "multilevel_ot": multilevel_ot.NEEDS,
    "alm": alm.NEEDS,
}


class Described(Protocol):
    """The part of a store that says what it holds."""

    @property
    def spec(self) -> Any: ...
    @property
    def provenance(self) -> Any: ...
    @property
    def path(self) -> Any: ...
    @property
    def digest(self) -> str: ...


def check_needs(
    store: Described,
    student: ByteTokenizer,
    name: str,
    *,
    temperature: float = 1.0,
    pairing: str = "bytes",
) -> None:
    """Refuses a loss that the store cannot serve.

    Args:
        store: The store.
        student: The student's tokenizer.
        name: Of the loss.
        temperature: That the run asks for.
        pairing: Of uld; by position it reads no token's own log-probability.

    Raises:
        MismatchError: Names what is missing, and what to do about it.
    """
    needs, spec = NEEDS[name], store.spec
    if "same tokenizer" in needs and spec.tokenizer_fingerprint != student.fingerprint:
        teacher = teacher_name(store)
        raise MismatchError(
            f"{store.path}: made with tokenizer {_short(spec.tokenizer_fingerprint)} ({teacher}), "
            f"but the student uses {_short(student.fingerprint)} ({student.name}). {name} compares "
            "tokens by id, so they must be the same. Use --loss mapped_kl, or a student with the "
            "teacher's tokenizer."
        )
    if "entries" in needs and not spec.top_k:
        raise MismatchError(
            f"{store.path}: captured with --top-k 0, so without the entries that {name} compares. "
            "Use --loss alm, or run `logitstore capture …` again with --top-k 64."
        )
    if "ids" in needs and not spec.has_ids:
        raise MismatchError(
            f"{store.path}: captured with --no-ids, but {name} must know which tokens the "
            "probabilities belong to. Use --loss uld, or run `logitstore capture …` again "
            "without --no-ids."
        )
    if "temperature" in needs and temperature not in (1.0, *spec.temperatures):
        held = ", ".join(f"{t:g}" for t in (1.0, *spec.temperatures))
        raise MismatchError(
            f"{store.path}: holds temperature {held}, but --temperature is {temperature:g}: what "
            "lies outside the entries is not known at another one. Run `logitstore capture …` "
            f"again with --temperature {temperature:g}, or train with one that the store holds."
        )
    _check_missing(store, name, needs if pairing == "bytes" else needs - {"token logprob"})
    if "logit std" in needs and not spec.has_logit_std:
        raise MismatchError(_without(store, name, "logit_std and lognorm_std", "--logit-std"))
    if "draws" in needs and not spec.draws:
        raise MismatchError(_without(store, name, "sample_ids and sample_counts", "--draws 50"))


def _check_missing(store: Described, name: str, needs: frozenset[str]) -> None:
    """What the source of an import did not say."""
    missing = store.spec.missing
    if "tail" in needs and "tail_logmass" in missing:
        raise MismatchError(
            f"{store.path}: its entries were renormalised before they were imported, so what lies "
            f"outside them is not known, and {name} needs it. {_other(missing)}, or import a dump "
            "of log-probabilities over the full vocabulary."
        )
    if "token logprob" in needs and "token_logprob" in missing:
        raise MismatchError(
            f"{store.path}: imported without the log-probability of every token, which {name} "
            f"needs. {_other(missing)}, or run `logitstore import …` again with --unlisted drop, "
            "which leaves tokens out that are not in their lists."
        )


def _other(missing: Sequence[str]) -> str:
    """A loss that such a store serves."""
    if "tail_logmass" not in missing:
        return "Use --loss mapped_kl"
    return "Use --loss ce" if "token_logprob" in missing else "Use --loss alm"


def teacher_name(store: Described) -> str:
    """What the teacher was called when the store was captured."""
    return str(store.provenance.get("teacher") or "its teacher")


def _without(store: Described, name: str, arrays: str, flag: str) -> str:
    return (
        f"{store.path}: captured without {flag.split()[0]}, so without {arrays}, which {name} "
        f"reads. Run `logitstore capture …` again with {flag}, or use --loss uld or alm."
    )


def _short(fingerprint: str) -> str:
    return f"{fingerprint.removeprefix('sha256:')[:8]}…"
