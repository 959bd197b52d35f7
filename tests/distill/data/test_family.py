"""A base model and its fine-tune have one tokenizer, and their ends are one event."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from distill.data.coverage import coverage
from distill.data.dataset import StoreDataset
from distill.training.trainer import CachedTeacherTrainer
from logitstore.records import Segment
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row, dense_logprobs
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.one_family import CHATML, PLAIN, base, instruct
from tests.kit.students import logged, ragged_rows, settings
from tests.kit.talks import TALKS, capture

DIRECTIONS = [(instruct, base), (base, instruct)]
THINKS: Row = (
    Segment("A prompt: ", supervised=False),
    Segment("<think>the old river</think> reads", supervised=True),
)


def store_of(
    folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[Row], pad: int = 0, **how: Any
) -> tuple[FakeStore, Any]:
    teacher = tiny.llama(len(tokenizer) + pad, seed=7)
    how = {"top_k": len(tokenizer) + pad} | how
    return FakeStore.from_teacher(teacher, tokenizer, rows, folder, **how), teacher


def dense(arrays: dict[str, Any], pair: int, width: int) -> np.ndarray[Any, Any]:
    """(width,) what is asked of the student at a pair; each id at most once."""
    first = int(arrays["entry_count"][:pair].sum())
    own = slice(first, first + int(arrays["entry_count"][pair]))
    ids = arrays["entry_ids"][own]
    assert len(set(ids.tolist())) == len(ids)
    found = np.zeros(width)
    found[ids] = np.exp(arrays.get("entry_logmass", arrays.get("entry_logprobs"))[own])
    return found


def as_ends(q: np.ndarray[Any, Any], ends: list[int], end: int) -> np.ndarray[Any, Any]:
    """The definition: all mass of the teacher's ends is the student's end's."""
    moved = q.copy()
    moved[..., ends] = 0
    moved[..., end] = q[..., ends].sum(-1)
    return moved


@pytest.mark.parametrize(("of_teacher", "of_student"), DIRECTIONS)
def test_whole_texts_of_base_and_fine_tune_are_compared_token_by_token_and_end_by_end(
    tmp_path: Path, of_teacher: Any, of_student: Any
) -> None:
    store, teacher = store_of(tmp_path, of_teacher(), ragged_rows())
    student = ByteTokenizer(of_student())
    assert student.fingerprint != store.spec.tokenizer_fingerprint
    data = StoreDataset(store, student, ["tail_kl"])
    assert data.is_one_tokenizer
    ends, end = list(store.spec.eos_ids), student.eos_token_id
    assert end is not None
    for i, row in enumerate(ragged_rows()):
        tokens = ByteTokenizer(of_teacher()).encode(row)
        q = dense_logprobs(teacher, tokens.token_ids).exp().numpy()
        q = q[np.flatnonzero(tokens.has_record) - 1]
        arrays = data[i].teacher["tail_kl"]
        assert arrays["index"].tolist() == list(range(len(q)))  # of the end, too
        for n, wanted in enumerate(as_ends(q, ends, end)):
            np.testing.assert_allclose(dense(arrays, n, len(wanted)), wanted, atol=1e-5)


@pytest.mark.parametrize("top_k", [4, 290])
@pytest.mark.parametrize(("of_teacher", "of_student"), DIRECTIONS)
def test_draws_of_the_teachers_ends_are_draws_of_the_students(
    tmp_path: Path, of_teacher: Any, of_student: Any, top_k: int
) -> None:
    """Ends are among draws where entries are few, else among entries; each is asked for once."""
    store, _ = store_of(tmp_path, of_teacher(), ragged_rows(), top_k=top_k, draws=2000)
    student = ByteTokenizer(of_student())
    data = StoreDataset(store, student, ["sampled_kl"])
    ends, end = list(store.spec.eos_ids), student.eos_token_id
    drawn, width, seen, both_listed = np.zeros(2), store.spec.vocab_size, 0, 0
    for i, records in enumerate(store.records):
        arrays = data[i].teacher["sampled_kl"]
        assert len(arrays["index"]) == len(records)
        assert records.draw_count is not None
        stops = [np.cumsum(each) for each in (records.entry_count, records.draw_count)]
        for n in range(len(records)):
            own = [
                slice(stop[n] - count[n], stop[n])
                for stop, count in zip(
                    stops, (records.entry_count, records.draw_count), strict=True
                )
            ]
            q, times = np.zeros(width), np.zeros(width)
            q[records.entry_ids[own[0]]] = np.exp(records.entry_logprobs[own[0]])
            np.add.at(times, records.sample_ids[own[1]], records.sample_counts[own[1]])
            np.testing.assert_allclose(dense(arrays, n, width), as_ends(q, ends, end), atol=1e-6)
            both_listed += int((q[ends] > 0).all())
            first = int(arrays["draw_count"][:n].sum())
            mine = slice(first, first + int(arrays["draw_count"][n]))
            ids = arrays["draw_ids"][mine]
            assert len(set(ids.tolist())) == len(ids)
            found = np.zeros(width)
            found[ids] = arrays["draw_times"][mine]
            np.testing.assert_array_equal(found, as_ends(times, ends, end))
            drawn += times[ends] > 0
            seen += int((times[ends] > 0).all())
    # Two ends at one place.
    assert both_listed if top_k > 4 else seen and (drawn > 0).all()


@pytest.mark.parametrize(("of_teacher", "of_student"), DIRECTIONS)
def test_the_loss_is_that_of_two_live_models(
    tmp_path: Path, of_teacher: Any, of_student: Any
) -> None:
    """A run that names no loss has `tail_kl`, which is the mean of KL(teacher || student)."""
    store, teacher = store_of(tmp_path / "t", of_teacher(), ragged_rows())
    tokenizer, model = of_student(), tiny.llama(store.spec.vocab_size, seed=3)
    args = settings(tmp_path / "out", loss="auto", max_steps=1)
    trainer = CachedTeacherTrainer(model, args, store, store, processing_class=tokenizer)
    assert trainer.weights == {"tail_kl": 1.0}
    found = trainer.evaluate()
    assert found["eval_covered_fraction"] == 1
    ends, total, count = list(store.spec.eos_ids), 0.0, 0
    for row in ragged_rows():
        sides = []
        for each, net in ((of_teacher(), teacher), (tokenizer, model)):
            tokens = ByteTokenizer(each).encode(row)
            at = np.flatnonzero(tokens.has_record) - 1
            sides.append(dense_logprobs(net, tokens.token_ids).numpy()[at])
        q = as_ends(np.exp(sides[0]), ends, int(tokens.token_ids[-1]))
        total += float((q * (np.log(np.where(q > 0, q, 1)) - sides[1])).sum())
        count += len(q)
    # What the text shows of the label within its event is the label itself: each is a token.
    assert found["eval_tail_kl_loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(("of_teacher", "of_student"), DIRECTIONS)
def test_coverage_of_base_and_fine_tune_is_that_of_one_tokenizer(
    tmp_path: Path, of_teacher: Any, of_student: Any
) -> None:
    store, _ = store_of(tmp_path, of_teacher(), ragged_rows())
    for loss in ("tail_kl", "mapped_kl"):
        facts = coverage(StoreDataset(store, ByteTokenizer(of_student()), [loss]), loss=loss)
        share = facts["kinds"]["all"]
        assert facts["same_tokenizer"]
        assert share["covered"] == share["right"] == facts["kinds"]["ends"]["covered"] == 1
        assert share["wrong"] == 0
        assert facts["recommended"] == "tail_kl"


def talks_of(folder: Path, tokenizer: PreTrainedTokenizerFast) -> LogitStore:
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer), seed=7), tokenizer)
    rows = [{"messages": talk} for talk in TALKS]
    return capture(folder / "teacher", rows, folder / "store", top_k=len(tokenizer))


def talks_for(store: LogitStore, tokenizer: PreTrainedTokenizerFast) -> StoreDataset:
    reader = ByteTokenizer(tokenizer)
    template = ChatTemplate.of(tokenizer, reader)
    return StoreDataset(store, reader, ["tail_kl"], template=template)


@pytest.mark.parametrize(
    ("teacher", "student", "are_moved"),
    [
        (instruct(template=CHATML), base(template=PLAIN), True),
        (base(template=PLAIN), instruct(template=CHATML), True),
        (instruct(template=CHATML), instruct(template=PLAIN), True),  # the very same tokenizer
        (instruct(template=CHATML), base(template=CHATML), False),
        (base(template=CHATML), instruct(template=CHATML), False),
    ],
)
def test_ends_of_turns_are_one_event_where_they_differ_and_themselves_where_not(
    tmp_path: Path, teacher: Any, student: Any, are_moved: bool
) -> None:
    store, reader = talks_of(tmp_path, teacher), ByteTokenizer(student)
    data, end = talks_for(store, student), student.chat_template == CHATML
    token = reader.eos_ids[
        [reader.spelt(i) for i in reader.eos_ids].index("<|im_end|>" if end else "<|endoftext|>")
    ]
    ends, turns = list(store.spec.eos_ids), 0
    assert len(ends) == 2
    for i in range(len(data)):
        asked, arrays = data.asked(i, "tail_kl"), data[i].teacher["tail_kl"]
        assert asked is not None
        where = np.flatnonzero(asked.student.is_eos)
        assert set(asked.label_ids[where].tolist()) == {token}
        pair_of = {int(label): n for n, label in enumerate(arrays["index"])}
        records = asked.records
        stop = np.cumsum(records.entry_count)
        for label, record in zip(where, np.flatnonzero(asked.teacher.is_eos), strict=True):
            own = slice(stop[record] - records.entry_count[record], stop[record])
            q = np.zeros(store.spec.vocab_size)
            q[records.entry_ids[own]] = np.exp(records.entry_logprobs[own])
            wanted = as_ends(q, ends, token) if are_moved else q
            found = dense(arrays, pair_of[int(label)], len(q))
            np.testing.assert_allclose(found, wanted, atol=1e-6)
            turns += 1
    assert turns == sum(m["role"] == "assistant" for talk in TALKS for m in talk)


def counted(rows: list[Row], theirs: Any, ours: Any) -> tuple[int, int]:
    """The student's labels; and those at whose start the teacher has a token too, and knows it."""
    known, labels, covered = set(theirs.get_vocab()), 0, 0
    for row in rows:
        sides = [ByteTokenizer(each).encode(row) for each in (theirs, ours)]
        starts = set(sides[0].byte_starts[sides[0].has_record].tolist())
        names = ours.convert_ids_to_tokens(sides[1].token_ids[sides[1].has_record].tolist())
        for start, name in zip(sides[1].byte_starts[sides[1].has_record], names, strict=True):
            labels += 1
            covered += int(start) in starts and name in known
    return labels, covered


@pytest.mark.parametrize("pads", [(0, 0), (40, 8), (8, 40)])
def test_padded_vocabularies_of_one_family_with_added_tokens_are_one_tokenizer(
    tmp_path: Path, pads: tuple[int, int]
) -> None:
    """Qwen 2.5 and 3: heads of 151,936 or 152,064 rows, and a few tokens more in one of the two."""
    rows = [*ragged_rows(), THINKS]
    sides = [instruct(), base("<think>", "</think>")]
    for number, (theirs, ours) in enumerate((sides, sides[::-1])):
        folder = tmp_path / str(number)
        store, _ = store_of(folder / "t", theirs, rows, pad=pads[0])
        model = tiny.llama(len(ours) + pads[1], seed=3)
        args = settings(folder / "out", loss="auto", max_steps=1, per_device_train_batch_size=9)
        trainer = CachedTeacherTrainer(model, args, store, processing_class=ours)
        assert trainer.weights == {"tail_kl": 1.0}
        trainer.train()
        entry = logged(trainer)[0]
        labels, covered = counted(rows, theirs, ours)
        assert covered < labels
        assert entry["covered_fraction"] == pytest.approx(covered / labels)


def test_a_label_that_the_teacher_has_no_token_for_has_no_pair(tmp_path: Path) -> None:
    store, _ = store_of(tmp_path, instruct(), [THINKS])
    student = ByteTokenizer(base("<think>", "</think>"))
    data = StoreDataset(store, student, ["tail_kl"])
    asked = data.asked(0, "tail_kl")
    assert asked is not None
    own = [student.written(asked.label_ids[[i]])[0] for i in range(len(asked.label_ids))]
    assert own.count(b"<think>") == own.count(b"</think>") == 1
    covered = set(data[0].teacher["tail_kl"]["index"].tolist())
    assert {own[i] for i in set(range(len(own))) - covered} == {b"<think>", b"</think>"}


def test_what_only_the_teacher_has_goes_to_the_students_first_token_of_it(tmp_path: Path) -> None:
    theirs = instruct("<think>", "</think>")
    store, _ = store_of(tmp_path, theirs, [THINKS])
    student = ByteTokenizer(base())
    data = StoreDataset(store, student, ["tail_kl"])
    asked, arrays = data.asked(0, "tail_kl"), data[0].teacher["tail_kl"]
    assert asked is not None
    ids = {text: theirs.convert_tokens_to_ids(text) for text in ("<think>", "</think>")}
    records, places = (
        asked.records,
        np.flatnonzero(np.isin(asked.records.token_ids, list(ids.values()))),
    )
    assert len(places) == 2
    for place in places:
        (n,) = np.flatnonzero(asked.pairs.table[:, 0] == place)
        label = int(asked.label_ids[asked.pairs.table[n, 2]])
        assert student.written(np.array([label]))[0].startswith(b"<")
        stop = int(np.cumsum(records.entry_count)[place])
        own = slice(stop - int(records.entry_count[place]), stop)
        q = np.zeros(store.spec.vocab_size)
        q[records.entry_ids[own]] = np.exp(records.entry_logprobs[own])
        for text, i in ids.items():
            begin = student.encode([Segment(text, supervised=True)], add_eos=False).token_ids[0]
            q[begin] += q[i]
            q[i] = 0
        q = as_ends(q, list(store.spec.eos_ids), int(student.eos_token_id))
        np.testing.assert_allclose(dense(arrays, n, len(q)), q, atol=1e-6)
