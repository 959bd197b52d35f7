"""What a store cannot serve is refused, and a loss named that it can."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.losses.requirements import check_needs
from logitstore.errors import MismatchError
from logitstore.format.hidden import HiddenSpec
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer


@pytest.fixture(autouse=True)
def other_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer of a store whose spec names `ANOTHER`."""
    tiny.unigram().save_pretrained(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)


ANOTHER = ByteTokenizer(tiny.unigram()).fingerprint


def store_of(fingerprint: str = ANOTHER, **spec: Any) -> SimpleNamespace:
    """A store that holds all there is, but for what is given."""
    everything = {
        "tokenizer_fingerprint": fingerprint,
        "top_k": 8,
        "has_ids": True,
        "temperatures": (2.0,),
        "missing": (),
        "has_logit_std": True,
        "draws": 4,
        "hidden": HiddenSpec("fp8", 16, embedding_width=16),
    }
    made = SimpleNamespace(**everything | spec)
    held = {"path": Path("store"), "tokenizer_path": Path("tokenizer"), "provenance": {}}
    return SimpleNamespace(spec=made, digest="0", **held)


@pytest.mark.parametrize(
    ("name", "spec", "other"),
    [
        ("tail_kl", {}, "mapped_kl"),
        ("tail_kl", {"has_ids": False}, "uld"),
        ("mapped_kl", {"has_ids": False}, "uld"),
        ("mapped_kl", {"top_k": 0}, "alm"),
        ("multilevel_ot", {"has_logit_std": False}, "mapped_kl"),
        ("dskd", {"hidden": None}, "mapped_kl"),
        ("dskd", {"hidden": HiddenSpec("fp8", 16)}, "mapped_kl"),
        ("uld", {"missing": ("tail_logmass",), "has_logit_std": False}, "alm"),
        ("uld", {"missing": ("token_logprob",)}, "mapped_kl"),
        ("mapped_kl", {"missing": ("tail_logmass", "token_logprob"), "has_logit_std": False}, "ce"),
    ],
)
def test_the_loss_that_is_named_instead_is_one_that_the_store_serves(
    name: str, spec: dict[str, Any], other: str
) -> None:
    student, store = ByteTokenizer(tiny.byte_bpe()), store_of(**spec)
    with pytest.raises(MismatchError, match=rf"[Uu]se --loss {other}\b"):
        check_needs(store, student, name)
    if other != "ce":
        check_needs(store, student, other)


def test_draws_alone_of_ones_own_tokenizer_are_sampled_kls() -> None:
    student = ByteTokenizer(tiny.byte_bpe())
    store = store_of(student.fingerprint, top_k=0)
    with pytest.raises(MismatchError, match="Use --loss sampled_kl"):
        check_needs(store, student, "uld")
    check_needs(store, student, "sampled_kl")


def test_an_option_that_no_loss_has_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="no loss has an option 'pairings'"):
        check_needs(store_of(), ByteTokenizer(tiny.byte_bpe()), "uld", pairings="bytes")
