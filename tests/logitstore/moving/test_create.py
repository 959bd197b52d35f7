"""A store of a caller's own logits holds what they say, in whatever form they are given."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import logitstore
from distill.data.dataset import StoreDataset
from logitstore.capture.job import run_capture
from logitstore.capture.settings import CaptureSettings
from logitstore.format.logprob_codec import ENTROPY_STEP, TAIL_STEP, TOKEN_STEP
from logitstore.models.fingerprint import fingerprint_folder
from logitstore.moving.dumps.importing import import_dump
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import dumps
from tests.kit.created import created, log_softmax, logits_of, settings, with_entries, with_logits
from tests.kit.dumps import ENGLISH, TEXTS, Dumper
from tests.kit.paths import ROOT

STEPS = {"token_logprob": TOKEN_STEP, "tail_logmass": TAIL_STEP, "entropy": ENTROPY_STEP}


def same(one: LogitStore, other: LogitStore, tolerance: float = 1.01) -> None:
    """The same texts and tokens, and values within a step of their codes."""
    assert len(one) == len(other) > 0
    for i in range(len(one)):
        assert one.text(i) == other.text(i)
        a, b = one[i], other[i]
        for name in ("token_ids", "byte_starts", "byte_lengths", "entry_count"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
        for name, step in STEPS.items():
            np.testing.assert_allclose(
                getattr(a, name), getattr(b, name), atol=step * tolerance, err_msg=name
            )
        # Their entries differ where two are as probable, and by what rounding moves.
        np.testing.assert_allclose(a.padded().logprobs, b.padded().logprobs, atol=0.05)


def test_every_number_is_what_the_definition_says(teacher: Dumper, tmp_path: Path) -> None:
    rows = with_logits(teacher, TEXTS)
    store = created(tmp_path / "s", teacher, rows, top_k=8, temperatures=(2.0, 0.5), logit_std=True)
    for i, (text, given) in enumerate(rows):
        ids, z = np.array(teacher.ids(text)), given["logits"].astype(np.float64)
        said, records = log_softmax(z)[:-1], store[i]
        p, n = np.exp(said), np.arange(len(ids) - 1)
        np.testing.assert_array_equal(records.token_ids, ids[1:])
        best = np.sort(said, 1)[:, ::-1]
        wanted = {
            "token_logprob": said[n, ids[1:]],
            "tail_logmass": np.log(np.exp(best[:, 8:]).sum(1)),
            "entropy": -(p * said).sum(1),
        }
        for name, step in STEPS.items():
            np.testing.assert_allclose(getattr(records, name), wanted[name], atol=step, rtol=1e-6)
        np.testing.assert_allclose(records.padded().logprobs, best[:, :8], atol=0.04)
        np.testing.assert_array_equal(
            said[n[:, None], records.padded().ids.astype(int)] >= best[:, [7]] - 0.04, True
        )
        for t, temperature in enumerate((2.0, 0.5)):
            norm = np.log((p ** (1 / temperature)).sum(1))
            np.testing.assert_allclose(records.lognorm[:, t], norm, atol=1e-5)
        std = z[:-1].std(1, ddof=1)
        np.testing.assert_allclose(records.logit_std, std, rtol=1e-5)
        norm = np.log((p ** (1 / (std[:, None] + 1e-4))).sum(1))
        np.testing.assert_allclose(records.lognorm_std, norm, atol=1e-5)
    assert store.spec.missing == ()
    assert store.spec.rendering["created"] == {"given": ["logits"], "aligned_to": "next"}


def test_fewer_entries_are_kept_where_they_leave_little(teacher: Dumper, tmp_path: Path) -> None:
    rows = with_logits(teacher, ENGLISH[:2])
    store = created(tmp_path / "s", teacher, rows, top_k=32, max_tail=0.3)
    for i, (_, given) in enumerate(rows):
        best = np.sort(np.exp(log_softmax(given["logits"])[:-1]), 1)[:, ::-1]
        left = 1 - np.cumsum(best[:, :32], 1)
        fewest = np.where((left <= 0.3).any(1), (left <= 0.3).argmax(1) + 1, 32)
        np.testing.assert_array_equal(store[i].entry_count, fewest)
        np.testing.assert_allclose(
            np.exp(store[i].tail_logmass), left[np.arange(len(left)), fewest - 1], atol=2e-3
        )


def test_it_is_the_store_that_a_capture_of_the_same_rows_writes(
    teacher: Dumper, tmp_path: Path
) -> None:
    data = dumps.write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    captured = run_capture(
        teacher.folder, str(data), tmp_path / "captured", CaptureSettings(top_k=8, self_test=False)
    )
    eos = teacher.tokenizer.eos_token_id
    rows = [(t, {"logits": logits_of(teacher, [*teacher.ids(t), eos])}) for t in TEXTS]
    same(created(tmp_path / "own", teacher, rows, top_k=8, add_eos=True), captured)


def test_entries_are_the_records_that_an_import_of_them_has(
    teacher: Dumper, tmp_path: Path
) -> None:
    """Without a tail, whose place is what the entries leave to one."""
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in ENGLISH])
    imported, _ = import_dump(path, tmp_path / "imported", dumps.settings(teacher))
    assert imported is not None
    rows = with_entries(teacher, ENGLISH)
    for _, given in rows:
        del given["tail"]
    with logitstore.create(tmp_path / "own", **settings(teacher, rows, top_k=8)) as w:
        for row, (text, given) in enumerate(rows):
            w.add(row, input_ids=teacher.ids(text), **given)
    own = logitstore.open_store(tmp_path / "own")
    assert own.spec.missing == imported.spec.missing == ("entropy", "token_logprob")
    for i in range(len(imported)):
        a, b = own[i], imported[i]
        assert own.text(i) == imported.text(i)
        for name in ("token_ids", "byte_starts", "byte_lengths", "entry_ids", "entry_count"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
        for name in ("entry_logprobs", "tail_logmass", "token_logprob"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=0.02)


def test_entries_beyond_the_first_k_go_to_the_tail(teacher: Dumper, tmp_path: Path) -> None:
    """Whether the tail is given or not, and one is what is known of more entries."""
    few = created(tmp_path / "few", teacher, with_entries(teacher, ENGLISH, 4), top_k=4)
    many = created(tmp_path / "many", teacher, with_entries(teacher, ENGLISH, 12), top_k=4)
    for i in range(len(few)):
        np.testing.assert_array_equal(few[i].entry_ids, many[i].entry_ids)
        np.testing.assert_allclose(few[i].tail_logmass, many[i].tail_logmass, atol=TAIL_STEP)


def forms(teacher: Dumper, text: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The same distributions in other forms: (name, arguments of create, of add)."""
    logits = logits_of(teacher, teacher.ids(text))
    (_, entries), k = with_entries(teacher, [text])[0], 8
    logp = log_softmax(logits)

    class Elsewhere:
        """An array of which numpy knows nothing but dlpack."""

        def __init__(self, held: Any) -> None:
            self.held, self.shape = held, held.shape

        def __getitem__(self, place: Any) -> "Elsewhere":
            return Elsewhere(self.held[place])

        def __dlpack__(self, **more: Any) -> Any:
            return self.held.__dlpack__(**more)

        def __dlpack_device__(self) -> Any:
            return self.held.__dlpack_device__()

    yield "torch", {}, {"logits": torch.from_numpy(logits).requires_grad_()}
    yield "dlpack", {}, {"logits": Elsewhere(logits)}
    yield "batch of one", {}, {"logits": logits[None]}
    yield "doubles", {}, {"logits": logits.astype(np.float64)}
    yield "lists", {}, {"logits": logits.tolist()}
    yield "logprobs", {}, {"logprobs": logp}
    token = {"aligned_to": "token"}
    yield "aligned to the token", token, {"logits": np.roll(logits, 1, 0)}
    yield "supervised tokens alone", token, {"logits": logits[:-1]}
    known = {
        "entropy": -(np.exp(logp) * logp).sum(1),
        "token_logprob": logp[np.arange(len(logp)), np.roll(teacher.ids(text), -1)],
    }
    yield "entries", {}, entries | known
    shuffled = np.argsort(np.random.default_rng(0).random((len(logp), k)), 1)
    taken = {n: np.take_along_axis(entries[n], shuffled, 1) for n in ("ids", "logprobs")}
    yield "entries in any order", {}, entries | taken | known
    padded = {
        "ids": np.pad(entries["ids"], ((0, 0), (0, 3)), constant_values=-1),
        "logprobs": np.pad(entries["logprobs"], ((0, 0), (0, 3)), constant_values=-np.inf),
    }
    yield "padded entries", {}, entries | padded | known
    ragged = {n: list(entries[n]) for n in ("ids", "logprobs")}
    yield "entries in lists", {}, entries | ragged | known
    yield "torch entries", {}, {n: torch.tensor(v) for n, v in (entries | known).items()}


def test_whatever_form_the_same_numbers_have_the_records_are_the_same(
    teacher: Dumper, tmp_path: Path
) -> None:
    text = TEXTS[0]
    plain = created(tmp_path / "plain", teacher, with_logits(teacher, [text]), top_k=8)
    for name, more, given in forms(teacher, text):
        other = created(tmp_path / name, teacher, [(text, given)], top_k=8, **more)
        same(other, plain, tolerance=1.5)
        assert other.spec.missing == ()


def test_half_precision_is_read_as_what_it_is(teacher: Dumper, tmp_path: Path) -> None:
    text = TEXTS[0]
    half = torch.from_numpy(logits_of(teacher, teacher.ids(text))).bfloat16()
    more = {"top_k": 8, "dataset": "one"}
    one = created(tmp_path / "half", teacher, [(text, {"logits": half})], **more)
    other = created(tmp_path / "same", teacher, [(text, {"logits": half.float()})], **more)
    assert stores.tree(one.path / "shards") == stores.tree(other.path / "shards")


def test_excluded_tokens_have_no_probability(teacher: Dumper, tmp_path: Path) -> None:
    text = ENGLISH[0]
    logits = logits_of(teacher, teacher.ids(text))
    best = np.argsort(-logits, 1)
    np.put_along_axis(logits, best[:, 3:], -np.inf, 1)
    store = created(tmp_path / "s", teacher, [(text, {"logits": logits})], top_k=8)
    assert (store[0].entry_count == 3).all()
    assert np.isneginf(store[0].tail_logmass).all()
    np.testing.assert_allclose(np.exp(store[0].padded().logprobs).sum(1), 1, atol=1e-6)


def test_prompts_conversations_and_tokens_are_rows_too(teacher: Dumper, tmp_path: Path) -> None:
    """Each like the row that a capture makes of it."""
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody 🙂."}]
    ids = teacher.ids("Half of this is context.")
    labels = np.where(np.arange(len(ids)) < len(ids) // 2, -100, ids)
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
        "completion": (
            {"prompt": "Who? ", "completion": "Nobody."},
            {"text": "Nobody.", "prompt": "Who? "},
            [*teacher.ids("Who? Nobody."), teacher.tokenizer.eos_token_id],
        ),
        "talk": (
            {"messages": talk},
            {"messages": talk},
            list(teacher.tokenizer.apply_chat_template(talk, return_dict=False)),
        ),
        "tokens": (
            {"input_ids": ids, "labels": labels.tolist()},
            {"input_ids": np.array(ids), "labels": labels},
            ids,
        ),
    }
    for name, (row, text, tokens) in kinds.items():
        data = dumps.write_jsonl(tmp_path / f"{name}.jsonl", [row])
        asked = CaptureSettings(top_k=8, self_test=False)
        captured = run_capture(teacher.folder, str(data), tmp_path / f"{name}-c", asked)
        more = {"add_eos": True} if name == "completion" else {}
        with logitstore.create(tmp_path / name, **settings(teacher, 1, top_k=8, **more)) as w:
            w.add(0, **text, logits=logits_of(teacher, tokens))
        own = logitstore.open_store(tmp_path / name)
        same(own, captured)
        theirs = dict(captured.spec.rendering) | {"max_length": None}
        mine = dict(own.spec.rendering)
        del mine["created"], theirs["overflow"], theirs["stride"]
        assert mine == theirs


def test_a_row_without_records_is_counted(teacher: Dumper, tmp_path: Path) -> None:
    with logitstore.create(tmp_path / "s", **settings(teacher, 3, shard_rows=1)) as w:
        w.skip(0, "Nobody asked.")
        w.add(1, "")
        w.add(2, ENGLISH[0], logits=logits_of(teacher, teacher.ids(ENGLISH[0])))
    store = logitstore.open_store(tmp_path / "s")
    assert store.statuses == {"no_lists": 1, "empty": 1, "ok": 1}
    assert [len(store[i]) for i in range(3)] == [0, 0, len(teacher.ids(ENGLISH[0])) - 1]


@pytest.mark.parametrize("add_eos", [False, True])
def test_a_student_is_given_an_end_where_the_teacher_had_one(
    add_eos: bool, teacher: Dumper, tmp_path: Path
) -> None:
    """And every other token's distribution, at the label that it is of."""
    text, eos = ENGLISH[0], teacher.tokenizer.eos_token_id
    ids = [*teacher.ids(text), *([eos] if add_eos else [])]
    rows = [(text, {"logits": logits_of(teacher, ids)})]
    store = created(tmp_path / "s", teacher, rows, top_k=8, add_eos=add_eos)
    example = StoreDataset(store, ByteTokenizer(teacher.tokenizer), ("tail_kl",))[0]
    assert example.token_ids.tolist() == ids
    assert int(example.is_label.sum()) == len(store[0]) == len(ids) - 1


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
import logitstore
assert not {"transformers", "tokenizers"} & set(sys.modules)
folder, out = sys.argv[1:]
with logitstore.create(out, tokenizer=folder, teacher="t", rows=2, top_k=4) as w:
    for row in w.missing():
        w.add(row, input_ids=[1, 70, 71, 72], logits=np.eye(4, 400) * (row + 3))
print(len(logitstore.open_store(out)[1]))
"""


@pytest.mark.slow
def test_no_torch_is_needed(teacher: Dumper, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(teacher.folder), str(tmp_path / "s")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stderr


def test_a_teachers_folder_names_the_teacher(teacher: Dumper, tmp_path: Path) -> None:
    """As in the example of `create`: its tokenizer is loaded from there."""
    with logitstore.create(tmp_path / "s", tokenizer=teacher.folder, rows=1, top_k=4) as w:
        ids = teacher.tokenizer("The teacher reads.").input_ids
        w.add(0, input_ids=ids, logits=np.zeros((len(ids), len(teacher.tokenizer)), np.float32))
    spec = logitstore.open_store(tmp_path / "s").spec
    assert spec.teacher["fingerprint"] == fingerprint_folder(teacher.folder)
