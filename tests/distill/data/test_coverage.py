"""The coverage report: its figures by hand, its advice, and the warning before training."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from distill.data.coverage import KINDS, coverage, recommend, table
from distill.data.dataset import StoreDataset
from logitstore.capture import capture
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.commands import Run
from tests.kit.students import ragged_rows, trainer_of

NUMBERS: list[Row] = [
    (Segment("In 1984 there were 12 of 3,000.  All  left.", supervised=True),),
    (Segment("Say: ", supervised=False), Segment("no 7 \n\n yes", supervised=True)),
]


def pair(
    tmp_path: Path,
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    rows: list[Row],
    **how: Any,
) -> tuple[FakeStore, StoreDataset]:
    store = FakeStore.from_teacher(
        tiny.llama(len(teacher), seed=7), teacher, rows, tmp_path / "t", **how
    )
    return store, StoreDataset(store, ByteTokenizer(student))


def by_hand(
    store: FakeStore, rows: list[Row], teacher: ByteTokenizer, student: ByteTokenizer
) -> dict[str, list[float]]:
    """Labels, shared starts, strict; stored, shared and mapped mass; borne out; token by token."""
    counts = {kind: [0.0] * 7 for kind in KINDS}
    known = {b for b in student.token_bytes if b}
    for records, segments in zip(store.records, rows, strict=True):
        theirs = {
            (int(s), int(n) == 0): (j, int(s + n))
            for j, (s, n, v) in enumerate(
                zip(records.byte_starts, records.byte_lengths, records.token_ids, strict=True)
            )
            if n > 0 or v in teacher.eos_ids
        }
        tokens = student.encode(segments)
        for t in np.flatnonzero(tokens.has_record):
            start, length = int(tokens.byte_starts[t]), int(tokens.byte_lengths[t])
            written = student.token_bytes[tokens.token_ids[t]] or b""
            kinds = ["all"]
            kinds += ["numerals"] if any(chr(b) in "0123456789" for b in written) else []
            kinds += ["white space"] if written.isspace() else []
            is_event = bool(tokens.is_eos[t])
            found = theirs.get((start, is_event)) if is_event or length else None
            line = [1.0, 0, 0, 0, 0, 0, 0]
            if found is not None:
                j, end = found
                line[1], line[2] = 1, end == start + length
                own = teacher.token_bytes[records.token_ids[j]] or b""
                longest = max((x for x in known if own.startswith(x)), key=len, default=None)
                twin_only = own.decode(errors="replace").isspace() and longest != own
                line[6] = is_event or (longest == written and not twin_only)
                entries = records.padded()
                assert entries.ids is not None
                for v, logprob in zip(entries.ids[j].tolist(), entries.logprobs[j], strict=True):
                    text, q = teacher.token_bytes[v], float(np.exp(logprob))
                    is_end = v in teacher.eos_ids
                    begins = text and any(text.startswith(x) for x in known)
                    line[3] += q
                    line[4] += q * (is_end or text in known)
                    line[5] += q * bool(
                        is_end
                        or text in known
                        or (begins and not text.decode(errors="replace").isspace())
                    )
            for kind in kinds:
                counts[kind] = [a + b for a, b in zip(counts[kind], line, strict=True)]
    return counts


@pytest.mark.parametrize("student", [tiny.byte_bpe, tiny.sp_bpe])
def test_the_figures_are_those_counted_by_hand(tmp_path: Path, student: Any) -> None:
    teacher, rows = tiny.unigram(), NUMBERS
    store, data = pair(tmp_path, teacher, student(), rows, top_k=20)
    facts = coverage(data)
    counts = by_hand(store, rows, ByteTokenizer(teacher), ByteTokenizer(student()))
    assert counts["numerals"][0] >= 3
    assert counts["white space"][0] >= 1
    for kind in KINDS:
        labels, shared, strict, stored, exact, mapped, borne_out = counts[kind]
        assert facts["kinds"][kind] == pytest.approx(
            {
                "labels": labels,
                "shared_starts": shared / labels,
                "strict": strict / labels,
                "shared_mass": exact / stored,
                "mapped_mass": mapped / stored,
                "borne_out": borne_out / shared,
            }
        )


def test_every_record_has_its_tail_in_one_bin(tmp_path: Path) -> None:
    store, data = pair(tmp_path, tiny.unigram(), tiny.byte_bpe(), ragged_rows(), top_k=60)
    tails = coverage(data)["tails"]
    values = np.exp(np.concatenate([r.tail_logmass for r in store.records]).astype(np.float64))
    low = -1.0
    for tail in tails:
        inside = (values > low) & (values <= tail["tail_at_most"])
        assert tail["records"] == inside.sum()
        assert tail["share"] == pytest.approx(inside.mean())
        low = tail["tail_at_most"]
    assert sum(tail["records"] for tail in tails) == len(values)


def test_one_tokenizer_shares_everything(tmp_path: Path) -> None:
    _, data = pair(tmp_path, tiny.byte_bpe(), tiny.byte_bpe(), ragged_rows())
    facts = coverage(data)
    assert facts["kinds"]["all"]["shared_starts"] == facts["kinds"]["all"]["strict"] == 1
    assert facts["kinds"]["all"]["shared_mass"] == pytest.approx(1)
    assert facts["kinds"]["all"]["borne_out"] == 1
    assert facts["recommended"] == "tail_kl"


@pytest.mark.parametrize(
    ("teacher", "student", "how", "loss", "reason"),
    [
        (tiny.byte_bpe, tiny.byte_bpe, {}, "tail_kl", "one tokenizer"),
        (tiny.byte_bpe, tiny.unigram, {}, "mapped_kl", "tokenizers differ"),
        (tiny.unigram, tiny.byte_bpe, {}, "mapped_kl", "tokenizers differ"),
        (
            lambda: tiny.byte_bpe(1200),
            lambda: tiny.byte_bpe(259),
            {},
            "alm",
            "is followed, less than 40%",
        ),
        (tiny.unigram, lambda: tiny.byte_bpe(257), {}, "alm", "reads bytes"),
        (tiny.unigram, tiny.byte_bpe, {"has_ids": False}, "uld", "captured with --no-ids"),
        (tiny.byte_bpe, tiny.byte_bpe, {"has_ids": False}, "uld", "captured with --no-ids"),
    ],
)
def test_the_loss_that_a_pair_speaks_for(
    tmp_path: Path, teacher: Any, student: Any, how: dict[str, Any], loss: str, reason: str
) -> None:
    _, data = pair(tmp_path, teacher(), student(), ragged_rows(), **how)
    facts = coverage(data)
    assert facts["recommended"] == loss
    assert reason in facts["reason"]
    assert f"use --loss {loss}: " in table(facts)


def test_a_store_without_ids_and_few_shared_starts_speaks_for_alm() -> None:
    kinds = {"all": {"shared_starts": 0.3, "mapped_mass": None}}
    facts = {"same_tokenizer": False, "has_ids": False, "has_entries": True, "kinds": kinds}
    assert recommend(facts | {"byte_student": False})[0] == "alm"


def test_only_so_many_sequences_are_looked_at_spread_over_the_store(tmp_path: Path) -> None:
    _, data = pair(tmp_path, tiny.unigram(), tiny.byte_bpe(), ragged_rows())
    read: list[int] = []
    original = data.store.text
    data.store.text = lambda i: read.append(i) or original(i)  # type: ignore[method-assign,func-returns-value]
    assert coverage(data, sequences=3)["sequences"] == 3
    assert read == [0, 3, 7]


def test_training_warns_once_where_mapped_kl_would_see_little(tmp_path: Path) -> None:
    """And says what to use, and how to be left alone."""
    tokenizer = tiny.unigram()
    # Scripts that so small a byte-level vocabulary writes byte by byte.
    rows: list[Row] = [(Segment(text, supervised=True),) for text in tiny.corpus()[:6]]
    store = FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, rows, tmp_path / "t"
    )
    model = tiny.llama(len(tiny.byte_bpe()))
    message = r"low coverage: .*is followed.*--loss alm .*PYTHONWARNINGS="
    with pytest.warns(UserWarning, match=message) as caught:
        trainer_of(model, store, tmp_path / "a", loss="mapped_kl")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "low coverage")
        trainer_of(model, store, tmp_path / "b", loss="mapped_kl")
    for loss in ("alm", "uld", "mapped_kl,alm"):
        trainer_of(model, store, tmp_path / "c", loss=loss)


def test_the_command_reads_a_store_and_a_tokenizer(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student may be a tokenizer alone: its weights are not looked at."""
    teacher = tiny.unigram()
    tiny.save(tmp_path / "teacher", tiny.llama(len(teacher), seed=7), teacher)
    tiny.byte_bpe().save_pretrained(tmp_path / "student")
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in tiny.corpus()[36:42])
    )
    store = tmp_path / "store"
    capture(str(tmp_path / "teacher"), str(tmp_path / "data.jsonl"), out=store, top_k=8)
    capsys.readouterr()
    asked = ("coverage", str(store), str(tmp_path / "student"))
    status, out, _ = run(*asked, "--json")
    facts = json.loads(out)
    assert (status, facts["recommended"], facts["sequences"]) == (0, "mapped_kl", 6)
    status, out, _ = run(*asked, "--sequences", "2")
    assert status == 0
    assert "shared starts" in out
    assert "sequences    2 looked at" in out
    for bad, message in (
        ((*asked, "--sequences", "0"), "--sequences 0"),
        ((*asked, "--max-length", "1"), "--max-length 1"),
        (("coverage", str(store), str(tmp_path / "nothing")), "AutoTokenizer cannot load it"),
        (("coverage", str(tmp_path), str(tmp_path / "student")), "not a store"),
    ):
        status, _, err = run(*bad)
        assert status == 2
        assert message in err
