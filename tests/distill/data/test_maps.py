"""Maps of a store's teacher to a student: kept, loaded, carried to workers; and their targets."""

import functools
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.alignment.event_map import EventMap
from distill.alignment.make_map import KINDS, Seen, make_map, nothing_seen
from distill.data.dataset import StoreDataset
from distill.data.maps import map_of
from distill.losses.mapped_kl import mapped_kl
from distill.losses.maps import OURS
from distill.losses.tail_kl import tail_kl
from logitstore.errors import MismatchError
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import tokenizers
from tests.kit.pairs_seen import pairs_seen

STUDENTS = ("digits apart", "dummy always", "word cuts")
#: Ids of the teacher's head that its tokenizer does not have.
PADDING = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """A teacher with a padded head, on texts, answers, and text in several stretches."""
    reader = tokenizers.build("digits joined")
    texts = [*tokenizers.texts()[-5:], *tiny.corpus()[-12:], *tiny.corpus()[:3]]
    rows = [(Segment(text, True),) for text in texts]
    rows += [(Segment(text[:9], False), Segment(text[9:], True)) for text in texts]
    rows += [
        (Segment(a, True), Segment(b, False), Segment(a, True))
        for a, b in zip(texts, reversed(texts), strict=True)
    ]
    teacher = tiny.llama(len(reader) + PADDING)
    folder = tmp_path_factory.mktemp("tokenizer")
    return FakeStore.from_teacher(teacher, reader, rows, folder, top_k=16)


@pytest.fixture(scope="module", autouse=True)
def shared_maps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep each map for all tests that do not look at what is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGITSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where maps are kept, with nothing in it."""
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maps"


@functools.cache
def student(kind: str) -> ByteTokenizer:
    return ByteTokenizer(tokenizers.build(kind))


def both() -> tuple[ByteTokenizer, ByteTokenizer]:
    return student("gpt2"), student("dummy space")


def kept(kind: str, count: Callable[[], Seen] = nothing_seen, **read_by: Any) -> EventMap:
    return map_of(kind, *both(), read_by, count)


def assert_same(a: EventMap, b: EventMap) -> None:
    for each in fields(EventMap):
        np.testing.assert_array_equal(getattr(a, each.name), getattr(b, each.name))


# ---- kept ----


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mined"])
def test_a_kept_map_is_the_one_that_was_made(kind: str, cache: Path) -> None:
    made = kept(kind)
    (file,) = cache.iterdir()
    written = file.read_bytes()

    def never() -> Seen:
        raise AssertionError("a kept map is not counted again")

    assert_same(kept(kind, never), made)
    assert_same(make_map(kind, *both()), made)
    assert file.read_bytes() == written


def test_maps_that_learn_are_kept_for_each_store_and_others_for_all(cache: Path) -> None:
    for digest in ("a", "b"):
        kept("canonical", store=digest)
        kept("counted", store=digest)
    assert len(list(cache.iterdir())) == 3


def test_a_map_of_other_tokenizers_under_this_name_is_an_error(cache: Path) -> None:
    kept("prefix")
    (file,) = cache.iterdir()
    kept("canonical")
    (other,) = set(cache.iterdir()) - {file}
    other.write_bytes(file.read_bytes())
    with pytest.raises(MismatchError, match=r"map differs\. Run `rm"):
        kept("canonical")


def test_a_damaged_map_is_an_error_whatever_byte_it_is(cache: Path) -> None:
    kept("strict")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    places = [*range(100), *np.linspace(100, len(whole) - 100, 50), *range(-100, 0)]
    damaged = [bytearray(whole) for _ in places]
    for at, each in zip(places, damaged, strict=True):
        each[int(at)] ^= 0x41
    for data in [*damaged, *(whole[:size] for size in (0, 1, 100, len(whole) - 1))]:
        file.write_bytes(data)
        with pytest.raises(MismatchError, match="Run `rm"):
            kept("strict")


def test_without_a_place_to_keep_it_a_map_is_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "file"))
    assert_same(kept("strict"), make_map("strict", *both()))


def keep_one(path: str) -> None:
    kept("canonical")
    Path(path).touch()


def test_processes_that_make_one_map_at_once_leave_one_that_can_be_read(
    tmp_path: Path, cache: Path
) -> None:
    context = multiprocessing.get_context("fork")
    paths = [tmp_path / f"done-{i}" for i in range(3)]
    workers = [context.Process(target=keep_one, args=(str(path),)) for path in paths]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert all(path.exists() for path in paths)
    assert len(list(cache.iterdir())) == 1
    assert_same(kept("canonical"), make_map("canonical", *both()))


# ---- in a dataset ----


def test_pairs_are_counted_as_they_begin_together_in_the_text(store: FakeStore) -> None:
    """In whole texts: a plain count knows no context. The first token has no record."""
    texts = [each.segments[0].text for each in store.texts if len(each.segments) == 1]
    whole = replace(store, records=store.records[: len(texts)], texts=store.texts[: len(texts)])
    data = StoreDataset(whole, student("digits apart"), [])
    seen = data.seen()
    pairs = zip(seen.teacher.tolist(), seen.student.tolist(), strict=True)
    found = dict(zip(pairs, seen.count.tolist(), strict=True))
    assert not seen.space.any()
    assert found == pairs_seen(data.teacher, data.reader.tokenizer, texts, first=1)


def targets(data: StoreDataset) -> list[dict[str, Any]]:
    return [data[i].teacher["mapped_kl"] for i in range(len(data)) if not data[i].skipped]


def sums(arrays: dict[str, Any]) -> Any:
    """Add up each label's target, with its rest."""
    label = np.repeat(np.arange(len(arrays["entry_count"])), arrays["entry_count"])
    mass = np.bincount(label, np.exp(arrays["entry_logmass"].astype(float)), len(arrays["index"]))
    return mass + np.exp(arrays["rest_logmass"].astype(float))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", STUDENTS)
def test_every_target_sums_to_one(store: FakeStore, kind: str, reader: str) -> None:
    if kind == "mined":
        pytest.importorskip("rapidfuzz")
    data = StoreDataset(store, student(reader), ["mapped_kl"], map=kind)
    found = [sums(arrays) for arrays in targets(data)]
    np.testing.assert_allclose(np.concatenate(found), 1, atol=1e-4)
    # `exact` asks only where the teacher's first choice is a token of the student, too.
    assert sum(map(len, found)) > (50 if kind == "exact" else 300)


@pytest.mark.parametrize("kind", OURS)
def test_ids_that_only_a_padded_head_has_are_nobodys(store: FakeStore, kind: str) -> None:
    """In every place of a text: between two of the teacher's tokens, and inside of one."""
    size = store.spec.vocab_size
    padded = [np.where(r.entry_ids % 3 == 0, size - 1 - r.entry_ids % PADDING, r.entry_ids)
              for r in store.records]  # fmt: skip
    changed = [
        replace(r, entry_ids=ids.astype(np.uint32))
        for r, ids in zip(store.records, padded, strict=True)
    ]
    data = StoreDataset(replace(store, records=changed), student("digits apart"), ["mapped_kl"],
                        map=kind)  # fmt: skip
    assert (np.concatenate(padded) >= data.teacher.size).mean() > 0.2
    ids = np.concatenate([arrays["entry_ids"] for arrays in targets(data)])
    assert len(ids)
    assert ids.max() < max(data.reader.tokenizer.size, data.mappings["mapped_kl"].made.events)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("reader", STUDENTS)
def test_a_record_that_says_nothing_of_its_own_token_still_has_a_target(
    store: FakeStore, kind: str, reader: str
) -> None:
    """As of an import: no probability, and entries without the token that came; or no entries."""
    rng = np.random.default_rng(0)
    records = []
    for r in store.records:
        unknown = rng.random(len(r)) < 0.5
        owner = np.repeat(np.arange(len(r)), r.entry_count)
        listed = r.entry_ids != r.token_ids[owner]
        dropped = (unknown[owner] & ~listed) | (rng.random(len(r))[owner] < 0.1)
        mass = np.bincount(owner, np.exp(r.entry_logprobs) * dropped, len(r))
        records.append(
            replace(
                r,
                token_logprob=np.where(unknown, np.nan, r.token_logprob).astype(np.float32),
                entry_count=np.bincount(owner[~dropped], minlength=len(r)),
                entry_ids=r.entry_ids[~dropped],
                entry_logprobs=r.entry_logprobs[~dropped],
                tail_logmass=np.log(np.exp(r.tail_logmass) + mass).astype(np.float32),
            )
        )
    data = StoreDataset(replace(store, records=records), student(reader), ["mapped_kl"], map=kind)
    for arrays in targets(data):
        assert not np.isnan(arrays["entry_logmass"]).any()
        assert not np.isnan(arrays["rest_logmass"]).any()
        np.testing.assert_allclose(sums(arrays), 1, atol=1e-4)


def test_a_worker_gets_the_maps_and_makes_the_same_targets(store: FakeStore) -> None:
    data = StoreDataset(store, student("digits apart"), ["mapped_kl"])
    size = len(pickle.dumps(data))
    before = targets(data)
    sent = pickle.dumps(data)
    for a, b in zip(targets(pickle.loads(sent)), before, strict=True):
        for name, array in a.items():
            np.testing.assert_array_equal(array, b[name])
    # A reference to the bytes of each token is sent; not what a worker can make of them.
    assert len(sent) < size + 6 * data.teacher.size + 1000


# ---- laws of the loss ----


def dense(arrays: dict[str, Any], events: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay targets out: (N, events) and (N,) the rest."""
    label = np.repeat(np.arange(len(arrays["index"])), arrays["entry_count"])
    target = np.full((len(arrays["index"]), events), -np.inf)
    target[label, arrays["entry_ids"]] = arrays["entry_logmass"]
    return torch.tensor(target), torch.tensor(arrays["rest_logmass"].astype(float))


@pytest.mark.parametrize("kind", ["counted", "events", "prefix", "p_kl"])
def test_a_student_that_agrees_with_the_targets_has_no_loss_and_no_gradient(
    store: FakeStore, kind: str
) -> None:
    data = StoreDataset(store, student("dummy always"), ["mapped_kl"], map=kind)
    size = max(data.reader.tokenizer.size, data.mappings["mapped_kl"].made.events)
    for arrays in targets(data)[:6]:
        target, rest = dense(arrays, size)
        logits = torch.cat([target, rest[:, None]], 1).clamp(min=-200).requires_grad_()
        log_p = logits.log_softmax(-1)
        is_target = torch.isfinite(target)
        p_rest = torch.cat([log_p[:, :-1].masked_fill(is_target, -torch.inf), log_p[:, -1:]], 1)
        loss = mapped_kl(log_p[:, :-1], p_rest.logsumexp(1), target, rest)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.abs().max() < 1e-4
        assert grad.abs().max() < 1e-4


def test_one_tokenizer_under_other_ids_has_the_loss_of_one_tokenizer(store: FakeStore) -> None:
    """The map is a renumbering: mapped_kl of the mapped entries is tail_kl of the entries."""
    rng, size = np.random.default_rng(0), store.spec.vocab_size
    new_id = rng.permutation(size).astype(np.int32)
    data = StoreDataset(store, student("digits joined"), ["mapped_kl"])
    identity = data.mappings["mapped_kl"].made
    made = replace(identity, event=np.where(identity.event < 0, -1, new_id[identity.event]))
    plain = targets(data)
    data.mappings["mapped_kl"] = type(data.mappings["mapped_kl"])(made)
    for a, b in zip(plain, targets(data), strict=True):
        student_logits = torch.tensor(rng.normal(size=(len(a["index"]), size)))
        renamed = torch.empty_like(student_logits)
        renamed[:, torch.from_numpy(new_id).long()] = student_logits
        values = []
        for arrays, logits, loss in ((a, student_logits, tail_kl), (b, renamed, mapped_kl)):
            target, rest = dense(arrays, size)
            log_p = logits.log_softmax(-1)
            p_rest = log_p.masked_fill(torch.isfinite(target), -torch.inf).logsumexp(1)
            values.append(loss(log_p, p_rest, target, rest))
        torch.testing.assert_close(*values, rtol=1e-6, atol=1e-9)


def test_events_that_hold_others_have_no_greater_loss(store: FakeStore) -> None:
    """mapped_kl over the components <= mapped_kl over the student's tokens that make them up."""
    reader = student("digits apart")
    data = StoreDataset(store, reader, ["mapped_kl"], map="canonical")
    events = make_map("events", data.teacher, reader)
    assert events.of_token is not None
    assert events.events < reader.size
    of_token, rng = torch.from_numpy(events.of_token).long(), np.random.default_rng(0)
    for arrays in targets(data)[:6]:
        few, rest = dense(arrays, reader.size)
        # The rest is spread over all tokens: then each event has all of its tokens' mass.
        target = (few.exp() + rest.exp()[:, None] / reader.size).log()
        nothing = torch.full_like(rest, -torch.inf)
        log_p = torch.tensor(rng.normal(size=target.shape)).log_softmax(-1)

        def joined(log_mass: torch.Tensor) -> torch.Tensor:
            shape = (len(log_mass), events.events)
            return torch.zeros(shape).double().index_add_(1, of_token, log_mass.exp()).log()

        both = ((target, log_p), (joined(target), joined(log_p)))
        values = [mapped_kl(p, nothing, t, nothing) for t, p in both]
        assert (values[1] <= values[0] + 1e-9).all()
        assert (values[1] < values[0] - 1e-3).any()
