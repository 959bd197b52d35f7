"""What all rows of a store have in common, and the spec that follows from it."""

from typing import NamedTuple

from logitstore.errors import InputError
from logitstore.format.spec import StoreSpec
from logitstore.moving.created.given import Given
from logitstore.moving.created.settings import CreateSettings
from logitstore.moving.created.teacher import Teacher
from logitstore.moving.created.texts import Texts
from logitstore.writing.digests import tokenizer_digests

#: In the `rendering` of a spec: that a caller gave the arrays, and which.
CREATED = "created"


class Form(NamedTuple):
    """What all rows of a store have in common.

    Attributes:
        names: The arrays that are given for each.
        vocab_size: The width of the teacher's logits.
    """

    names: tuple[str, ...]
    vocab_size: int


def form_of(
    given: Given, known: Form | None, settings: CreateSettings, teacher: Teacher, where: str
) -> Form:
    """Return what a row has, which must be what those before it have.

    Raises:
        InputError: It is not, or its logits are of another vocabulary, or a setting cannot be had
            of such arrays.
    """
    if known is not None and given.names != known.names:
        raise InputError(
            f"{where}: has {', '.join(given.names)}, but rows before it have "
            f"{', '.join(known.names)}. Give the same arrays for every row."
        )
    asked = settings.vocab_size if known is None else known.vocab_size
    width = given.width(where) if given.is_full else asked or teacher.tokenizer.size
    teacher.check_width(width, asked, where)
    _check_settings(given, settings, where)
    return Form(given.names, width)


def spec_of(form: Form, settings: CreateSettings, teacher: Teacher, texts: Texts) -> StoreSpec:
    """Describe the store's content."""
    lacking = ("entropy", "token_logprob") if "ids" in form.names else ()
    missing = [name for name in lacking if name not in form.names]
    said = {"given": list(form.names), "aligned_to": settings.aligned_to}
    spec = StoreSpec(
        teacher={
            "fingerprint": teacher.fingerprint,
            "architecture": "unknown",
            "dtype": "unknown",
            "vocab_size": form.vocab_size,
        },
        tokenizer={
            "fingerprint": teacher.tokenizer.fingerprint,
            "size": teacher.tokenizer.size,
            "eos_ids": list(texts.tokenizer.eos_ids),
            "files": tokenizer_digests(teacher.files),
        },
        rendering=texts.rendering() | {CREATED: said},
        capture={
            "top_k": settings.top_k,
            "max_tail": settings.max_tail,
            "ids": True,
            "temperatures": list(settings.temperatures),
            "logit_std": settings.logit_std,
            "draws": 0,
            **({"missing": missing} if missing else {}),
        },
    )
    spec.codec["name"] = settings.codec
    return spec


def _check_settings(given: Given, settings: CreateSettings, where: str) -> None:
    """Reject settings that ask for more than the arrays say."""
    if settings.logit_std and given.names != ("logits",):
        raise InputError(
            f"{where}: logit_std needs logits=…, found {', '.join(given.names)}. Leave it out."
        )
    for name, value in (("max_tail", settings.max_tail), ("temperatures", settings.temperatures)):
        if value and not given.is_full:
            raise InputError(
                f"{where}: {name} needs full rows, found {', '.join(given.names)}. Leave it out, "
                "or give logits=…."
            )
