"""The coverage report: its figures by hand, its advice, and the warning before training."""

import json
import math
import re
import shlex
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from distill.alignment.cuts import Cuts
from distill.alignment.make_map import KINDS as MAPS
from distill.data.coverage import KINDS, coverage
from distill.data.coverage_of_pair import of_pair
from distill.data.coverage_table import table
from distill.data.coverage_warning import _trouble
from distill.data.dataset import StoreDataset
from distill.data.judging import turn_starts
from distill.losses import advice
from distill.losses.requirements import check_needs
from logitstore.capture import capture
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import talks, templates
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
    options = {name: how.pop(name) for name in ("map", "between") if name in how}
    store = FakeStore.from_teacher(
        tiny.llama(len(teacher), seed=7), teacher, rows, tmp_path / "t", **how
    )
    reader, losses = ByteTokenizer(student), ["mapped_kl"] if how.get("has_ids", True) else ["alm"]
    return store, StoreDataset(store, reader, losses, **options)


def by_hand(
    store: FakeStore, rows: list[Row], teacher: ByteTokenizer, student: ByteTokenizer
) -> dict[str, list[float]]:
    """Labels, shared starts, and labels that longest prefixes ask for; token by token."""
    counts = {kind: [0.0] * 3 for kind in KINDS}
    known = {b for b in student.token_bytes if b}
    for records, segments in zip(store.records, rows, strict=True):
        theirs = {
            (int(s), int(n) == 0): j
            for j, (s, n, v) in enumerate(
                zip(records.byte_starts, records.byte_lengths, records.token_ids, strict=True)
            )
            if n > 0 or v in teacher.eos_ids
        }
        tokens = student.encode(segments)
        for t in np.flatnonzero(tokens.has_record):
            start, length = int(tokens.byte_starts[t]), int(tokens.byte_lengths[t])
            written = student.token_bytes[tokens.token_ids[t]] or b""
            is_end = bool(tokens.is_eos[t])
            found = theirs.get((start, is_end)) if is_end or length else None
            line = [1.0, float(found is not None), 0]
            if found is not None:
                own = teacher.token_bytes[records.token_ids[found]] or b""
                longest = max((x for x in known if own.startswith(x)), key=len, default=None)
                twin_only = own.decode(errors="replace").isspace() and longest != own
                line[2] = is_end or (longest == written and not twin_only)
            for kind in ("all", sort_of(written, is_end)):
                counts[kind] = [a + b for a, b in zip(counts[kind], line, strict=True)]
    return counts


def sort_of(written: bytes, is_end: bool) -> str:
    if is_end:
        return "ends"
    text = written.decode("latin-1")
    if re.search("[0-9]", text):
        return "numerals"
    if not text.strip(" \n\t"):
        return "white space"
    if re.search("[^ -~\n]", text):
        return "other scripts"
    return "words" if re.search("[A-Za-z]", text) else "signs"


@pytest.mark.parametrize("student", [tiny.byte_bpe, tiny.sp_bpe])
def test_the_figures_are_those_counted_by_hand(tmp_path: Path, student: Any) -> None:
    teacher, rows = tiny.unigram(), NUMBERS
    store, data = pair(tmp_path, teacher, student(), rows, map="prefix")
    facts = coverage(data)
    counts = by_hand(store, rows, ByteTokenizer(teacher), ByteTokenizer(student()))
    assert counts["numerals"][0] >= 3
    assert counts["white space"][0] >= 1
    for kind in set(KINDS) - {"first of a turn"}:
        labels, shared, right = counts[kind]
        share = facts["kinds"][kind]
        assert share["labels"] == labels
        if labels:
            assert share["shared_starts"] == pytest.approx(shared / labels)
            assert share["covered"] == pytest.approx(shared / labels)
        if shared:
            assert share["right"] == pytest.approx(right / shared)
            assert share["wrong"] == pytest.approx(1 - right / shared)


def test_kinds_divide_the_labels_and_a_first_one_is_counted_twice(tmp_path: Path) -> None:
    rows: list[Row] = [
        (
            Segment("Say:", supervised=False),
            Segment("yes", supervised=True),
            Segment(" again", supervised=False),
            Segment("no 7", supervised=True),
        )
    ] * 2
    kinds = coverage(pair(tmp_path, tiny.byte_bpe(), tiny.byte_bpe(), rows)[1])["kinds"]
    parts = [kinds[kind]["labels"] for kind in KINDS if kind not in ("all", "first of a turn")]
    assert sum(parts) == kinds["all"]["labels"]
    assert kinds["first of a turn"]["labels"] == 2 * len(rows)


def test_labels_inside_a_token_are_covered_as_training_covers_them(tmp_path: Path) -> None:
    teacher, shares = tiny.unigram(), {}
    texts = (f"{text} In 1984 there were 12  of 3,000." for text in tiny.corpus()[:12])
    rows: list[Row] = [(Segment(text, supervised=True),) for text in texts]
    for between in ("off", "on"):
        how = {"top_k": 200, "map": "canonical", "between": between}
        _, data = pair(tmp_path, teacher, tiny.byte_bpe(), rows, **how)
        share = coverage(data)["kinds"]["all"]
        aligned = sum(data[i].aligned for i in range(len(data)))
        assert share["covered"] * share["labels"] == pytest.approx(aligned)
        shares[between] = share["covered"]
    assert shares["on"] > shares["off"] == pytest.approx(share["shared_starts"])


class NothingBehind(Cuts):
    """A student that ends no token of one kind before anything that the teacher has."""

    def __init__(self, last: int) -> None:
        self.last = last

    def fits(self, last: Any, teacher_ids: Any) -> Any:
        return (last != self.last) | (teacher_ids < 0)


def test_what_the_student_would_have_cut_elsewhere_is_in_no_target_and_not_judged(
    tmp_path: Path,
) -> None:
    """Fault: the default was judged by tokens that training leaves out of its targets."""
    teacher, student, rows = tiny.unigram(), tiny.byte_bpe(), ragged_rows()
    shares = {}
    for kind in ("canonical", "prefix"):
        _, data = pair(tmp_path / kind, teacher, student, rows, map=kind)
        before = Counter[int]()
        for i in range(len(data)):
            asked = data.asked(i, "mapped_kl")
            assert asked is not None
            first, ends = set(turn_starts(asked.text).tolist()), asked.student.is_eos
            for s in asked.pairs.table[:, 2].tolist():
                if s and not ends[s] and int(asked.student.starts[s]) not in first:
                    before[int(asked.label_ids[s - 1])] += 1
        (last, count), *_ = before.most_common(1)
        assert count > 3
        whole = coverage(data)["kinds"]["all"]
        data.tokenizers.__dict__["cuts"] = NothingBehind(last)
        share = coverage(data)["kinds"]["all"]
        covered = share["covered"] * share["labels"]
        is_ours = kind == "canonical"
        assert share["cut"] * covered == pytest.approx(count if is_ours else 0)
        assert share["covered"] == whole["covered"]
        assert (share["right"] == whole["right"]) == (not is_ours)
        shares[kind] = share
    assert "are not judged" in table(
        coverage(data) | {"kinds": shares_as_kinds(shares["canonical"])}
    )


def shares_as_kinds(share: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(KINDS, share)


def test_a_strict_loss_is_judged_where_its_other_targets_could_come(tmp_path: Path) -> None:
    """Of the labels that it chooses, by what came, all would be right."""
    teacher, rows = tiny.unigram(), ragged_rows()
    _, data = pair(tmp_path, teacher, tiny.byte_bpe(), rows, map="strict")
    share = coverage(data)["kinds"]["all"]
    assert share["right"] == pytest.approx(share["covered"] / share["shared_starts"])
    assert share["wrong"] > 0.1


def test_of_a_loss_whose_student_chooses_it_says_that_its_map_alone_is_judged(
    tmp_path: Path,
) -> None:
    _, data = pair(tmp_path, tiny.unigram(), tiny.byte_bpe(), ragged_rows())
    for loss, is_said in (("cdm", True), ("mapped_kl", False)):
        facts = coverage(data.with_losses([loss]))
        assert facts["by_students_choice"] is is_said
        assert ("judged by the fixed tokens of cdm alone" in table(facts)) is is_said


def test_grouping_gives_up_the_bits_that_its_events_do_not_tell(tmp_path: Path) -> None:
    teacher, student, rows = tiny.unigram(), tiny.byte_bpe(), ragged_rows()
    for kind in ("canonical", "events", "p_kl"):
        _, data = pair(tmp_path, teacher, student, rows, map=kind, between="off")
        bits = coverage(data)["bits"]
        made = data.map_of(kind)
        labels = [
            int(asked.label_ids[s])
            for i in range(len(data))
            if (asked := data.asked(i, "mapped_kl")) is not None
            for s in asked.pairs.table[:, 2]
        ]
        events = labels if made.of_token is None else [int(made.of_token[u]) for u in labels]
        assert bits["tokens"] == pytest.approx(entropy(labels))
        assert bits["events"] == pytest.approx(entropy(events))
        assert (bits["given_up"] > 0) == (kind == "events")


def entropy(ids: list[int]) -> float:
    return -sum(n / len(ids) * math.log2(n / len(ids)) for n in Counter(ids).values())


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
    share = facts["kinds"]["all"]
    assert share["shared_starts"] == share["covered"] == share["right"] == 1
    assert share["wrong"] == facts["total_variation"] == facts["bits"]["given_up"] == 0
    assert facts["vocabulary"]["of_teacher"] == facts["vocabulary"]["of_student"] == 1
    assert facts["folds"] is None
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
            {"between": "off"},
            "alm",
            "less than 40%",
        ),
        (tiny.unigram, lambda: tiny.byte_bpe(257), {}, "alm", "reads bytes"),
        (tiny.unigram, tiny.byte_bpe, {"has_ids": False}, "uld", "captured with --no-ids"),
        (tiny.byte_bpe, tiny.byte_bpe, {"has_ids": False}, "uld", "captured with --no-ids"),
    ],
)
def test_the_loss_that_a_pair_speaks_for(
    tmp_path: Path, teacher: Any, student: Any, how: dict[str, Any], loss: str, reason: str
) -> None:
    store, data = pair(tmp_path, teacher(), student(), ragged_rows(), **how)
    facts = coverage(data)
    assert facts["recommended"] == loss
    assert reason in facts["reason"]
    check_needs(store, data.reader.tokenizer, loss)


def test_a_store_without_ids_and_few_shared_starts_speaks_for_alm() -> None:
    kinds = {"all": {"labels": 9, "shared_starts": 0.3, "covered": 0.9}}
    facts = {"same_tokenizer": False, "has_ids": False, "has_entries": True, "kinds": kinds}
    facts |= {"byte_student": False, "weights": "new"}
    assert advice.recommend(facts).loss == "alm"
    kinds["all"]["shared_starts"] = 0.5
    assert advice.recommend(facts).loss == "uld"


def test_where_counting_is_worse_on_text_not_counted_the_table_says_so(tmp_path: Path) -> None:
    """Of two sequences, each half is one, and knows nothing of the other."""
    _, data = pair(tmp_path, tiny.unigram(), tiny.byte_bpe(), ragged_rows())
    facts = coverage(data)
    for better in ("counted", "canonical"):
        off = {name: 0.1 + 0.1 * (name != better) for name in ("canonical", "counted")}
        folds = {name: {"mass": 0.5, "total_variation": each} for name, each in off.items()}
        is_said = "Counting is worse" in table(facts | {"folds": folds})
        assert is_said == (better == "canonical")


def test_only_so_many_sequences_are_looked_at_spread_over_the_store(tmp_path: Path) -> None:
    _, data = pair(tmp_path, tiny.unigram(), tiny.byte_bpe(), ragged_rows())
    read: list[int] = []
    original = data.store.text
    data.store.text = lambda i: read.append(i) or original(i)  # type: ignore[method-assign,func-returns-value]
    assert coverage(data, sequences=3)["sequences"] == 3
    assert read == [0, 3, 7]


@pytest.mark.parametrize("kind", MAPS)
def test_training_warns_once_where_a_map_asks_for_wrong_labels(tmp_path: Path, kind: str) -> None:
    """And names better flags, and how to be left alone."""
    tokenizer = tiny.unigram()
    store = FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, ragged_rows(), tmp_path / "t"
    )
    model = tiny.llama(len(tiny.byte_bpe()))
    data = StoreDataset(store, ByteTokenizer(tiny.byte_bpe()), ["mapped_kl"], map=kind)
    figures = coverage(data)["kinds"]["all"]
    wrong, judged = figures["wrong"], figures["judged"]
    assert (wrong > advice.MOST_WRONG) == (kind not in ("counted", "events"))
    by_chance = 2.33 * math.sqrt(0.05 * 0.95 / judged)  # once in a hundred times
    how: dict[str, Any] = {"loss": "mapped_kl", "map": kind}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(model, store, tmp_path / "a", **how)
    said = [str(each.message) for each in caught if "wrong labels" in str(each.message)]
    is_wrong = wrong > 0.05 + by_chance
    assert len(said) == (is_wrong or bool(advice.wrong_kinds(coverage(data)["kinds"])))
    for message in said if is_wrong else ():
        assert message.startswith("wrong labels: ")
        assert f"{wrong:.0%} of the labels that mapped_kl --map {kind} compares" in message
        assert "Use --loss mapped_kl --map events." in message
        assert 'PYTHONWARNINGS="ignore:wrong labels"' in message


def test_wrong_labels_of_one_kind_are_told_though_all_together_are_few(tmp_path: Path) -> None:
    """Nearly all first labels of turns are wrong, and one of a hundred of all labels."""
    _, data = pair(tmp_path, tiny.unigram(), tiny.byte_bpe(), ragged_rows())
    facts = coverage(data)
    kinds = {name: each | {"wrong": 0.0, "judged": 900} for name, each in facts["kinds"].items()}
    facts |= {"kinds": kinds, "by_map": {"covered": 0.9, "wrong": 0.01, "judged": 900}}
    assert advice.wrong_kinds(kinds) == {}
    assert "careful" not in table(facts)
    kinds["all"]["wrong"] = 0.01
    kinds["first of a turn"] |= {"wrong": 0.9, "judged": 10}
    kinds["numerals"] |= {"wrong": 0.06, "judged": 30}  # as chance makes of so few
    assert advice.wrong_kinds(kinds) == {"first of a turn": 0.9}
    said = " ".join(table(facts).split())
    assert (
        "careful wrong by kind of label: first of a turn 90%. If these matter to you, compare with "
        "--loss alm." in said
    )
    facts["map"] = "prefix"
    assert "first of a turn 90%. Train with --loss mapped_kl --map events." in " ".join(
        table(facts).split()
    )
    trouble = _trouble("mapped_kl", facts, ["mapped_kl"])
    assert trouble.startswith("wrong labels: ")
    assert "mapped_kl --map prefix: wrong by kind of label: first of a turn 90%." in trouble


def mislabelled(store: FakeStore) -> FakeStore:
    """The same places in the text, but each with the token of the one before it."""
    for i, own in enumerate(store.records):
        ids, is_text = own.token_ids.copy(), ~np.isin(own.token_ids, store.spec.eos_ids)
        ids[is_text] = np.roll(ids[is_text], 1)
        store.records[i] = replace(own, token_ids=ids)
    return store


def test_a_map_that_asks_for_wrong_labels_is_not_advised_and_warned_of(tmp_path: Path) -> None:
    """Whatever map is looked at: what the advised one asks for is known, too."""
    store, data = pair(tmp_path, tiny.unigram(), tiny.byte_bpe(), ragged_rows())
    assert coverage(data)["recommended"] == "mapped_kl"
    data = StoreDataset(mislabelled(store), data.reader.tokenizer, ["mapped_kl"])
    facts = coverage(data)
    wrong = facts["kinds"]["all"]["wrong"]
    assert wrong == facts["by_map"]["wrong"] > 0.4
    assert (facts["recommended"], facts["flags"]) == ("alm", "--loss alm")
    assert f"{wrong:.0%} of the labels are not what mapped_kl --map events asks for:" in table(
        facts
    )
    for loss, kind in (("mapped_kl", "prefix"), ("mapped_kl", "strict"), ("uld", "events")):
        other = StoreDataset(store, data.reader.tokenizer, [loss], map=kind)
        looked_at = coverage(other)
        assert looked_at["by_map"] == facts["by_map"]
        assert looked_at["reason"] == facts["reason"]
    with pytest.warns(
        UserWarning, match=r"wrong labels: .* mapped_kl --map events .* Use --loss alm\."
    ):
        trainer_of(
            tiny.llama(len(tiny.byte_bpe())),
            store,
            tmp_path / "a",
            loss="mapped_kl",
            no_self_test=True,
        )


def test_without_what_alm_needs_either_cross_entropy_is_advised() -> None:
    kinds = {"all": {"labels": 9, "shared_starts": 0.9, "covered": 0.9, "wrong": 0.06}}
    kinds["all"]["judged"] = 9_000
    facts = {"same_tokenizer": False, "has_ids": True, "has_entries": True, "kinds": kinds}
    facts |= {"byte_student": False, "weights": "trained", "by_map": kinds["all"]}
    assert advice.recommend(facts).loss == "alm"
    assert advice.recommend(facts | {"missing": ["token_logprob"]}).loss == "ce"
    assert (
        advice.recommend(facts | {"by_map": {"covered": 0.9, "wrong": 0.05, "judged": 9_000}}).loss
        == "mapped_kl"
    )


def test_training_warns_once_where_mapped_kl_would_see_little(tmp_path: Path) -> None:
    """And says what to use, and how to be left alone."""
    tokenizer = tiny.unigram()
    # Scripts that so small a byte-level vocabulary writes byte by byte.
    rows: list[Row] = [(Segment(text, supervised=True),) for text in tiny.corpus()[:6]]
    store = FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, rows, tmp_path / "t"
    )
    model = tiny.llama(len(tiny.byte_bpe()))
    message = r"low coverage: .*mapped_kl compares \d+% .*--loss alm .*PYTHONWARNINGS="
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
    assert (facts["weights"], facts["map"]) == ("unknown", "events")
    assert set(facts["folds"]) == {"canonical", "counted"}
    status, out, _ = run(*asked, "--map", "prefix", "--json")
    assert (status, json.loads(out)["map"]) == (0, "prefix")
    for flags, loss, kind, between in (
        (("--loss", "mapped_kl:2", "--between", "on"), "mapped_kl", "events", "on"),
        (("--loss", "uld,mapped_kl", "--map", "prefix"), "mapped_kl", "prefix", "off"),
        (("--between", "on"), "mapped_kl", "events", "on"),
        (("--loss", "alm"), "alm", None, "off"),
    ):
        facts = json.loads(run(*asked, *flags, "--json")[1])
        assert (facts["loss"], facts["map"], facts["between"]) == (loss, kind, between)
        assert (facts["recommended"], facts["options"]) == ("mapped_kl", {"map": "events"})
    assert "loss        mapped_kl --map events --between on\n" in run(*asked, "--between", "on")[1]
    status, out, _ = run(*asked, "--sequences", "2")
    assert status == 0
    assert "sequences   2 of 2 with records that were looked at (of 6) can be used; below," in out
    for bad, message in (
        ((*asked, "--sequences", "0"), "--sequences 0"),
        ((*asked, "--max-length", "1"), "--max-length 1"),
        ((*asked, "--map", "nonsense"), "--map nonsense: not known. Known: events, "),
        ((*asked, "--between", "perhaps"), "--between perhaps: not known. Known: off, on."),
        ((*asked, "--loss", "kl"), "--loss kl: no loss is called 'kl'. Known: ce, "),
        ((*asked, "--loss", "tail_kl"), "tail_kl compares tokens by id"),
        ((*asked, "--loss", "uld", "--map", "prefix"), "--map prefix would have no effect: "),
        ((*asked, "--loss", "ce"), "--loss ce: cross-entropy asks nothing of a teacher"),
        (("coverage", str(store), str(tmp_path / "nothing")), "AutoTokenizer cannot load it"),
        (("coverage", str(tmp_path), str(tmp_path / "student")), "not a store"),
    ):
        status, _, err = run(*bad)
        assert status == 2
        assert message in err


@pytest.mark.parametrize("weights", ["trained", "new", "unknown"])
def test_the_advice_is_a_command_that_trains_this_student(
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
) -> None:
    """New weights are told by a config without any, and made of it."""
    teacher, tokenizer = tiny.unigram(), tiny.byte_bpe()
    tiny.save(tmp_path / "teacher", tiny.llama(len(teacher), seed=7), teacher)
    tiny.save(tmp_path / "student", tiny.llama(len(tokenizer)), tokenizer)
    gone = {"trained": (), "new": ("model.*",), "unknown": ("model.*", "*config.json")}[weights]
    for path in [path for pattern in gone for path in (tmp_path / "student").glob(pattern)]:
        if not path.name.startswith("tokenizer"):
            path.unlink()
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in tiny.corpus()[36:42])
    )
    monkeypatch.chdir(tmp_path)
    capture("teacher", "data.jsonl", out="store", top_k=8)
    capsys.readouterr()
    facts = json.loads(run("coverage", "store", "student", "--json")[1])
    assert facts["weights"] == weights
    out = run("coverage", "store", "student")[1]
    assert max(map(len, out.splitlines())) <= 80
    typed, _, _ = out.partition("\n#")
    words = shlex.split(typed.replace("\\\n", ""))
    assert words == shlex.split(facts["command"])
    assert ("--student_config" in words) == (weights == "new")
    if weights != "unknown":
        status, _, err = run(*words[1:], "--max_steps", "1", "--use_cpu", "--report_to", "none")
        assert status == 0, err
        results = json.loads((tmp_path / "trained" / "results.json").read_text())
        assert (results["loss"], results["map"]) == ("mapped_kl", facts["options"]["map"])


@pytest.mark.parametrize("student", ["gemma", "llama3"])
def test_ends_are_counted_as_training_sends_them(tmp_path: Path, student: str) -> None:
    """To the token that ends a turn in the student's template, which is not its EOS."""
    teacher, reader = templates.chatml(), templates.FAMILIES[student]()
    tiny.save(tmp_path / "teacher", tiny.llama(len(teacher), seed=7), teacher)
    reader.save_pretrained(tmp_path / "student")
    talks.capture(tmp_path / "teacher", [{"messages": t} for t in talks.TALKS], tmp_path / "store")
    for kind in ("counted", "canonical", "prefix", "events", "p_kl"):
        facts = of_pair(str(tmp_path / "store"), str(tmp_path / "student"), map=kind)
        ends, first = facts["kinds"]["ends"], facts["kinds"]["first of a turn"]
        assert ends["labels"] >= len(talks.TALKS)
        assert (ends["covered"], ends["right"]) == (1, 1)
        assert first["labels"] > len(talks.TALKS)
