"""Rows are chosen by what two teachers say of their text, whatever their tokenizers and windows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data.selection import BY, select
from logitstore.capture import capture
from logitstore.errors import InputError, MismatchError
from logitstore.format.spec import Plan
from logitstore.records import Segment
from logitstore.store import LogitStore, open_store
from logitstore.testing import stores, tiny
from logitstore.testing.fake_store import dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.writing.writer import StoreWriter
from tests.kit.commands import Run

ROWS = 12


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of one dataset, of other teachers: a row is in one window, or in two."""
    folder = tmp_path_factory.mktemp("stores")
    stores.write(folder / "store", stores.spec())
    stores.write(folder / "ref", stores.spec(top_k=0, ids=False), (0, 5, ROWS))
    stores.write(folder / "windows", stores.spec(), parts=2)
    return folder


def scores(store: LogitStore, by: str) -> dict[int, float]:
    """The definition, in float64, from one sequence's records at a time."""
    found = {}
    for row in range(ROWS):
        total, size, tokens = 0.0, 0, 0
        for i in store.row(row):
            records = store[i]
            first = 0
            for t in range(len(records)):
                count = int(records.entry_count[t])
                if records.byte_lengths[t] > 0:
                    size += int(records.byte_lengths[t])
                    tokens += 1
                    if by == "surprise":
                        total -= float(records.token_logprob[t])
                    elif by == "entropy":
                        total += float(records.entropy[t])
                    elif by == "agreement":
                        assert records.entry_ids is not None
                        total += float(records.entry_ids[first] == records.token_ids[t])
                first += count
        if tokens:
            per = {"surprise": size, "entropy": tokens, "agreement": tokens, "length": 1}[by]
            found[row] = (size if by == "length" else total) / per
    return found


def kept(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def best(of: dict[int, float], count: int, *, highest: bool) -> list[int]:
    ordered = sorted(of, key=lambda row: -of[row] if highest else of[row])
    return sorted(ordered[:count])


@pytest.mark.parametrize("by", [name for name in BY if name != "gain"])
@pytest.mark.parametrize("name", ["store", "windows"])
def test_rows_are_ordered_by_their_own_definition(
    here: Path, tmp_path: Path, name: str, by: str
) -> None:
    want = scores(open_store(here / name), by)
    assert 4 < len(want) < ROWS  # every fifth row has no text
    for highest in (True, False):
        facts = select(
            here / name, tmp_path / "rows", keep=0.5, by=by, highest=None if highest else False
        )
        chosen = BY[by] if highest else False
        assert kept(tmp_path / "rows") == best(want, round(len(want) / 2), highest=chosen)
        assert facts["rows_scored"] == len(want)
        assert facts["mean_score"] == pytest.approx(np.mean(list(want.values())), rel=1e-6)


def test_gain_is_the_difference_of_means_a_byte(here: Path, tmp_path: Path) -> None:
    own, others = (scores(open_store(here / name), "surprise") for name in ("store", "ref"))
    gain = {row: others[row] - own[row] for row in own}
    facts = select(here / "store", tmp_path / "rows", keep=0.4, over=here / "ref")
    assert kept(tmp_path / "rows") == best(gain, 4, highest=True)
    assert facts["rows_without_reference"] == 0
    assert facts["mean_score_kept"] == pytest.approx(
        np.mean([gain[row] for row in kept(tmp_path / "rows")]), rel=1e-5
    )
    wrong = {row: others[row] - own[other] for row, other in zip(own, [*own][1:], strict=False)}
    assert best(wrong, 4, highest=True) != kept(tmp_path / "rows")


def test_rows_are_found_by_their_text_in_another_dataset(here: Path, tmp_path: Path) -> None:
    """Of fewer rows, in another order: those without a twin are counted, and not kept."""
    source = open_store(here / "ref")
    plan = Plan("e" * 64, (0, 6))
    writer = StoreWriter(tmp_path / "other", source.spec, plan, stores.TOKENIZER_FILES, {})
    order = [8, 1, 0, 5, 3, 7]
    lines = [
        (source.text(i)._replace(row=new), source.encoded(i))
        for new, old in enumerate(order)
        for i in source.row(old)
    ]
    writer.write_shard(0, lines)
    writer.seal()
    facts = select(here / "store", tmp_path / "rows", keep=1.0, over=tmp_path / "other")
    assert kept(tmp_path / "rows") == sorted(order)
    assert facts["rows_without_reference"] == 10 - len(order)
    own, others = (scores(open_store(here / name), "surprise") for name in ("store", "ref"))
    want = np.mean([others[row] - own[row] for row in order])
    assert facts["mean_score"] == pytest.approx(want, rel=1e-6)


def test_two_captured_stores_say_what_two_live_models_say(tmp_path: Path) -> None:
    """Within the rounding of a token's log-probability, with two tokenizers and no entries."""
    texts = tiny.corpus()[:6]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "train.jsonl").write_text(lines)
    live = []
    for name, tokenizer, seed in (("a", tiny.byte_bpe(), 1), ("b", tiny.unigram(), 2)):
        model = tiny.llama(len(tokenizer), seed=seed)
        tiny.save(tmp_path / name, model, tokenizer)
        capture(
            str(tmp_path / name),
            str(tmp_path / "train.jsonl"),
            tmp_path / f"of-{name}",
            top_k=0,
            draws=1,
        )
        per_byte = []
        for text in texts:
            tokens = ByteTokenizer(tokenizer).encode([Segment(text, supervised=True)])
            logprobs = dense_logprobs(model, tokens.token_ids)
            has = tokens.has_record & (tokens.byte_lengths > 0)
            own = [
                float(logprobs[t - 1, tokens.token_ids[t]]) for t in np.flatnonzero(has).tolist()
            ]
            per_byte.append(sum(own) / int(tokens.byte_lengths[has].sum()))
        live.append(np.array(per_byte))
    gain = live[0] - live[1]
    facts = select(tmp_path / "of-a", tmp_path / "rows", keep=0.5, over=tmp_path / "of-b")
    assert kept(tmp_path / "rows") == sorted(np.argsort(-gain)[:3].tolist())
    assert facts["mean_score"] == pytest.approx(gain.mean(), abs=1 / 512)


def test_the_command_says_what_it_kept_and_what_to_do_next(
    here: Path, tmp_path: Path, run: Run
) -> None:
    rows = tmp_path / "rows.txt"
    status, out, err = run(
        "select", here / "store", "--over", here / "ref", "--keep", 0.5, "-o", rows
    )
    assert (status, err) == (0, "")
    assert "5 kept of 10 with a score, of 12" in out
    assert f"--rows {rows}" in out
    status, out, _ = run(
        "select", here / "store", "--by", "length", "--lowest", "--keep", 0.1, "-o", rows, "--json"
    )
    assert status == 0
    assert json.loads(out)["kept"] == "lowest"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"keep": 0.0}, "--keep is 0, expected a share above 0 and at most 1"),
    ({"keep": 1.5}, "--keep is 1.5, expected"),
    ({"by": "wisdom"}, "--by wisdom: not known. Known: gain, surprise"),
    ({}, "a gain is over something. Name the store of a smaller model"),
    ({"by": "gain"}, "a gain is over something"),
    ({"by": "length", "over": "ref"}, "--by length reads no second store"),
    ({"over": "store"}, "so no row gains anything"),
]


@pytest.mark.parametrize(("how", "message"), WRONG)
def test_what_cannot_be_asked_is_refused_and_nothing_is_written(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match=message):
        select("store", tmp_path / "rows", **{"keep": 0.5, **how})
    assert not (tmp_path / "rows").exists()


def test_a_list_is_written_to_no_bucket_and_in_the_place_of_no_other_file(
    here: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "12"}')
    for out, says in (
        (str(data), "this file exists and is no list of rows, so it is kept"),
        ("s3://b/rows.txt", "^s3://b/rows.txt: is in a bucket, but a list of rows must be on this"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "none" / "rows.txt"), "there is no folder"),
    ):
        with pytest.raises(InputError, match=says):
            select(here / "store", out, keep=0.5, by="surprise")
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]
    assert data.read_text() == '{"text": "12"}'


def test_a_store_that_lacks_it_is_named(here: Path, tmp_path: Path) -> None:
    stores.write(tmp_path / "imported", stores.spec(missing=("token_logprob",)))
    stores.write(tmp_path / "unsure", stores.spec(missing=("entropy",)))
    stores.write(tmp_path / "no-ids", stores.spec(ids=False))
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("imported", {"by": "surprise"}, "imported without the token_logprob of every token"),
        ("unsure", {"by": "entropy"}, "imported without the entropy"),
        ("no-ids", {"by": "agreement"}, "captured with --no-ids"),
        (str(here / "ref"), {"by": "agreement"}, "captured with --top-k 0"),
    ]
    for name, how, message in cases:
        with pytest.raises(MismatchError, match=message):
            select(tmp_path / name, tmp_path / "rows", keep=0.5, **how)
