"""`--logit-std` and `--draws` through the real teacher pass, and the losses that read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

import logitstore
from distill.alignment.map_entries import VocabularyMap
from distill.data.ragged import rectangles, tensors_of
from distill.losses.aligned import Aligned
from distill.losses.multilevel_ot import COLUMNS, multilevel_ot
from logitstore.capture.again import capture_again
from logitstore.capture.teacher import head as head_module
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError, MismatchError
from logitstore.info import facts, info_text
from logitstore.testing import tiny
from logitstore.testing.fake_store import dense_logprobs
from logitstore.testing.stores import tree
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import ragged_rows, trainer_of

WIDTH = len(tiny.byte_bpe())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`same` and `other`, teachers with the student's tokenizer and another; `rows.jsonl`."""
    folder = tmp_path_factory.mktemp("blocks")
    tiny.save(folder / "same", tiny.llama(WIDTH, seed=7), tiny.byte_bpe())
    tiny.save(folder / "other", tiny.llama(len(tiny.unigram()), seed=7), tiny.unigram())
    rows = [
        {"prompt": "".join(s.text for s in segments[:-1]), "completion": segments[-1].text}
        for segments in ragged_rows()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(folder: Path, out: Path, teacher: str = "same", **settings: Any) -> logitstore.LogitStore:
    settings = {"shard_text_bytes": 150} | settings
    return logitstore.capture(folder / teacher, folder / "rows.jsonl", out, **settings)


def rows_of(store: logitstore.LogitStore) -> list[tuple[Any, ...]]:
    """Of each sequence: its records and its text."""
    return [(store[i], store.text(i)) for i in range(len(store)) if len(store[i])]


@pytest.mark.parametrize(
    ("top_k", "max_tail", "draws"),
    [(0, None, 3000), (4, None, 40), (16, 0.5, 40), (WIDTH, None, 3)],
)
def test_sampled_kl_of_a_captured_store_is_the_live_one(
    folder: Path, tmp_path: Path, top_k: int, max_tail: float | None, draws: int
) -> None:
    """Head and tail mass from the live teacher in float64; which tokens were drawn from the store.

    On average over draws it is the whole live divergence: `test_draws` says why.
    """
    store = run(folder, tmp_path / "s", top_k=top_k, max_tail=max_tail, draws=draws)
    student = tiny.llama(WIDTH)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "same")
    found = trainer_of(student, store, tmp_path, eval_store=store, loss="sampled_kl:1").evaluate()
    values = []
    for records, line in rows_of(store):
        tokens = ByteTokenizer(tiny.byte_bpe()).encode(line.segments)
        at = np.flatnonzero(tokens.has_record) - 1
        q, p = (
            dense_logprobs(teacher, tokens.token_ids)[at],
            dense_logprobs(student, tokens.token_ids)[at],
        )
        first = np.cumsum(records.draw_count) - records.draw_count
        for t in range(len(records)):
            head = q[t].argsort(descending=True)[: int(records.entry_count[t])]
            target = torch.zeros(WIDTH).double()
            own = slice(first[t], first[t] + records.draw_count[t])
            ids = torch.from_numpy(records.sample_ids[own].astype(np.int64))
            counts = torch.from_numpy(records.sample_counts[own].astype(np.float64))
            assert counts.sum() in (draws, 0)
            tail = 1 - q[t].exp()[head].sum()
            target.index_add_(0, ids, counts / draws * tail)
            target[head] = q[t].exp()[head]
            values.append(float(torch.xlogy(target, target).sum() - (target * p[t]).sum()))
    assert found["eval_sampled_kl_loss"] == pytest.approx(np.mean(values), rel=2e-3)
    assert verify_store(store.path, deep=True).damaged == []


def test_a_token_drawn_more_often_than_a_byte_says_is_one_target(
    folder: Path, tmp_path: Path
) -> None:
    """Stored twice or more, read as once: two halves of a target would have another entropy."""
    store = run(folder, tmp_path / "s", top_k=0, draws=4096)
    is_again = False
    for records, _ in rows_of(store):
        t = np.arange(len(records))
        pairs = np.stack([t, t + 1, t, t + 1], 1)
        itself = VocabularyMap.of_ids(np.arange(WIDTH, dtype=np.int32))
        found = rectangles(tensors_of(Aligned(records, pairs, itself).draws()))
        found = {key: array.numpy() for key, array in found.items()}
        for ids, counts in zip(found["draw_ids"], found["draw_times"], strict=True):
            assert len(set(ids[counts > 0])) == (counts > 0).sum()
            assert counts.sum() == 4096
        is_again |= bool((records.draw_count > (found["draw_times"] > 0).sum(1)).any())
    assert is_again


def test_draws_of_the_store_follow_the_live_teachers_tail(folder: Path, tmp_path: Path) -> None:
    """Over all positions of several captures: how often each token is drawn, and how it should be.

    Each token's draws are a sum over positions of binomials: 5 sigma of that.
    """
    teacher = AutoModelForCausalLM.from_pretrained(folder / "same")
    seen, mean, variance = np.zeros(WIDTH), np.zeros(WIDTH), np.zeros(WIDTH)
    for seed in range(4):
        store = run(folder, tmp_path / f"{seed}", top_k=3, draws=100, seed=seed)
        for records, line in rows_of(store):
            tokens = ByteTokenizer(tiny.byte_bpe()).encode(line.segments)
            q = dense_logprobs(teacher, tokens.token_ids)[np.flatnonzero(tokens.has_record) - 1]
            q = q.exp().scatter(1, q.topk(3).indices, 0)
            share = (q / q.sum(-1, keepdim=True)).numpy()
            np.add.at(seen, records.sample_ids, records.sample_counts)
            mean += 100 * share.sum(0)
            variance += 100 * (share * (1 - share)).sum(0)
    assert seen.sum() == pytest.approx(mean.sum())
    assert (np.abs(seen - mean) < 5 * np.sqrt(variance) + 1).all()


@pytest.mark.parametrize("teacher", ["same", "other"])
def test_multilevel_ot_of_a_captured_store_is_the_live_one(
    folder: Path, tmp_path: Path, teacher: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / teacher)
    tokenizer = AutoTokenizer.from_pretrained(folder / teacher)
    student = tiny.llama(WIDTH)
    store = run(folder, tmp_path / "s", teacher, top_k=model.config.vocab_size, logit_std=True)
    how = {"loss": "multilevel_ot", "uncovered": "none"}  # a mean over sequences, as it is here
    found = trainer_of(student, store, tmp_path, eval_store=store, **how).evaluate()
    values = []
    for _, line in rows_of(store):
        sides = []
        for m, reader in ((student, tiny.byte_bpe()), (model, tokenizer)):
            tokens = ByteTokenizer(reader).encode(line.segments)
            at = np.flatnonzero(tokens.has_record) - 1
            with torch.no_grad():
                logits = m(torch.from_numpy(tokens.token_ids)[None]).logits[0, at].double()
            scaled = (logits / (logits.std(-1, keepdim=True) + 1e-4)).log_softmax(-1)
            columns = scaled.exp().sum(0).argsort(descending=True)[:COLUMNS]
            sides.append(scaled[:, columns])
        # The student has no BOS: where there is no prompt, its first token has no record.
        has_prompt = bool(line.segments[0].text) and not line.segments[0].supervised
        q = sides[1][1:] if teacher == "other" and not has_prompt else sides[1]
        length = min(len(sides[0]) - 1, len(q))
        if length > 0:
            values.append(multilevel_ot(sides[0][:length], q[:length], [length]))
    # 1/96 of a nat a step over sigma; the paper's columns are the same ones
    assert found["eval_multilevel_ot_loss"] == pytest.approx(
        float(torch.cat(values).mean()), rel=5e-3
    )


def test_draws_do_not_depend_on_batch_chunk_or_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is forwarded together: each token's draws are its own."""
    settings: dict[str, Any] = {"top_k": 4, "draws": 30, "logit_std": True}
    alone = run(folder, tmp_path / "a", tokens_per_batch=1, **settings)
    together = run(folder, tmp_path / "b", tokens_per_batch=4096, shard_text_bytes=4096, **settings)
    monkeypatch.setattr(head_module, "CHUNK_ROWS", 3)
    chunked = run(folder, tmp_path / "c", tokens_per_batch=4096, shard_text_bytes=4096, **settings)
    for (a, _), (b, _), (c, _) in zip(*map(rows_of, (alone, together, chunked)), strict=True):
        for name in ("draw_count", "sample_ids", "sample_counts"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            np.testing.assert_array_equal(getattr(a, name), getattr(c, name))
        np.testing.assert_allclose(a.logit_std, b.logit_std, rtol=1e-5)
        np.testing.assert_allclose(a.lognorm_std, b.lognorm_std, atol=1e-5)


def test_windows_of_a_row_have_draws_of_their_own(folder: Path, tmp_path: Path) -> None:
    """A text that repeats itself: the same tokens at the same positions of two windows."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "x" * 400}))
    (tmp_path / "same").symlink_to(folder / "same")
    store = run(tmp_path, tmp_path / "s", top_k=0, draws=20, max_length=64, stride=0)
    texts = [store[i].sample_ids.tobytes() for i in range(len(store))]
    assert len(set(texts)) == len(texts) > 3


def test_another_seed_is_another_store(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"top_k": 4, "draws": 30}
    store = run(folder, tmp_path / "a", **settings)
    assert store.spec.capture["seed"] == 0
    other = run(folder, tmp_path / "b", seed=5, **settings)
    assert not np.array_equal(store[0].sample_ids, other[0].sample_ids)
    with pytest.raises(MismatchError, match=r"capture\.seed is 0.*5 now"):
        run(folder, tmp_path / "a", seed=5, **settings)


def test_a_shard_done_again_has_the_same_draws(folder: Path, tmp_path: Path) -> None:
    """By resuming, and by `repair --capture`, which takes draws and seed from the store."""
    out = tmp_path / "s"
    settings: dict[str, Any] = {"top_k": 4, "draws": 30, "seed": 3, "logit_std": True}
    run(folder, out, **settings)
    wanted = tree(out)
    (out / "shards" / "00001.zarr.zip").unlink()
    (out / "DONE").unlink()
    run(folder, out, **settings)
    assert tree(out) == wanted
    shard = out / "shards" / "00002.zarr.zip"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert repair_store(out).missing_shards == 1
    capture_again(out)
    assert tree(out) == wanted


def test_info_says_what_is_kept(folder: Path, tmp_path: Path) -> None:
    store = run(folder, tmp_path / "s", top_k=0, draws=12, logit_std=True)
    said = info_text(facts(store))
    assert "no entries, 12 draws from the tail, standard deviations of logits" in said


def test_a_teacher_that_excludes_tokens_has_no_standard_deviation(
    folder: Path, tmp_path: Path
) -> None:
    """Named, with its row; nothing of the shard is written."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = PhiConfig(vocab_size=WIDTH, num_attention_heads=2, pad_token_id=None, **shape)
    model = PhiForCausalLM(config)  # its output embedding has a bias
    with torch.no_grad():
        model.lm_head.bias[5] = -torch.inf
    (tmp_path / "rows.jsonl").write_text((folder / "rows.jsonl").read_text())
    tiny.save(tmp_path / "same", model, tiny.byte_bpe())
    with pytest.raises(InputError, match=r"row \d+: the teacher excludes tokens"):
        run(tmp_path, tmp_path / "s", logit_std=True, top_k=4)
    assert not list((tmp_path / "s" / "shards").glob("*.zip"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"draws": -1}, r"--draws is -1, expected 0 to 4096"),
        ({"draws": 5000}, r"--draws is 5000, expected 0 to 4096"),
        ({"draws": 5, "ids": False}, r"draws are token ids, and --no-ids keeps none"),
        ({"draws": 5, "top_k": 0, "max_tail": 0.1}, r"--max-tail is 0\.1, but with --top-k 0"),
        ({"draws": 5, "seed": 2**32}, r"--seed is 4294967296, expected 0 to 4294967295"),
        ({"seed": 3}, r"--seed is 3, but nothing is drawn at random"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        run(folder, tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


def test_a_store_of_draws_alone_serves_no_loss_that_compares_entries(
    folder: Path, tmp_path: Path
) -> None:
    store = run(folder, tmp_path / "s", top_k=0, draws=5)
    for loss in ("uld", "mapped_kl", "tail_kl", "multilevel_ot"):
        with pytest.raises(MismatchError, match=rf"captured with --top-k 0.*{loss} compares"):
            trainer_of(tiny.llama(WIDTH), store, tmp_path / "out", loss=loss)
    assert np.isfinite(
        trainer_of(
            tiny.llama(WIDTH), store, tmp_path / "out", loss="alm", eval_store=store
        ).evaluate()["eval_alm_loss"]
    )
