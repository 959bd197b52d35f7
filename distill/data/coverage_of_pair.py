"""The coverage of a store by a student of whom only the tokenizer is read, and the command."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from distill.data.coverage import Facts, coverage
from distill.data.coverage_settings import CoverageSettings
from distill.data.dataset import StoreDataset
from distill.losses import advice, all_losses, find, option_values
from distill.losses.requirements import unmet
from distill.losses.weights import check_effects, check_values, parse_losses
from distill.student.template import template_of
from logitstore import open_store
from logitstore.console.entry import with_hyphens
from logitstore.console.settings import with_settings
from logitstore.errors import InputError
from logitstore.models.loading import load_tokenizer
from logitstore.text.tokenizer import ByteTokenizer

#: Settings that the printed command does not repeat.
_NOT_OF_A_RUN = ("loss", "map", "between", "sequences")


@with_settings(CoverageSettings)
def of_pair(store: str, student: str, **settings: Any) -> Facts:
    """Count the coverage of a store by a student, of which only the tokenizer is read.

    Args:
        store: The store.
        student: Folder or hub id.
        **settings: of the report

    Returns:
        The facts of :func:`distill.data.coverage.coverage`, and the `command` that trains as they
        recommend.

    Raises:
        InputError: The student can use nothing of the store; says why.
        MismatchError: The store lacks what the loss needs.
    """
    asked = CoverageSettings(**settings)
    asked.check()
    opened = open_store(store, allow_partial=asked.allow_partial)
    tokenizer = load_tokenizer(asked.tokenizer_name_or_path or student)
    reader = ByteTokenizer(tokenizer)
    template = template_of(opened, tokenizer, reader, asked, spelt=with_hyphens)
    weights, told_by = advice.weights_of(student)
    way = _way_to_look_at(asked, opened, reader, weights)
    data = StoreDataset(
        opened, reader, way.losses, max_length=asked.max_length, template=template, **way.options
    )
    facts = coverage(data, sequences=asked.sequences, weights=weights, rejects_nothing=True)
    # The loss is what is advised, and all of the store is trained on.
    more = {f.name: getattr(asked, f.name) for f in fields(asked) if f.name not in _NOT_OF_A_RUN}
    said = advice.command(advice.recommend(facts), student, store, weights, more)
    return facts | {"weights_told_by": told_by, "command": said}


class _Way(NamedTuple):
    """Losses and their options."""

    losses: list[str]
    options: Mapping[str, Any]


def _way_to_look_at(
    asked: CoverageSettings, store: Any, student: ByteTokenizer, weights: str
) -> _Way:
    """Choose the losses and options to look at: those that were named, or what is recommended.

    Raises:
        InputError: One is not known, or has no effect.
    """
    given = {"map": asked.map, "between": asked.between}
    options = {name: value for name, value in given.items() if value is not None}
    check_values(options)
    if asked.loss == advice.AUTO:
        options = {"map": advice.map_for(weights)} | options
        named = asked.map or asked.between
        return _Way([advice.TWO_TOKENIZERS] if named else _judged(store, student), options)
    losses = list(parse_losses(asked.loss))
    if not losses:
        raise InputError(
            "--loss ce: cross-entropy asks nothing of a teacher that could be looked at. Leave "
            "--loss out, or name another one."
        )
    check_effects(options, asked.loss, losses)
    return _Way(losses, options)


def _judged(store: Any, student: ByteTokenizer) -> list[str]:
    """Choose the loss to look at: the first that has a map and that the store can serve."""
    options = option_values({})
    served = [name for name in all_losses() if not any(unmet(store, student, name, options))]
    mapping = [name for name in served if find(name).pairing_of(options).compares_tokens]
    return [*mapping, *served][:1]
