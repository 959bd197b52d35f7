"""Records that do not belong to their text are found before the first step, whatever went wrong.

The teacher has learnt its text: so its records fit their places, and nothing but a mistake can make
them fit another. Alignment is broken in five ways, and more.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data.dataset import StoreDataset
from distill.data.self_test import Tried, _Entries, try_records
from logitstore.errors import InputError, LogitStoreError
from logitstore.records import TokenRecords
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import learnt

Break = Callable[[FakeStore], FakeStore]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer, rows = tiny.byte_bpe(), learnt.rows()
    teacher = learnt.model_of(tokenizer, rows)
    folder = tmp_path_factory.mktemp("learnt") / "tokenizer"
    return FakeStore.from_teacher(teacher, tokenizer, rows, folder, rounded=True)


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "tokenizer"
    tiny.sp_bpe(600).save_pretrained(folder)
    return folder


def tried(store: FakeStore, student: Any = None, **how: Any) -> Tried:
    reader = ByteTokenizer(student or tiny.byte_bpe())
    return try_records(StoreDataset(store, reader, how.pop("losses", ("uld",)), **how))


def edited(store: FakeStore, edit: Callable[[TokenRecords], TokenRecords]) -> FakeStore:
    return replace(store, records=[edit(each) for each in store.records])


def entries_moved(records: TokenRecords, by: int) -> TokenRecords:
    """Give each record what the record so many further on says."""
    k = len(records.entry_ids) // len(records)  # of every record: the store has no ragged ones
    return replace(
        records,
        token_logprob=np.roll(records.token_logprob, -by),
        entry_ids=np.roll(records.entry_ids, -by * k),
        entry_logprobs=np.roll(records.entry_logprobs, -by * k),
        tail_logmass=np.roll(records.tail_logmass, -by),
    )


def renamed(store: FakeStore) -> FakeStore:
    """Say of each token what its record says of it: as if its log-probability was looked up."""

    def looked_up(records: TokenRecords) -> TokenRecords:
        padded = records.padded()
        is_own = (padded.ids == records.token_ids[:, None]) & padded.mask
        found = np.where(is_own, padded.logprobs, -np.inf).max(1)
        floor = padded.logprobs.min(1) - 1
        return replace(records, token_logprob=np.where(is_own.any(1), found, floor))

    return edited(store, looked_up)


def shifted(by: int) -> Break:
    """A consistent store whose records describe another token: all but the text looks right."""
    return lambda store: renamed(edited(store, lambda records: entries_moved(records, by)))


def swapped_rows(store: FakeStore) -> FakeStore:
    """What the teacher said of the next row, at this row's tokens."""
    made = []
    for own, other in zip(store.records, [*store.records[1:], store.records[0]], strict=True):
        n = min(len(own), len(other))
        k = len(own.entry_ids) // len(own)
        entry_ids, entry_logprobs = own.entry_ids.copy(), own.entry_logprobs.copy()
        entry_ids[: n * k], entry_logprobs[: n * k] = (
            other.entry_ids[: n * k],
            other.entry_logprobs[: n * k],
        )
        made.append(replace(own, entry_ids=entry_ids, entry_logprobs=entry_logprobs))
    return replace(store, records=made)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (shifted(1), r"fit the label 1 behind theirs better than their own: \d+% .* against"),
        (shifted(-1), r"fit the label 1 before theirs better than their own"),
        (shifted(2), r"fit the label 2 behind theirs"),
        (
            lambda store: edited(store, lambda r: entries_moved(r, 1)),
            r"|".join([r"two different log-probabilities", r"fit the label"]),
        ),
        (swapped_rows, r"two different log-probabilities, .*entries are those of other records"),
        (lambda store: renamed(swapped_rows(store)), r"fit the text of another row better"),
        (
            lambda store: replace(store, records=[*store.records[1:], store.records[0]]),
            r"in 24 of 24 sequences .* not the text at their places, as in row 0, record 4: token",
        ),
        (
            lambda store: edited(store, lambda r: replace(r, byte_starts=r.byte_starts + 1)),
            r"the teacher's tokens are not the text at their places",
        ),
    ],
    ids=[
        "shift by one",
        "shift by one, back",
        "shift by two",
        "entries alone",
        "entries of another row",
        "all of another row",
        "records of another row",
        "wrong byte offset",
    ],
)
def test_records_in_a_wrong_place_stop_the_run(store: FakeStore, breaks: Break, says: str) -> None:
    broken = breaks(store)
    with pytest.raises(InputError, match=says) as stopped:
        tried(broken)
    assert stopped.value.kind == "self-test"
    assert "--no_self_test trains all the same" in str(stopped.value)
    assert "fake-store: " in str(stopped.value)


@pytest.mark.parametrize(
    ("loss", "more"), [("sampled_kl", {"draws": 8}), ("multilevel_ot", {"logit_std": True})]
)
def test_losses_of_other_arrays_are_no_less_safe(
    loss: str, more: dict[str, Any], other_tokenizer: Path, tmp_path: Path
) -> None:
    tokenizer, rows = tiny.byte_bpe(), learnt.rows()
    made = (learnt.model_of(tokenizer, rows), tokenizer, rows, tmp_path / "tokenizer")
    honest = FakeStore.from_teacher(*made, rounded=True, **more)
    assert tried(honest, losses=(loss,)).outcome == "fits"
    breaks: list[Break] = [
        shifted(1),
        lambda store: replace(store, records=[*store.records[1:], store.records[0]]),
        lambda store: renamed(swapped_rows(store)),
        lambda store: edited(store, lambda r: replace(r, byte_starts=r.byte_starts + 1)),
    ]
    for breaks_it in breaks:
        with pytest.raises(InputError) as stopped:
            tried(breaks_it(honest), losses=(loss,))
        assert stopped.value.kind == "self-test"
    wrong = ByteTokenizer.from_folder(other_tokenizer).fingerprint
    spec = replace(honest.spec, tokenizer_fingerprint=wrong)
    with pytest.raises(LogitStoreError) as stopped_too:  # one needs the teacher's tokenizer
        tried(replace(honest, spec=spec, tokenizer_path=other_tokenizer), losses=(loss,))
    assert stopped_too.value.kind in ("self-test", "mismatch")


def test_the_records_of_another_tokenizer_stop_the_run(
    store: FakeStore, other_tokenizer: Path
) -> None:
    """Its files are what the store says of them, but the records were made with another's."""
    wrong = ByteTokenizer.from_folder(other_tokenizer).fingerprint
    spec = replace(store.spec, tokenizer_fingerprint=wrong)
    broken = replace(store, spec=spec, tokenizer_path=other_tokenizer)
    with pytest.raises(InputError, match="the teacher's tokens are not the text at their places"):
        tried(broken)


@pytest.mark.parametrize("student", [tiny.byte_bpe, tiny.unigram, tiny.sp_bpe])
def test_a_teacher_that_knows_its_text_fits_every_student(store: FakeStore, student: Any) -> None:
    found = tried(store, student(), losses=("uld", "mapped_kl"))
    assert found.outcome == "fits"
    assert found.own is not None
    assert found.other is not None
    assert found.own > 3 * found.other
    assert not found.doubt


def test_of_an_untrained_teacher_nothing_can_be_told(tmp_path: Path) -> None:
    """Its honest records and its shifted ones are alike; neither may stop a run."""
    for is_shifted in (False, True):
        of_nobody = FakeStore.from_teacher(
            tiny.llama(300), tiny.byte_bpe(), learnt.rows(), tmp_path / "t", shifted=is_shifted
        )
        found = tried(of_nobody)
        assert (found.outcome, found.doubt) == ("cannot tell", "")


def test_a_sure_teacher_that_does_not_know_the_text_is_doubted(store: FakeStore) -> None:
    """As where another model's tokenizer made the tokens that it read."""

    def elsewhere(records: TokenRecords) -> TokenRecords:
        ids = np.asarray((records.entry_ids.astype(np.int64) * 7 + 13) % 290 + 5, np.uint32)
        return replace(records, entry_ids=ids)

    found = tried(renamed(edited(store, elsewhere)))
    assert found.outcome == "cannot tell"
    assert "Its tokenizer or its template may be another model's" in found.doubt


def test_values_without_ids_and_draws_alone_are_tried_by_their_text(
    store: FakeStore, tmp_path: Path
) -> None:
    blind = replace(
        edited(store, lambda r: replace(r, entry_ids=None)), spec=replace(store.spec, has_ids=False)
    )
    assert tried(blind).own is None
    moved = edited(blind, lambda r: replace(r, byte_starts=r.byte_starts + 1))
    with pytest.raises(InputError, match="not the text at their places"):
        tried(moved)


def test_a_record_gives_a_label_the_mass_of_what_begins_it_or_begins_with_it() -> None:
    said = [(b"a", 0.1), (b"ab", 0.2), (b"ac", 0.4), (b"b", 0.05), (b" a", 0.02)]
    entries = _Entries(said)
    for _ in range(2):  # the second time from memory
        for label, mass in (
            (b"ab", 0.3),
            (b"ac", 0.5),
            (b"a", 0.7),
            (b" ab", 0.3),  # a space that the teacher's token may have, too
            (b"b", 0.05),
            (b"c", 0.0),
            (b" ", 0.02),
            (b"", 0.77),
        ):
            assert entries.mass(label) == pytest.approx(mass), label
