"""Whatever is wrong with a row that a program gives: one exact message, and nothing is written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

import logitstore
from logitstore.errors import InputError, LogitStoreError
from logitstore.testing import tiny
from tests.kit.created import logits_of, settings, with_entries
from tests.kit.dumps import Dumper

TEXT = "the old river forgets nothing."
FULL = (
    "Give log-probabilities over the full vocabulary, at temperature 1: of vLLM those are "
    "`prompt_logprobs` with --logprobs-mode raw_logprobs, its default."
)
TOGETHER = (
    "which do not go together. Full rows are logits=… or logprobs=… and nothing else; entries are "
    "ids=… and logprobs=…, with tail=…, entropy=… and token_logprob=… where they are known."
)
Arrays = dict[str, Any]


def put(array: Any, place: Any, value: float) -> Any:
    changed = np.array(array, np.float64)
    changed[place] = value
    return changed


class Wrong(NamedTuple):
    """A way to be wrong.

    Attributes:
        name: What is wrong.
        breaks: Changes the arguments of `add`, which has logits and entries of the text to choose.
        says: The message after `s: row 1`.
        more: Arguments of `create`.
    """

    name: str
    breaks: Callable[[Arrays, Arrays], Arrays]
    says: str
    more: Mapping[str, Any] = MappingProxyType({})


def renormalised(entries: Arrays) -> Arrays:
    logprobs = entries["logprobs"]
    return {
        "ids": entries["ids"],
        "logprobs": logprobs - np.log(np.exp(logprobs).sum(1, keepdims=True)),
    }


def softmax(logits: Any) -> Any:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


WRONG = (
    # ---- the arrays ----
    Wrong("nothing", lambda f, e: {}, ": no probabilities. Give logits=…, or ids=… and logprobs=…; "
          "a row that has none is kept with skip()."),
    Wrong("all at once", lambda f, e: f | e, f": has logits, ids, logprobs, tail, {TOGETHER}"),
    Wrong("a tail of logits", lambda f, e: f | {"tail": e["tail"]},
          f": has logits, tail, {TOGETHER}"),
    Wrong("ids alone", lambda f, e: {"ids": e["ids"]}, f": has ids, {TOGETHER}"),
    Wrong("logits of another vocabulary", lambda f, e: {"logits": f["logits"][:, :300]},
          ": its rows are 300 wide, but {tokenizer} has ids up to 399: they are of another "
          "vocabulary. Give the teacher's tokenizer."),
    Wrong("a much wider vocabulary",
          lambda f, e: {"logits": np.pad(f["logits"], ((0, 0), (0, 9000)))},
          ": its rows are 9,400 wide, but {tokenizer} has ids up to 399: they are of another "
          "vocabulary. Give the teacher's tokenizer, or vocab_size=9400 if this is it."),
    Wrong("another width than was said", lambda f, e: f,
          ": its rows are 400 wide, expected 512: they are of another vocabulary than was said, or "
          "than rows before. Give logits of one teacher.", {"vocab_size": 512}),
    Wrong("a vector", lambda f, e: {"logits": f["logits"][0]},
          ": logits has the shape (400,), expected [tokens, vocabulary]. Give an array of one row "
          "of the data, with a row for each token."),
    Wrong("a row too few", lambda f, e: {"logits": f["logits"][1:]},
          ": 8 rows of logits for 9 tokens. The tokenizer begins with 1, 85, 259, 362, 380, 382, "
          "…. Give one row a token, of the same text and tokenizer (add_eos=True if the text ends "
          "with EOS), or the tokens as input_ids=…."),
    Wrong("NaN", lambda f, e: {"logits": put(f["logits"], (3, 7), np.nan)},
          ": logits[3]: holds nan, expected numbers, and -inf only where the teacher excludes a "
          "token. Compute it in float32, or keep the row without records with skip()."),
    Wrong("infinity", lambda f, e: {"logits": put(f["logits"], (3, 7), np.inf)},
          ": logits[3]: holds inf, expected numbers, and -inf only where the teacher excludes a "
          "token. Compute it in float32, or keep the row without records with skip()."),
    Wrong("nothing is possible", lambda f, e: {"logits": put(f["logits"], 3, -np.inf)},
          ": logits[3]: every value is -inf, expected numbers, and -inf only where the teacher "
          "excludes a token. Compute it in float32, or keep the row without records with skip()."),
    Wrong("probabilities for logits", lambda f, e: {"logits": softmax(f["logits"])},
          ": every row of logits is of numbers from 0 to 1 that add up to one, so these are "
          "probabilities. Give what the model returns before softmax, or their logarithm as "
          "logprobs=…."),
    Wrong("logits for log-probabilities", lambda f, e: {"logprobs": f["logits"] * 0 - 1},
          ": logprobs[0]: its probabilities add up to 147.2, expected 1: without ids, logprobs are "
          "of the whole vocabulary. Give what the model returns before softmax as logits=…, or "
          "entries as ids=… and logprobs=…."),
    Wrong("no numbers", lambda f, e: {"logits": np.full((9, 400), "a")},
          ": logits: expected numbers, found <U1. Convert them."),
    # ---- entries ----
    Wrong("logits for entries", lambda f, e: e | {"logprobs": -e["logprobs"]},
          ", token 1: 0.0000 for id 0 is above 0, so it is not a log-probability."),
    Wrong("entries of more than one",
          lambda f, e: {"ids": e["ids"], "logprobs": e["logprobs"] * 0 - 1},
          f", token 1: its probabilities add up to 2.9430, expected 1 or less. {FULL}"),
    Wrong("NaN in entries", lambda f, e: e | {"logprobs": put(e["logprobs"], (2, 0), np.nan)},
          ", token 3: the log-probability of id {id} is not a number. Drop the row."),
    Wrong("an id twice",
          lambda f, e: e | {"ids": put(e["ids"], (2, 1), e["ids"][2, 0]).astype(int)},
          ", token 3: id {id} is in its list twice. Drop the row, or repair what wrote it."),
    Wrong("an id beyond", lambda f, e: e | {"ids": put(e["ids"], (2, 0), 400).astype(int)},
          ", token 3: id 400 is outside the vocabulary, which has 0 to 399. Give the width of the "
          "teacher's logits with --vocab-size, or the --tokenizer that the dump was made with."),
    Wrong("ids that are no ids", lambda f, e: e | {"ids": e["ids"] + 0.5},
          ": ids: expected whole numbers, found float64. Convert them."),
    Wrong("no entries", lambda f, e: e | {"logprobs": put(e["logprobs"], 2, -np.inf)},
          ", token 3: has no entries. Give some for every token that is trained on, or keep the "
          "row without records with skip()."),
    Wrong("another tail", lambda f, e: e | {"tail": put(e["tail"], 2, -0.01)},
          ", record 2: has entries and tail whose probabilities add up to another number than 1 "
          "({sum}). Give natural logarithms over the full vocabulary, at temperature 1, never "
          "renormalised."),
    Wrong("a tail that is a probability", lambda f, e: e | {"tail": np.exp(e["tail"])},
          ", record 0: has a tail that is no log-probability ({tail}). Give natural logarithms "
          "over the full vocabulary, at temperature 1, never renormalised."),
    Wrong("rows of one length alone", lambda f, e: e | {"tail": e["tail"][1:]},
          ": 9 of ids, 9 of logprobs, 8 of tail. Give each array one row a token."),
    Wrong("a pair without its other", lambda f, e: e | {"ids": list(e["ids"][:, 1:]),
                                                      "logprobs": list(e["logprobs"])},
          ": logprobs[0]: 8 log-probabilities for 7 ids. Give one an id."),
    Wrong("the least probable", lambda f, e: {"ids": e["ids"], "logprobs": e["logprobs"] - 12},
          "cannot be the rest"),
    # ---- what cannot be had ----
    Wrong("a temperature of entries", lambda f, e: e,
          ": temperatures needs full rows, found ids, logprobs, tail. Leave it out, or give "
          "logits=….", {"temperatures": [2.0]}),
    Wrong("a deviation of log-probabilities", lambda f, e: {"logprobs": f["logits"]},
          ": logit_std needs logits=…, found logprobs. Leave it out.", {"logit_std": True}),
    Wrong("other tokens than the text", lambda f, e: f | {"input_ids": [1, 2, 3]},
          ": its 3 input_ids are not the 9 tokens of its text ({tokenizer} begins with 1, 85, "
          "259, 362, 380, 382, …): the first that differs is number 1. Give the tokenizer that the "
          "logits were computed with, or input_ids=… alone."),
    Wrong("text and messages", lambda f, e: f | {"messages": []},
          ": has text, messages. Give a text (with prompt=… before it if it has one), or "
          "messages=…, or input_ids=… (with labels=… if not all are trained on); input_ids=… "
          "beside a text or messages are compared with it."),
)  # fmt: skip


def refused(
    place: Path, asked: Mapping[str, Any], *rows: Mapping[str, Any], kind: str = "input"
) -> str:
    """Add rows, the last of which is wrong, or their store; what the error says, but for where."""

    def program() -> None:
        with logitstore.create(place, **asked) as w:
            for row, given in enumerate(rows):
                w.add(row, **given)

    with pytest.raises(LogitStoreError) as caught:
        program()
    assert (type(caught.value), caught.value.kind) == (InputError, kind)
    assert list(place.parent.iterdir()) == []  # nothing is written
    said = str(caught.value)
    assert said.startswith(f"{place}: ")
    return said.removeprefix(f"{place}: ")


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_row_that_is_wrong(wrong: Wrong, teacher: Dumper, tmp_path: Path) -> None:
    full = {"logits": logits_of(teacher, teacher.ids(TEXT))}
    entries = with_entries(teacher, [TEXT])[0][1]
    given = wrong.breaks(full, entries)
    asked = settings(teacher, 2, top_k=8, **wrong.more)
    said = refused(tmp_path / "s", asked, {"text": ""}, {"text": TEXT} | given)
    says = wrong.says.format(
        tokenizer=teacher.folder,
        id=entries["ids"][2, 0],
        sum=f"{np.exp(-0.01) + np.exp(entries['logprobs'][2]).sum():.4g}",
        tail=f"{np.exp(entries['tail'])[0]:.4g}",
    )
    if wrong.name in ("logits for entries", "the least probable"):
        assert says.split("id 0")[-1] in said
    else:
        assert said == f"row 1{says}"


def test_a_row_that_is_wrong_may_be_added_again(teacher: Dumper, tmp_path: Path) -> None:
    logits = logits_of(teacher, teacher.ids(TEXT))
    with logitstore.create(tmp_path / "s", **settings(teacher, 2)) as w:
        for row in range(2):
            with pytest.raises(InputError, match=r"holds nan"):
                w.add(row, TEXT, logits=put(logits, 3, np.nan))
            assert w.add(row, TEXT, logits=logits)
        for row, says in (
            (1, "row 1: was added before. Add each row once."),
            (2, "row 2: expected 0 to 1, since rows is 2. Number the rows from 0."),
            (-1, "row -1: expected 0 to 1, since rows is 2. Number the rows from 0."),
        ):
            with pytest.raises(InputError) as caught:
                w.add(row, TEXT, logits=logits)
            assert str(caught.value) == f"{tmp_path / 's'}: {says}"
    with pytest.raises(InputError, match=r"the store is closed"):
        w.add(1, TEXT, logits=logits)
    assert len(logitstore.open_store(tmp_path / "s")) == 2


def test_rows_are_alike(teacher: Dumper, tmp_path: Path) -> None:
    logits, entries = logits_of(teacher, teacher.ids(TEXT)), with_entries(teacher, [TEXT])[0][1]
    others: tuple[tuple[Arrays, str], ...] = (
        (
            {"text": TEXT} | entries,
            (
                "has ids, logprobs, tail, but rows before it have logits. Give the same arrays "
                "for every row."
            ),
        ),
        (
            {"input_ids": teacher.ids(TEXT), "logits": logits},
            (
                "is of the kind tokens, but rows before it are text. Write the two kinds of rows "
                "into two stores."
            ),
        ),
        (
            {"text": TEXT, "logits": np.pad(logits, ((0, 0), (0, 9)))},
            (
                "its rows are 409 wide, expected 400: they are of another vocabulary than was "
                "said, or than rows before. Give logits of one teacher."
            ),
        ),
    )
    for given, says in others:
        first = {"text": TEXT, "logits": logits}
        assert refused(tmp_path / "s", settings(teacher, 3), first, given) == f"row 1: {says}"


def shifted(logits: Any, ids: Any, aligned_to: str) -> Any:
    """As if the caller had taken the one way for the other; with a teacher that knows its text."""
    sure = np.array(logits)
    sure[np.arange(len(ids) - 1), ids[1:]] += 30
    return sure if aligned_to == "token" else np.roll(sure, 1, 0)


@pytest.mark.parametrize("aligned_to", ["next", "token"])
def test_logits_of_the_token_beside_are_noticed(
    aligned_to: str, teacher: Dumper, tmp_path: Path
) -> None:
    rows = [
        {"input_ids": ids, "logits": shifted(logits_of(teacher, ids), ids, aligned_to)}
        for ids in map(teacher.ids, tiny.corpus()[:6])
    ]
    asked = settings(teacher, len(rows), top_k=2, aligned_to=aligned_to)
    said = refused(tmp_path / "s", asked, *rows)
    neighbour, other = ("before", "token") if aligned_to == "next" else ("after", "next")
    assert f"hold the token {neighbour} the one they would be of" in said
    assert said.endswith(f"they are shifted. Give aligned_to='{other}'.")


def test_renormalised_entries_are_noticed(teacher: Dumper, tmp_path: Path) -> None:
    rows = [
        {"text": text} | renormalised(entries)
        for text, entries in with_entries(teacher, tiny.corpus()[:6])
    ]
    said = refused(tmp_path / "s", settings(teacher, len(rows)), *rows)
    assert "so they were renormalised, and their tails are lost" in said


def test_a_store_of_nothing_is_not_written(teacher: Dumper, tmp_path: Path) -> None:
    rows = [{"text": ""}] * 3
    said = refused(tmp_path / "s", settings(teacher, 3), *rows, kind="lost-rows")
    assert said.startswith("none of its 3 rows has a record, so nothing was written.")


def test_settings_that_cannot_be(teacher: Dumper, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    teacher.tokenizer.save_pretrained(bare)
    nameless = (
        f"{bare}: does not say which teacher the logits are of. Name it with teacher=… "
        "(its hub id, or its folder)."
    )
    one = "temperatures has 1.0, expected positive numbers other than 1, which is always kept."
    wrong: tuple[tuple[Arrays, str], ...] = (
        ({"rows": 0}, "rows is 0, expected 1 to 281,474,976,710,655."),
        ({"top_k": 0}, "top_k is 0, expected 1 to 65,535."),
        ({"aligned_to": "last"}, "aligned_to is last, expected token or next."),
        ({"max_tail": 1}, "max_tail is 1, expected a probability, such as 0.01."),
        ({"temperatures": [1]}, one),
        ({"teacher": None, "tokenizer": bare}, nameless),
    )
    for more, says in wrong:
        with pytest.raises(InputError) as caught:
            logitstore.create(tmp_path / "s", **(settings(teacher, 3) | more))
        assert str(caught.value) == says
    assert list(tmp_path.iterdir()) == [bare]
