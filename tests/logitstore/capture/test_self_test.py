"""Before a capture, rows are held to their text, and read alone and in a batch: a mistake stops it.

Alignment is broken on purpose, in each way that a teacher pass or the reading of rows could; the
records themselves would look like any others. (A swapped template: test_end_check.py.)
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import logitstore
from logitstore.capture.passes import self_test
from logitstore.capture.passes.self_test import SelfTest
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.capture.sequences.row_reader import RowReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.head import TeacherHead
from logitstore.console.launcher import Ranks
from logitstore.errors import IncompleteStoreError, InputError
from logitstore.info import facts, info_text
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from logitstore.text.tokenized_text import TokenizedText
from tests.kit import learnt
from tests.kit.families import FAMILIES, V, build
from tests.kit.paths import ROOT
from tests.kit.rows import rows_file, texts_file

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("alone") / "rows.jsonl", tiny.corpus()[:20])


def run(teacher: Path, data: Path, out: Path, **settings: Any) -> LogitStore:
    return logitstore.capture(teacher, str(data), out, **({"top_k": 8} | settings))


def shift_by_one(patch: pytest.MonkeyPatch) -> None:
    """Each record describes the token after its own: the mistake that every peer has made."""
    call = TeacherHead.__call__

    def shifted(head: Any, inputs: Any, positions_n: Tensor, *rest: Any) -> Any:
        return call(head, inputs, positions_n + 1, *rest)

    patch.setattr(TeacherHead, "__call__", shifted)


def another_row(patch: pytest.MonkeyPatch) -> None:
    rows = TeacherPass._rows
    patch.setattr(TeacherPass, "_rows", lambda self, batch: rows(self, batch).flip(0))


def rows_see_each_other(patch: pytest.MonkeyPatch) -> None:
    load = TeacherPass.__init__

    def leaky(self: TeacherPass, *args: Any, **more: Any) -> None:
        load(self, *args, **more)
        embedding: Any = self.model.get_input_embeddings()
        embedding.register_forward_hook(lambda _m, _i, out: out + out.mean(0, keepdim=True))

    patch.setattr(TeacherPass, "__init__", leaky)


def padding_is_read(patch: pytest.MonkeyPatch) -> None:
    """As with a model that looks at both sides, and no mask."""
    load = TeacherPass.__init__

    def leaky(self: TeacherPass, *args: Any, **more: Any) -> None:
        load(self, *args, **more)
        embedding: Any = self.model.get_input_embeddings()
        embedding.register_forward_hook(lambda _m, _i, out: out + out.mean(1, keepdim=True))

    patch.setattr(TeacherPass, "__init__", leaky)


@pytest.mark.parametrize(
    "breaks", [shift_by_one, another_row, rows_see_each_other, padding_is_read]
)
def test_a_teacher_pass_that_misplaces_records_stops_before_anything_is_written(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: Break
) -> None:
    with monkeypatch.context() as broken:
        breaks(broken)
        with pytest.raises(
            InputError,
            match=r"what it says of row \d+ depends on the batch: read alone and among 7 others "
            r".* differ by .* nats on average \(at most 0\.001 is rounding\).*--no-self-test",
        ) as stopped:
            run(teacher, data, tmp_path / "s")
        assert stopped.value.kind == "self-test"
        assert list(tmp_path.iterdir()) == []
        assert run(teacher, data, tmp_path / "all-the-same", self_test=False).is_complete


def tokens_edited(edit: Callable[[list[TeacherSequence]], list[TokenizedText]]) -> Break:
    """Give the sequences of a row other tokens than those of its text."""

    def breaks(patch: pytest.MonkeyPatch) -> None:
        honest = RowReader.sequences

        def edited(self: RowReader, row: int) -> list[TeacherSequence]:
            found = [honest(self, i) for i in (row, (row + 1) % len(self.rows))]
            texts = edit([sequence for each in found for sequence in each])
            return [replace(s, text=t) for s, t in zip(found[0], texts, strict=False)]

        patch.setattr(RowReader, "sequences", edited)

    return breaks


def other_tokenizer(sequences: list[TeacherSequence]) -> list[TokenizedText]:
    """The ids that a vocabulary of another order has for the same tokens."""
    return [replace(s.text, token_ids=(s.text.token_ids * 7 + 13) % 290) for s in sequences]


def wrong_offset(sequences: list[TeacherSequence]) -> list[TokenizedText]:
    return [replace(s.text, byte_starts=s.text.byte_starts + s.text.has_record) for s in sequences]


@pytest.mark.parametrize(
    "edit",
    [other_tokenizer, wrong_offset, lambda sequences: [s.text for s in sequences[1:]]],
    ids=["another tokenizer", "wrong byte offset", "another row"],
)
def test_tokens_that_are_not_the_text_stop_it_before_anything_is_written(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Any
) -> None:
    with monkeypatch.context() as broken:
        tokens_edited(edit)(broken)
        with pytest.raises(
            InputError,
            match=r"in \d+ of 20 sequences the teacher's tokens are not the text at their places, "
            r"as in row 0, record \d+: token \d+ writes b'.*', not b'.*'\. Text and tokens are not "
            r"of the same tokenizer or row.*--no-self-test",
        ) as stopped:
            run(teacher, data, tmp_path / "s")
        assert stopped.value.kind == "self-test"
        assert list(tmp_path.iterdir()) == []
        assert run(teacher, data, tmp_path / "all-the-same", self_test=False).is_complete


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows the first rows of the corpus by heart."""
    model = learnt.model_of(tiny.byte_bpe(), learnt.rows())
    return tiny.save(tmp_path_factory.mktemp("learnt") / "teacher", model, tiny.byte_bpe())


def test_a_model_that_answers_about_the_token_after_the_next_stops_it(
    knowing: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and in a batch alike: each hidden state is that of the token behind its own."""
    load = TeacherPass.__init__

    def early(self: TeacherPass, *args: Any, **more: Any) -> None:
        load(self, *args, **more)
        norm: Any = self.model.base_model.norm
        norm.register_forward_hook(lambda _m, _i, out: out.roll(-1, 1))

    with monkeypatch.context() as broken:
        broken.setattr(TeacherPass, "__init__", early)
        with pytest.raises(
            InputError,
            match=r"its logits 1 before the place of a token predict the tokens of 8 sequences "
            r"better than those that are due, 0\.\d\d against \d+\.\d\d nats a token",
        ) as stopped:
            run(knowing, data, tmp_path / "s")
    assert stopped.value.kind == "self-test"
    assert list(tmp_path.iterdir()) == []


def test_a_sure_teacher_that_does_not_know_the_text_is_doubted(
    knowing: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder has the tokenizer of another model, with as many tokens in another order."""
    says = "Its tokenizer may be another model's"
    run(knowing, data, tmp_path / "honest")
    assert says not in caplog.text
    content = json.loads((knowing / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    letters = sorted(token for token in vocabulary if vocabulary[token] > 4)
    content["model"]["vocab"] = vocabulary | {
        token: vocabulary[other]
        for token, other in zip(letters, [*letters[50:], *letters[:50]], strict=True)
    }
    other = shutil.copytree(knowing, tmp_path / "other")
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert run(other, data, tmp_path / "s").is_complete
    assert "the teacher is sure of what it says (its first token has " in caplog.text
    assert says in caplog.text
    caplog.clear()
    run(other, data, tmp_path / "without", self_test=False)
    assert says not in caplog.text


def test_what_was_found_is_in_the_store_in_info_and_changes_no_shard(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    store, without = (run(teacher, data, tmp_path / x, self_test=x == "a") for x in ("a", "b"))
    found = store.provenance["self_test"]
    assert (found["sequences"], found["tolerance"]) == (8, 1e-3)
    assert 0 < found["largest_mean"] <= found["largest"] < 1e-4
    assert found == json.loads(json.dumps(facts(store)))["self_test"]
    assert "self-test 8 sequences alone and in a batch: log p of" in info_text(facts(store))
    assert "self_test" not in without.provenance
    assert "self-test" not in info_text(facts(without))
    assert store.digest == without.digest
    shards = [(s.path / "shards" / "00000.zarr.zip").read_bytes() for s in (store, without)]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("claim", [False, True])
def test_a_resumed_store_is_tried_again_and_keeps_its_bytes(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: bool
) -> None:
    """And so does a worker that joins others: what it finds is in the journal."""
    run(teacher, data, tmp_path / "s", shard_text_bytes=200)
    before = tree(tmp_path / "s")
    (tmp_path / "s" / "DONE").unlink()
    (tmp_path / "s" / "shards" / "00001.zarr.zip").unlink()
    with monkeypatch.context() as broken:
        shift_by_one(broken)
        with pytest.raises(InputError, match="depends on the batch"):
            run(teacher, data, tmp_path / "s", shard_text_bytes=200, claim=claim)
    run(teacher, data, tmp_path / "s", shard_text_bytes=200, claim=claim)
    assert tree(tmp_path / "s") == before
    journal = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in journal].count("self-test") == 1


def test_each_rank_proves_itself_before_its_first_shard(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has a device of its own, and it is broken: nothing of it is in the store."""
    monkeypatch.setattr("logitstore.capture.sharing.sharing.PATIENCE_S", 0.3)
    how: dict[str, Any] = {"shard_text_bytes": 200}
    with pytest.raises(IncompleteStoreError, match="rank 0 of 2 waited"):
        run(teacher, data, tmp_path / "s", ranks=Ranks(0, 2), **how)
    there = tree(tmp_path / "s")
    with monkeypatch.context() as broken:
        shift_by_one(broken)
        with pytest.raises(InputError, match=r" \(rank 1 of 2\): what it says of row") as stopped:
            run(teacher, data, tmp_path / "s", ranks=Ranks(1, 2), **how)
    assert stopped.value.kind == "self-test"
    assert tree(tmp_path / "s") == there
    with pytest.raises(IncompleteStoreError, match="waited for rank 0 to seal"):
        run(teacher, data, tmp_path / "s", ranks=Ranks(1, 2), **how)
    assert tree(tmp_path / "s").keys() > there.keys()
    lines = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    noted = [json.loads(line) for line in lines if '"self-test"' in line]
    assert [(line["sequences"], line["tolerance"]) for line in noted] == [(8, 1e-3)]


BROKEN_RANK = """
import os, sys
from logitstore.capture.teacher.head import TeacherHead
from logitstore.cli.app import main
call = TeacherHead.__call__
if os.environ["RANK"] == "1":
    TeacherHead.__call__ = lambda self, inputs, at, *rest: call(self, inputs, at + 1, *rest)
main()
"""


@pytest.mark.slow  # two processes that load torch
def test_of_two_processes_the_broken_one_stops_by_name(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    place = ["capture", str(teacher), str(data), "--out", str(tmp_path / "s"), "--top-k", "8"]
    command = [sys.executable, "-c", BROKEN_RANK, *place, "--shard-text-bytes", "200"]
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env=kept | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        )
        for rank in (0, 1)
    ]
    _, said = jobs[1].communicate(timeout=240)
    assert jobs[1].returncode == 2
    assert "(rank 1 of 2): what it says of row" in said
    jobs[0].terminate()  # as a launcher does when one of its ranks is gone
    jobs[0].communicate(timeout=240)
    assert jobs[0].returncode != 0
    lines = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    wrote = {line["process"] for line in map(json.loads, lines) if line.get("committed")}
    assert wrote == {jobs[0].pid}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_honest_teacher_is_stopped(dtype: torch.dtype) -> None:
    """Of every family, in every precision: rounding stays far below what is taken for it."""
    from tests.logitstore.capture.test_batching import sequence

    for name in FAMILIES:
        model = build(name).to(dtype).eval()
        teacher = Fake(model, str(dtype).removeprefix("torch."))
        sequences = [sequence(n, row=n) for n in (40, 33, 21, 12, 9, 7, 3, 2)]
        generator = torch.Generator().manual_seed(3)
        for each in sequences:
            each.text.token_ids[:] = torch.randint(1, V, (each.length,), generator=generator)
        found = self_test.try_teacher(teacher, sequences, 8192)  # type: ignore[arg-type]
        assert found is not None
        found.check(name)
        assert found.largest_mean < found.tolerance / 5, name
        assert found.tokens == sum(each.length - 1 for each in sequences)


class Fake:
    """A teacher pass without a store."""

    def __init__(self, model: Any, dtype: str) -> None:
        self.model, self.device = model, torch.device("cpu")
        self.spec = type("Spec", (), {"teacher": {"dtype": dtype}})()
        self.forward = lambda batch: TeacherPass.forward(self, batch)  # type: ignore[arg-type]
        self.alone = lambda one: TeacherPass.alone(self, one)  # type: ignore[arg-type]
        self.is_quantized = False
        self._pad_id, self._routed, self._catcher = 0, None, None
        self._head = TeacherHead(model, self_test_settings())
        self._rows = lambda batch: TeacherPass._rows(self, batch)  # type: ignore[arg-type]
        self._forward = lambda *args: TeacherPass._forward(self, *args)  # type: ignore[arg-type]


def self_test_settings() -> Any:
    from logitstore.capture.teacher.summary import HeadSettings

    return HeadSettings(4)


def test_a_single_row_has_no_batch_to_be_read_in(teacher: Path, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "r.jsonl", {"text": "The teacher reads."})
    assert "self_test" not in run(teacher, data, tmp_path / "s").provenance


def test_what_the_teacher_never_says_is_not_compared_and_what_a_batch_spoils_is() -> None:
    nan, inf = float("nan"), float("inf")
    found = self_test._difference(torch.tensor([-1.0, nan, -inf]), torch.tensor([-1.5, -2.0, -3.0]))
    assert found.tolist() == [0.5]
    assert self_test._difference(torch.tensor([-1.0]), torch.tensor([nan])).tolist() == [inf]


def test_a_figure_is_rounded_up_to_one_digit() -> None:
    found = SelfTest(8, 100, 1.2e-6, 1e-6, 1e-3, 0).facts()
    assert (found["largest"], found["largest_mean"]) == (2e-6, 1e-6)


def test_completions_are_tried_by_their_prompts(teacher: Path, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "r.jsonl", *({"prompt": x} for x in tiny.corpus()[:9]))
    store = run(teacher, data, tmp_path / "s", generate=True, max_new_tokens=3)
    assert store.provenance["self_test"]["sequences"] == 8
