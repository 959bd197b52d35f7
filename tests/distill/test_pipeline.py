"""The whole way, through the real parts: teacher -> capture -> store on disk -> trainer.

Errors of position anywhere on it show here: a student that is its own teacher has nothing to learn,
and a cached loss is the live one within what the store says of its own exactness.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import logitstore
from distill.data.collator import Collator
from distill.data.dataset import StoreDataset
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore.records import TokenRecords
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer

TOP_K = 6  # of a vocabulary of 400: most of the probability lies outside


@pytest.fixture(scope="module")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    folder = tmp_path_factory.mktemp("store")
    rows = [{"prompt": "Q: why 🙂?\n", "completion": text} for text in tiny.corpus()]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return logitstore.capture(
        str(teacher), str(data), folder / "store", top_k=TOP_K, shard_text_bytes=700
    )


class Shifted:
    """The same store with every record's distribution one position late."""

    def __init__(self, store: LogitStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __len__(self) -> int:
        return len(self._store)

    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]:
        return [shifted(r) for r in self._store.read_many(indices)]


def shifted(records: TokenRecords) -> TokenRecords:
    assert records.entry_ids is not None
    return replace(
        records,
        entry_ids=np.roll(records.entry_ids, TOP_K),
        entry_logprobs=np.roll(records.entry_logprobs, TOP_K),
        tail_logmass=np.roll(records.tail_logmass, 1),
    )


def evaluate(
    model: PreTrainedModel, tokenizer: Any, store: Any, out: Path, **settings: Any
) -> dict[str, float]:
    args = CachedTeacherConfig(
        output_dir=str(out),
        store="given",
        eval_store="given",
        use_cpu=True,
        disable_tqdm=True,
        **{"loss": "uld:1,mapped_kl:1"} | settings,
    )
    trainer = CachedTeacherTrainer(model, args, store, store, processing_class=tokenizer)
    found: dict[str, float] = trainer.evaluate()
    return found


def load(folder: Path) -> tuple[PreTrainedModel, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [{"pairing": "bytes"}, {"pairing": "position"}, {"map": "strict"}],
    ids=["bytes", "position", "strict"],
)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_for_the_codec(
    teacher: Path, store: LogitStore, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The alignment test: off by one position, wrong mask, wrong vocabulary all show here."""
    settings = settings | {"uncovered": "scale"}  # where no pair is, there is the text to learn
    found = evaluate(*load(teacher), store, tmp_path, **settings)
    assert found["eval_uld_loss"] <= store.fidelity.l1_max
    assert found["eval_mapped_kl_loss"] <= 1e-4
    assert found["eval_covered_fraction"] >= 0.95  # by position, EOS has no pair

    wrong = evaluate(*load(teacher), Shifted(store), tmp_path, **settings)
    assert wrong["eval_uld_loss"] > 10 * found["eval_uld_loss"]
    assert wrong["eval_mapped_kl_loss"] > 100 * max(found["eval_mapped_kl_loss"], 1e-5)


def live_logprobs(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].double().log_softmax(-1)


def two_pointer_groups(teacher_ends: list[int], student_ends: list[int]) -> list[list[list[int]]]:
    """[teacher tokens, student tokens] of the smallest runs that end together; no holes here."""
    groups, t, s = [], 0, 0
    while t < len(teacher_ends) and s < len(student_ends):
        run_t, run_s = [t], [s]
        while teacher_ends[run_t[-1]] != student_ends[run_s[-1]]:
            if teacher_ends[run_t[-1]] < student_ends[run_s[-1]]:
                run_t.append(run_t[-1] + 1)
            else:
                run_s.append(run_s[-1] + 1)
        groups.append([run_t, run_s])
        t, s = run_t[-1] + 1, run_s[-1] + 1
    return groups


def side(model: PreTrainedModel, tokenizer: ByteTokenizer, segments: Sequence[Any]) -> Any:
    """(ends, log-prob rows, own log-probs) of the supervised tokens, by plain code."""
    text = tokenizer.encode(segments)
    at = np.flatnonzero(text.has_record)
    rows = live_logprobs(model, text.token_ids)[at - 1]
    own = rows.gather(1, torch.from_numpy(text.token_ids[at])[:, None]).squeeze(1)
    ends = (text.byte_starts + text.byte_lengths)[at]
    # The end of the text is one more thing that both sides say, behind the last byte.
    return (ends + text.is_eos[at]).tolist(), rows, own


def live_uld(teacher: Any, student: Any, groups: list[list[list[int]]]) -> torch.Tensor:
    """Full-vocabulary ULD of each group, straight from the definition, float64."""
    values = []
    for t, s in groups:
        q = (teacher[1][t[-1]].exp() * teacher[2][t[:-1]].sum().exp()).sort(descending=True).values
        p = (student[1][s[-1]].exp() * student[2][s[:-1]].sum().exp()).sort(descending=True).values
        width = max(len(p), len(q))
        p, q = (torch.nn.functional.pad(x, (0, width - len(x))) for x in (p, q))
        values.append((p - q).abs().sum())
    return torch.stack(values)


@pytest.mark.parametrize("family", ["unigram", "sp_bpe", "byte_bpe"])
def test_cached_uld_is_the_live_full_vocabulary_one_within_its_certified_gap(
    teacher: Path, store: LogitStore, tmp_path: Path, family: str
) -> None:
    """For every pair of every batch: K is a sixtieth of V, the texts have emoji, CJK and marks."""
    tokenizer = getattr(tiny, family)()
    model = tiny.llama(len(tokenizer), seed=3)
    how = {"loss": "uld:1", "pairing": "bytes", "uncovered": "none"}  # the pairs alone
    args = CachedTeacherConfig(output_dir=str(tmp_path), store="given", use_cpu=True, **how)
    trainer = CachedTeacherTrainer(model, args, store, processing_class=tokenizer)
    student, live_teacher = ByteTokenizer(tokenizer), load(teacher)
    data = StoreDataset(store, student, ("uld",), pairing="bytes")
    collate = Collator(student.pad_id, ("uld",))
    checked = 0
    for start in range(0, len(data), 6):
        indices = range(start, min(start + 6, len(data)))
        batch = collate([data[i] for i in indices])
        with torch.no_grad():
            term = trainer.batch_loss.terms(model, batch)["uld"]
        want = []
        for i in indices:
            segments = store.text(int(data.sequences[i])).segments
            sides = (
                side(live_teacher[0], ByteTokenizer(live_teacher[1]), segments),
                side(model, student, segments),
            )
            want.append(live_uld(*sides, two_pointer_groups(sides[0][0], sides[1][0])))
        live = torch.cat(want)
        assert live.shape == term.values_P.shape
        excess = (live - term.values_P.double()).abs() - term.bound_P.double()
        assert float(excess.max()) <= 1e-5
        assert float((live - term.values_P.double()).abs().max()) > 1e-3  # the gap is needed
        checked += len(live)
    assert checked > 500


def test_multi_byte_text_is_aligned_to_the_byte(teacher: Path, store: LogitStore) -> None:
    """Emoji, joined emoji, CJK, combining marks: every group covers the same bytes on both sides,
    and they are all of the text."""
    for family in ("unigram", "sp_bpe", "byte_bpe"):
        tokenizer = ByteTokenizer(getattr(tiny, family)())
        data = StoreDataset(store, tokenizer, ("uld", "mapped_kl"))
        for i in range(36, 48):
            example = data[i]
            assert not example.skipped
            assert example.aligned == int(example.is_label.sum())
            records, text = (
                store[int(data.sequences[i])],
                tokenizer.encode(store.text(int(data.sequences[i])).segments),
            )
            stops = np.cumsum(text.byte_lengths[text.has_record])
            pairs = example.teacher["uld"]["index"]
            ends = set((records.byte_starts + records.byte_lengths).tolist())
            assert set(stops[pairs].tolist()) <= ends


def test_an_unfinished_store_trains_only_when_asked_to(
    teacher: Path, store: LogitStore, tmp_path: Path
) -> None:
    import shutil

    partial = shutil.copytree(store.path, tmp_path / "partial")
    (partial / "DONE").unlink()
    (partial / "shards" / "00001.zarr.zip").unlink()
    model, tokenizer = load(teacher)
    for allow in (False, True):
        args = CachedTeacherConfig(
            output_dir=str(tmp_path / "out"),
            store=str(partial),
            loss="uld:1",
            allow_partial=allow,
            use_cpu=True,
        )
        if allow:
            trainer = CachedTeacherTrainer(model, args, processing_class=tokenizer)
            assert 0 < len(trainer.data) < len(store)
        else:
            with pytest.raises(logitstore.errors.IncompleteStoreError, match="allow-partial"):
                CachedTeacherTrainer(model, args, processing_class=tokenizer)
