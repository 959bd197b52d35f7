"""Batches: how they are cut, how large they are, what happens when one does not fit.

And the claim that makes all of it harmless: what else is in its batch changes a record by rounding
alone. The measure of "rounding" is stated in `logitstore.capture.passes.teacher_pass` and held
here.
"""

import json
import logging
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import logitstore
from logitstore.capture import preview
from logitstore.capture.estimate.budget import largest_that_fits, smallest_that_is_fast
from logitstore.capture.passes import teacher_pass
from logitstore.capture.passes.teacher_pass import TeacherPass, batches
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.head import TeacherHead
from logitstore.capture.teacher.memory import is_out_of_memory
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError
from logitstore.records import SequenceText
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from logitstore.text.tokenized_text import TokenizedText
from tests.kit.families import FAMILIES, V, build
from tests.kit.rows import texts_file

# What is read is counted, and the rows of the test before the capture are read twice.
SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 700, "self_test": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("batching") / "rows.jsonl", [*tiny.corpus(), ""])


@pytest.fixture(scope="module")
def whole(
    teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> logitstore.LogitStore:
    """The store when everything fits."""
    return run(teacher, data, tmp_path_factory.mktemp("batching") / "whole")


def run(teacher: Path, data: Path, out: Path, **settings: Any) -> logitstore.LogitStore:
    return logitstore.capture(teacher, str(data), out, **(SETTINGS | settings))


def journal(out: Path, event: str) -> list[dict[str, Any]]:
    lines = out.with_name(f"{out.name}.journal.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def sequence(length: int, row: int = 0, records: bool = True) -> TeacherSequence:
    zeros = np.zeros(length, np.int64)
    text = TokenizedText(
        token_ids=zeros + 5,
        has_record=(np.arange(length) > 0) & records,
        byte_starts=zeros,
        byte_lengths=zeros,
        is_eos=zeros.astype(bool),
        text_starts=zeros,
        text_ends=zeros,
        heads=zeros,
        tails=zeros,
        has_added_space=zeros.astype(bool),
        is_verbatim=zeros == 0,
        status="ok",
    )
    return TeacherSequence(SequenceText(row, 0, "ok", ()), text)


# ---- how batches are cut ----

LENGTHS = st.lists(st.integers(2, 60), max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_every_sequence_is_in_one_batch_and_no_batch_is_over_budget(
    lengths: list[int], budget: int
) -> None:
    sequences = [sequence(n, records=n % 7 != 0) for n in lengths]
    cut = list(batches(sequences, budget))
    read = [i for batch in cut for i in batch]
    assert sorted(read) == [i for i, s in enumerate(sequences) if s.records]
    for batch in cut:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(LENGTHS, st.integers(1, 200))
def test_batches_are_buckets_of_like_length(lengths: list[int], budget: int) -> None:
    """No batch has a sequence that is longer than one of the batch before it."""
    cut = list(batches([sequence(n) for n in lengths], budget))
    for one, other in pairwise(cut):
        assert min(lengths[i] for i in one) >= max(lengths[i] for i in other)


def test_padding_of_a_shard_is_a_few_percent() -> None:
    """Of a million tokens in rows of very different lengths; as they come it is most of them."""
    drawn = np.random.default_rng(0).lognormal(5.5, 1, 4000)
    lengths = np.clip(drawn, 2, 4096).astype(int)
    cut = list(batches([sequence(int(n)) for n in lengths], 8192))
    padded = sum(len(batch) * lengths[batch].max() for batch in cut)
    assert padded / lengths.sum() - 1 < 0.03
    as_they_come = np.split(lengths, np.cumsum([len(batch) for batch in cut])[:-1])
    assert sum(len(part) * part.max() for part in as_they_come) / lengths.sum() - 1 > 1


# ---- a batch that does not fit ----


class Memory:
    """A device on which so many padded tokens fit; counts the sequences that it has read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int, error: Any = None) -> None:
        self.tokens, self.tried, self.read = tokens, 0, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        call = TeacherHead.__call__

        def limited(head: TeacherHead, inputs: Any, *rest: Any) -> Any:
            self.tried += 1
            if inputs["input_ids"].numel() > self.tokens:
                raise self.error
            self.read += len(inputs["input_ids"])
            return call(head, inputs, *rest)

        monkeypatch.setattr(TeacherHead, "__call__", limited)


def assert_same_records(found: logitstore.LogitStore, wanted: logitstore.LogitStore) -> None:
    """But for rounding: half a step of the code may become a whole one."""
    assert len(found) == len(wanted)
    for i in range(len(wanted)):
        assert found.text(i) == wanted.text(i)
        np.testing.assert_array_equal(found[i].token_ids, wanted[i].token_ids)
        np.testing.assert_allclose(found[i].token_logprob, wanted[i].token_logprob, atol=1.1 / 512)
        np.testing.assert_allclose(found[i].tail_logmass, wanted[i].tail_logmass, atol=1.1 / 256)


@pytest.mark.parametrize("tokens", [300, 130])
def test_a_batch_that_does_not_fit_is_halved_and_no_row_lost_or_doubled(
    teacher: Path,
    data: Path,
    whole: logitstore.LogitStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tokens: int,
) -> None:
    """The very first batch included: a shard is one batch here, and none of them fits."""
    memory = Memory(monkeypatch, tokens)
    store = run(teacher, data, tmp_path / "s", log_json=tmp_path / "log")
    assert_same_records(store, whole)
    assert memory.read == int((whole.token_counts > 0).sum()), "a row was read twice, or never"
    notes = journal(tmp_path / "s", "out of memory")
    assert all(note["tokens"] > tokens for note in notes)
    assert "Tried to allocate 2 GiB" in notes[0]["why"]
    logged = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert logged.count("out of memory") == len(notes) >= 1
    warned = [r for r in caplog.records if "it is read in halves" in r.message]
    assert len(warned) == 1, "once is enough"
    assert "with a lower --tokens-per-batch" in warned[0].message
    assert verify_store(store.path, deep=True).damaged == []


def test_only_the_batch_that_did_not_fit_is_cut_differently(
    teacher: Path,
    data: Path,
    whole: logitstore.LogitStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, batches_read = TeacherPass.forward, []

    def once(self: TeacherPass, batch: Any) -> Any:
        batches_read.append(len(batch))
        if len(batches_read) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return read(self, batch)

    monkeypatch.setattr(TeacherPass, "forward", once)
    store = run(teacher, data, tmp_path / "s")
    same = [
        (store.path / "shards" / f"{i:05d}.zarr.zip").read_bytes()
        == (whole.path / "shards" / f"{i:05d}.zarr.zip").read_bytes()
        for i in store.shards
    ]
    assert [i for i, is_same in enumerate(same) if not is_same] in ([], [2])
    assert batches_read[3] + batches_read[4] == batches_read[2]


@pytest.mark.slow
def test_one_row_that_does_not_fit_is_named_with_what_to_do(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(teacher, data, tmp_path / "whole")
    longest = int(np.argmax(whole.token_counts[36:])) + 36
    first = next(i for i in whole.shards if longest < whole.plan.shard_rows(i)[1])
    tokens = int(whole.token_counts[longest])
    with monkeypatch.context() as patched:
        Memory(patched, tokens)  # and BOS
        with pytest.raises(
            InputError,
            match=rf"row {longest}: one sequence of {tokens + 1} tokens alone does not fit the "
            r"memory of cpu\. Every shard before it is good\. .*--device-map auto.*run the same "
            r"command again; .*--max-length, --dtype bfloat16 or --quantization bitsandbytes-8bit",
        ):
            run(teacher, data, tmp_path / "s")
    assert len(list((tmp_path / "s" / "shards").iterdir())) == first
    assert verify_store(tmp_path / "s", allow_partial=True, deep=True).damaged == []
    assert run(teacher, data, tmp_path / "s").is_complete


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("anything"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError(" out of memory."), False),
    ],
)
def test_what_counts_as_out_of_memory(
    teacher: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    is_memory: bool,
) -> None:
    assert is_out_of_memory(error) == is_memory
    Memory(monkeypatch, 600, error)
    if is_memory:
        assert run(teacher, data, tmp_path / "s").is_complete
    else:
        with pytest.raises(type(error), match=str(error)):
            run(teacher, data, tmp_path / "s")


def test_what_failed_is_let_go_of_before_the_halves_are_tried(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error holds the frames it came through, and they the tensors that filled the memory."""
    forward, held = TeacherPass.forward, []

    def fails_holding(self: TeacherPass, batch: Any) -> Any:
        assert not any(ref() is not None for ref in held), "memory of a failed batch is still held"
        if len(held) < 3 and len(batch) > 1:
            large = torch.zeros(10)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch)

    monkeypatch.setattr(TeacherPass, "forward", fails_holding)
    run(teacher, data, tmp_path / "s")
    assert len(held) == 3


def test_a_teacher_that_does_not_fit_is_told_before_anything_is_written(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(
        "logitstore.capture.teacher.weights.AutoModelForCausalLM.from_pretrained", full
    )
    with pytest.raises(InputError, match=r"does not fit the memory of cpu .*--device-map auto"):
        run(teacher, data, tmp_path / "s")
    assert not (tmp_path / "s").exists()


# ---- how large a batch is ----


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_the_largest_that_fits_is_found_to_within_an_eighth(limit: int, most: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    found = largest_that_fits(fits, most)
    best = min(limit, most)
    assert found <= best
    assert found >= best * 7 // 8
    assert (found == 0) == (limit == 0)
    assert found == 0 or found in tried, "recorded what was never tried"
    assert max(tried) <= most
    assert len(tried) <= 2 + most.bit_length() + 3


def test_a_batch_on_a_cpu_grows_while_that_pays() -> None:
    speeds = {1: 10.0, 2: 19.0, 4: 30.0, 8: 31.0, 16: 90.0}
    assert smallest_that_is_fast(speeds.__getitem__, 100) == 4
    assert smallest_that_is_fast(speeds.__getitem__, 3) == 2
    assert smallest_that_is_fast(speeds.__getitem__, 0) == 1
    assert smallest_that_is_fast(lambda n: None if n > 2 else speeds[n], 100) == 2
    assert smallest_that_is_fast(lambda n: None, 100) == 1


def test_an_automatic_budget_is_found_before_the_first_shard_and_kept(
    teacher: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "s"
    monkeypatch.setattr(teacher_pass, "raises_out_of_memory", lambda device: True)
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        Memory(patched, 500)
        store = run(teacher, data, out, tokens_per_batch="auto")
    found = store.provenance["tokens_per_batch"]
    longest = max(int(n) for n in store.token_counts) + 1  # and BOS
    assert 500 * 7 // 8 - longest < found <= 500
    assert found % longest == 0
    assert journal(out, "out of memory") == [], "what was found to fit does not"
    assert f"tokens per batch: {found} (auto: the most that fits with sequences of" in caplog.text
    assert journal(out, "capture")[0]["tokens_per_batch"] == found
    told = run(teacher, data, tmp_path / "told", tokens_per_batch=found)
    assert tree(told.path) == tree(out)

    def never(*_: Any) -> Any:
        raise AssertionError("looked for a budget that is recorded")

    monkeypatch.setattr("logitstore.capture.own_teacher.find_budget", never)
    (out / "DONE").unlink()
    (out / "shards" / "00001.zarr.zip").unlink()
    for again in ("auto", None):
        assert run(teacher, data, out, tokens_per_batch=again).is_complete
        assert tree(told.path) == tree(out)
        (out / "DONE").unlink()
        (out / "shards" / "00001.zarr.zip").unlink()


def test_an_automatic_budget_ends_where_not_one_row_fits(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_pass, "raises_out_of_memory", lambda device: True)
    Memory(monkeypatch, 10)
    with pytest.raises(InputError, match=r"row \d+: one sequence of \d+ tokens alone does not fit"):
        run(teacher, data, tmp_path / "s", tokens_per_batch="auto")
    assert not (tmp_path / "s").exists()


def test_an_automatic_budget_on_a_cpu_says_that_it_is_a_rule(
    teacher: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        store = run(teacher, data, tmp_path / "s", tokens_per_batch="auto")
    assert 1 <= store.provenance["tokens_per_batch"] <= 8192
    assert "(auto: a CPU raises no error when memory runs out, so this is the smallest" in (
        caplog.text
    )


# ---- what else is in the batch does not matter ----

ROWS = (40, 33, 21, 20, 9, 3)


def distributions(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(all rows in one padded batch, each row alone): log-probabilities of their positions."""
    vocab = model.config.get_text_config().vocab_size
    lengths = torch.tensor(ROWS)
    mask = torch.arange(max(ROWS)) < lengths[:, None]
    gen = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocab, mask.shape, generator=gen) * mask
    with torch.inference_mode():
        both = model(input_ids=ids, attention_mask=mask.long()).logits[mask]
        alone = [
            model(input_ids=row[None, :n], attention_mask=torch.ones(1, n).long()).logits[0]
            for row, n in zip(ids, ROWS, strict=True)
        ]
    return both.float().log_softmax(-1), torch.cat(alone).float().log_softmax(-1)


def l1_mean(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.exp() - b.exp()).abs().sum(-1).mean())


MODELS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: build(name) for name in FAMILIES if name != "bart bias"},
    "deeper": lambda: tiny.llama(V, hidden_size=64, num_hidden_layers=6),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*bos_token_id must be")
def test_in_float32_another_batch_is_less_than_a_thousandth_of_a_nat(name: str) -> None:
    both, alone = distributions(MODELS[name]())
    likely = alone > -15  # what a code may hold; beyond, float32 itself has fewer digits left
    assert float((both - alone)[likely].abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_in_half_precision_another_batch_is_no_more_than_half_precision_itself(
    name: str, dtype: torch.dtype
) -> None:
    exact, _ = distributions(MODELS[name]())
    both, alone = distributions(MODELS[name]().to(dtype))
    assert l1_mean(both, alone) <= l1_mean(both, exact)
    assert l1_mean(both, exact) > 1e-5, "nothing to compare with"


def test_another_budget_is_the_same_store_but_for_rounding(
    teacher: Path, data: Path, whole: logitstore.LogitStore, tmp_path: Path
) -> None:
    for budget in (1, 100):
        store = run(teacher, data, tmp_path / str(budget), tokens_per_batch=budget)
        assert_same_records(store, whole)
        assert store.digest == whole.digest


@pytest.mark.slow
def test_a_dry_run_reads_in_halves_too_and_finds_a_budget_that_it_does_not_write(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_pass, "raises_out_of_memory", lambda device: True)
    Memory(monkeypatch, 150)
    for budget in (8192, "auto"):
        settings = SETTINGS | {"tokens_per_batch": budget}
        found = preview(teacher, str(data), tmp_path / "s", **settings)
        assert found.costs() is not None
    assert list(tmp_path.iterdir()) == []
