"""The teacher pass: records are the model's own distributions; a kill costs one shard at most."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitstore
from logitstore.capture.teacher import head as head_module
from logitstore.capture.teacher.head import TeacherHead
from logitstore.capture.teacher.summary import HeadSettings, summarise
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError, MismatchError, StorageError
from logitstore.storage.commit import OsFs
from logitstore.storage.files import Buffer
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit.rows import texts_file

SHARD_TEXT_BYTES = 400


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [*tiny.corpus(), "", None, "x"]
    return texts_file(tmp_path_factory.mktemp("data") / "rows.jsonl", texts)


def run(teacher: Path, data: Path, out: Path, **settings: Any) -> logitstore.LogitStore:
    settings = {"top_k": 8, "shard_text_bytes": SHARD_TEXT_BYTES} | settings
    return logitstore.capture(teacher, str(data), out, **settings)


def live(teacher: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, log-probabilities of what follows each) by the plainest possible code."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher)
    ids = torch.tensor([*tokenizer(text).input_ids, tokenizer.eos_token_id])
    with torch.no_grad():
        return ids, model(ids[None]).logits[0].double().log_softmax(-1)


def test_rows_that_change_during_a_capture_are_never_committed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped dataset changes when its file does; the edit comes when the first shard is there."""
    import datasets

    said = [f"the teacher reads page {i}" for i in range(30)]
    datasets.Dataset.from_dict({"text": said}).save_to_disk(str(tmp_path / "data"))
    file = next((tmp_path / "data").glob("*.arrow"))
    links, edits = OsFs.link, []

    def edit(old: bytes, new: bytes) -> None:
        with file.open("r+b") as f:
            whole = f.read()
            f.seek(0)
            f.write(whole.replace(old, new))

    def link(self: OsFs, source: Path, target: Path) -> None:
        links(self, source, target)
        if target.name.endswith(".zarr.zip") and not edits:
            edits.append(target)
            edit(b"teacher", b"TEACHER")

    monkeypatch.setattr(OsFs, "link", link)
    again = {"dataset": str(tmp_path / "data"), "out": tmp_path / "s", "shard_text_bytes": 60}
    with pytest.raises(MismatchError, match="has changed while it was read") as caught:
        logitstore.capture(teacher, top_k=8, **again)
    assert caught.value.kind == "dataset-changed"
    edit(b"TEACHER", b"teacher")
    store = logitstore.capture(teacher, top_k=8, **again)
    assert [store.text(i).segments[0].text for i in range(30)] == said


def test_a_record_is_what_the_live_teacher_says_of_its_token(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    store = run(teacher, data, tmp_path / "s", temperatures=(2.0,), tokens_per_batch=300)
    bound = store.fidelity.l1_max
    for i in (0, 36, 42, 45):
        records = store[i]
        ids, logp = live(teacher, store.text(i).segments[0].text)
        assert records.token_ids.tolist() == ids[1:].tolist()
        rows = logp[:-1]  # row t predicts token t + 1; the record of that token holds it
        top, top_ids = rows.topk(8)
        padded = records.padded()
        assert padded.ids is not None
        ours = torch.from_numpy(padded.logprobs).double()
        at_ids = rows.gather(1, torch.from_numpy(padded.ids.astype(np.int64)))
        distance = (ours.exp() - at_ids.exp()).abs().sum(1)
        tail = torch.from_numpy(records.tail_logmass).double().exp()
        distance += (tail - (1 - top.exp().sum(1))).abs()
        assert float(distance.max()) <= bound + 1e-5
        assert (
            torch.from_numpy(padded.ids.astype(np.int64)).sort().values == top_ids.sort().values
        ).float().mean() > 0.99
        own = rows.gather(1, ids[1:, None]).squeeze(1)
        np.testing.assert_allclose(records.token_logprob, own, atol=1 / 1024 + 1e-5)
        np.testing.assert_allclose(
            records.entropy, -(rows.exp() * rows).sum(-1), atol=1 / 512 + 1e-5
        )
        assert records.lognorm is not None
        np.testing.assert_allclose(records.lognorm[:, 0], (rows / 2).logsumexp(-1), atol=1e-5)


def test_a_compact_capture_says_what_a_portable_one_says(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    portable = run(teacher, data, tmp_path / "p")
    compact = run(teacher, data, tmp_path / "c", codec="compact")
    assert compact.spec.codec == portable.spec.codec | {"name": "compact"}
    for one, other in zip(portable, compact, strict=True):
        np.testing.assert_array_equal(one.entry_logprobs, other.entry_logprobs)
        np.testing.assert_array_equal(one.entry_ids, other.entry_ids)


def test_records_shifted_by_one_would_be_seen(teacher: Path, data: Path, tmp_path: Path) -> None:
    records = run(teacher, data, tmp_path / "s")[0]
    ids, logp = live(teacher, tiny.corpus()[0])
    late = logp[1:].gather(1, ids[1:, None]).squeeze(1)
    assert np.abs(records.token_logprob - late.numpy()).max() > 0.5


def test_every_byte_of_the_text_has_a_record(teacher: Path, data: Path, tmp_path: Path) -> None:
    store = run(teacher, data, tmp_path / "s")
    for i, text in enumerate(tiny.corpus()):
        records = store[i]
        stops = records.byte_starts + records.byte_lengths
        assert records.byte_starts[0] == 0
        assert (records.byte_starts[1:] == stops[:-1]).all()
        assert stops[-1] == len(text.encode())
        assert (records.byte_lengths[-1], records.token_ids[-1]) == (0, store.spec.eos_ids[0])


def test_every_row_has_a_line_also_when_it_has_no_record(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    store = run(teacher, data, tmp_path / "s", max_length=6, overflow="truncate")
    assert len(store) == 51
    assert [store.text(i).status for i in (0, 48, 49, 50)] == ["truncated", "empty", "empty", "ok"]
    assert [len(store[i]) for i in (48, 49)] == [0, 0]
    assert len(store[0]) == 5


def test_only_the_completion_has_records(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "pc.jsonl"
    path.write_text(json.dumps({"prompt": "the teacher reads ", "completion": "学生 nothing"}))
    store = run(teacher, path, tmp_path / "s")
    assert store.text(0).supervised_bytes == "学生 nothing".encode()
    assert int((store[0].byte_starts + store[0].byte_lengths).max()) == len("学生 nothing".encode())
    ids, logp = live(teacher, "the teacher reads 学生 nothing")
    n = len(store[0])
    own = logp[:-1].gather(1, ids[1:, None]).squeeze(1)[-n:]
    np.testing.assert_allclose(store[0].token_logprob, own, atol=1 / 1024 + 1e-5)


@pytest.mark.parametrize("max_tail", [0.5, 0.05])
def test_error_bounded_records_keep_the_fewest_entries_that_reach_the_bound(
    teacher: Path, data: Path, tmp_path: Path, max_tail: float
) -> None:
    sharp = tmp_path / "sharp"
    model = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 6
    tiny.save(sharp, model, AutoTokenizer.from_pretrained(teacher))
    store = run(sharp, data, tmp_path / "s", top_k=12, max_tail=max_tail)
    _, logp = live(sharp, tiny.corpus()[3])
    left = 1 - logp[:-1].sort(descending=True).values.exp().cumsum(-1)
    wanted = ((left > max_tail).sum(1) + 1).clamp(max=12)
    off = np.abs(store[3].entry_count - wanted.numpy())
    assert (off == 0).mean() > 0.9  # a tail within rounding of the bound may fall either side
    assert off.max() <= 1
    tails = np.exp(store[3].tail_logmass)
    assert (tails[store[3].entry_count < 12] <= max_tail * 1.01).all()
    assert 1 < store.fidelity.entries_mean < 12


def test_values_only_is_smaller_and_has_no_ids(teacher: Path, data: Path, tmp_path: Path) -> None:
    with_ids, without = (
        run(teacher, data, tmp_path / "a"),
        run(teacher, data, tmp_path / "b", ids=False),
    )
    assert without[0].entry_ids is None
    np.testing.assert_array_equal(without[0].entry_logprobs, with_ids[0].entry_logprobs)


@pytest.mark.parametrize("vocab_size", [65_536, 131_073, 151_936, 262_144])
def test_ids_past_16_17_and_18_bits_survive(teacher: Path, tmp_path: Path, vocab_size: int) -> None:
    """A teacher whose state is always the same, and whose head likes its last id best."""
    folder = tmp_path / "wide"
    model = tiny.llama(vocab_size, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    preference = torch.linspace(-1, 0, vocab_size)
    preference[-1] = 3
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(preference[:, None].expand(-1, 8) / 8)
    tiny.save(folder, model, tiny.byte_bpe(400, bos=True))
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"text": "the teacher reads"}))
    records = run(folder, path, tmp_path / "s", top_k=4)[0]
    padded = records.padded()
    assert padded.ids is not None
    assert (padded.ids[:, 0] == vocab_size - 1).all()
    assert verify_store(tmp_path / "s", deep=True).damaged == []


def test_the_heads_chunks_do_not_change_what_is_kept(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(teacher, data, tmp_path / "a")
    monkeypatch.setattr(head_module, "CHUNK_ROWS", 3)
    run(teacher, data, tmp_path / "b")
    a, b = logitstore.open_store(tmp_path / "a"), logitstore.open_store(tmp_path / "b")
    for i in range(len(a)):
        np.testing.assert_allclose(a[i].entry_logprobs, b[i].entry_logprobs, atol=2 / 96)


def test_a_head_that_does_not_agree_falls_back_to_the_models_own_logits(
    teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    forward = type(model).forward

    def odd(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits.flip(-1)
        return out

    model.forward = odd.__get__(model)
    ids = torch.arange(2, 12)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    result = TeacherHead(model, HeadSettings(5))(inputs, torch.arange(9), ids[0, 1:])
    assert "not made from its output embedding as known here" in caplog.text
    want = summarise(model(**inputs).logits[0, :9], ids[0, 1:], HeadSettings(5))
    torch.testing.assert_close(result.entry_logprobs, want.entry_logprobs)


def test_a_second_run_on_a_finished_store_does_nothing_and_says_so(
    teacher: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    run(teacher, data, tmp_path / "s")
    before = {p: p.stat() for p in (tmp_path / "s").rglob("*")}

    def never(*_: Any) -> Any:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("logitstore.capture.passes.teacher_pass.load_model", never)
    with caplog.at_level("INFO"):
        run(teacher, data, tmp_path / "s")
    assert "is finished" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == {
        p: s.st_mtime_ns for p, s in before.items()
    }


def test_a_resumed_run_forwards_the_rows_of_the_missing_shards_only(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run(teacher, data, tmp_path / "s")
    gone = [1, 3]
    for index in gone:
        (tmp_path / "s" / "shards" / f"{index:05d}.zarr.zip").unlink()
    (tmp_path / "s" / "DONE").unlink()
    forwarded: list[int] = []
    original = TeacherHead.__call__

    def spy(self: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        forwarded.append(len(inputs["input_ids"]))
        return original(self, inputs, *rest)

    monkeypatch.setattr(TeacherHead, "__call__", spy)
    run(teacher, data, tmp_path / "s", self_test=False)
    rows = [r for i in gone for r in range(*store.plan.shard_rows(i))]
    assert sum(forwarded) == sum(store.token_counts[r] > 0 for r in rows)


def test_other_settings_dataset_or_teacher_are_refused(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    run(teacher, data, tmp_path / "s")
    with pytest.raises(MismatchError, match=r"capture\.top_k is 8 in the store, 9 now"):
        run(teacher, data, tmp_path / "s", top_k=9)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "something else"}))
    with pytest.raises(MismatchError, match=r"plan\.dataset_sha256 is .* in the store"):
        run(teacher, other, tmp_path / "s")
    tuned = tiny.save(tmp_path / "tuned", tiny.llama(400, seed=5), tiny.byte_bpe(400, bos=True))
    with pytest.raises(MismatchError, match=r"teacher\.fingerprint is .* in the store"):
        run(tuned, data, tmp_path / "s")


def test_a_moved_teacher_is_the_same_teacher(teacher: Path, data: Path, tmp_path: Path) -> None:
    run(teacher, data, tmp_path / "s")
    moved = tiny.save(tmp_path / "moved", tiny.llama(400), tiny.byte_bpe(400, bos=True))
    run(moved, data, tmp_path / "s")


def command(teacher: Path, data: Path, out: Path) -> list[str]:
    base = [sys.executable, "-m", "logitstore", "capture", str(teacher), str(data)]
    return [*base, "--out", str(out), "--top-k", "8", "--shard-text-bytes", str(SHARD_TEXT_BYTES)]


@pytest.mark.slow  # test_killed.py kills ten times, test_power_cut.py at every step
def test_killed_anywhere_and_run_again_is_the_same_bytes(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    subprocess.run(command(teacher, data, whole), check=True, capture_output=True)
    wanted = tree(whole)
    shards = out / "shards"
    kept: dict[str, tuple[int, int]] = {}
    for target in (0, 1, 3):
        process = subprocess.Popen(
            command(teacher, data, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (shards / f"{target:05d}.zarr.zip").exists():
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (shards / ".tmp-alone").exists(), "nobody would have seen that it was at work"
        for path in shards.glob("*.zarr.zip"):
            identity = (path.stat().st_ino, path.stat().st_mtime_ns)
            assert kept.setdefault(path.name, identity) == identity, "a committed shard changed"
            assert path.read_bytes() == wanted[f"shards/{path.name}"]
        assert verify_store(out, allow_partial=True, deep=True).damaged == []
    assert 3 <= len(kept) < len(list((whole / "shards").iterdir())), "kills were not spread"
    (shards / ".tmp-00005.zarr.zip-1-dead").write_bytes(b"what a crash in a write leaves behind")
    subprocess.run(command(teacher, data, out), check=True, capture_output=True)
    assert tree(out) == wanted
    for path in shards.glob("*.zarr.zip"):
        identity = (path.stat().st_ino, path.stat().st_mtime_ns)
        assert kept.setdefault(path.name, identity) == identity


class FullDisk(OsFs):
    """Has room for so many files."""

    def __init__(self, files: int) -> None:
        self.left = files

    def write_durably(self, path: Path, pieces: Iterable[Buffer]) -> None:
        self.left -= 1
        if self.left < 0:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_durably(path, pieces)


def test_a_full_disk_keeps_what_was_committed_and_resumes(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(teacher, data, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(
            "logitstore.capture.job.StoreWriter",
            lambda *a: logitstore.StoreWriter(*a, fs=FullDisk(6)),
        )
        with pytest.raises(StorageError, match=r"disk is full.*Make room.*resumes"):
            run(teacher, data, tmp_path / "s")
    assert verify_store(tmp_path / "s", allow_partial=True, deep=True).damaged == []
    assert not list((tmp_path / "s" / "shards").glob(".tmp-*"))
    assert any((tmp_path / "s" / "shards").iterdir())
    run(teacher, data, tmp_path / "s")
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")


def test_a_failure_in_the_very_last_shard_is_not_lost(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = len(list((run(teacher, data, tmp_path / "whole").path / "shards").iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr(
            "logitstore.capture.job.StoreWriter",
            lambda *a: logitstore.StoreWriter(*a, fs=FullDisk(3 + written - 1)),
        )
        with pytest.raises(StorageError, match=r"disk is full"):
            run(teacher, data, tmp_path / "s")
    assert len(list((tmp_path / "s" / "shards").iterdir())) == written - 1


def test_logits_that_are_not_finite_stop_with_the_row(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny.byte_bpe(400).convert_tokens_to_ids("x")] = (
            torch.nan
        )
    broken = tiny.save(tmp_path / "broken", model, AutoTokenizer.from_pretrained(teacher))
    with pytest.raises(InputError, match=r"row \d+: the teacher's logits are not finite"):
        run(broken, data, tmp_path / "s")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"top_k": 401}, r"--top-k is 401, but .* has a vocabulary of 400.*--top-k 400"),
        ({"top_k": 0}, r"--top-k is 0, so no entries.*--draws 50"),
        ({"max_tail": 1.5}, r"--max-tail is 1\.5, expected a probability"),
        ({"temperatures": (0.0,)}, r"--temperature is 0\.0, expected a positive number"),
        ({"temperatures": (1.0,)}, r"1 is always kept"),
        ({"temperatures": (2.0, 2.0)}, r"given twice"),
        ({"tokens_per_batch": 0}, r"--tokens-per-batch is 0"),
        ({"shard_text_bytes": 0}, r"--shard-text-bytes is 0"),
        ({"codec": "zip"}, r"--codec is zip, expected portable or compact"),
        ({"max_length": 1}, r"--max-length is 1; a record needs a token before it"),
        ({"max_length": 10_000}, r"reads 512 tokens at most.*--max-length 512"),
        ({"dtype": "int4"}, r"--dtype is int4, expected auto, float32, bfloat16, float16"),
        ({"split": "test"}, r"test"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    teacher: Path, data: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        run(teacher, data, tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


def test_a_teacher_that_is_not_there_or_not_its_tokenizers_is_refused(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"cannot load a teacher from here"):
        run(tmp_path / "nowhere", data, tmp_path / "s")
    small = tiny.save(tmp_path / "small", tiny.llama(300), tiny.byte_bpe(400, bos=True))
    with pytest.raises(InputError, match=r"predicts 300 ids, but its tokenizer makes 400"):
        run(small, data, tmp_path / "s")


def test_a_checkout_that_is_not_installed_captures_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that only has the sources, no distribution is called logitstore."""

    def known(package: str) -> str:
        if package == "logitstore":
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr("logitstore.capture.task.version", known)
    tokenizer = tiny.byte_bpe()
    teacher = tiny.save(tmp_path / "teacher", tiny.llama(len(tokenizer)), tokenizer)
    (tmp_path / "rows.jsonl").write_text('{"text": "one row"}\n')
    store = logitstore.capture(teacher, tmp_path / "rows.jsonl", out=tmp_path / "store")
    assert store.provenance["versions"]["logitstore"] == logitstore.__version__
