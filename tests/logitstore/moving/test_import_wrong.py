"""Whatever is wrong with a dump: one exact message that names file, row and token, nothing written.

The commands run as a user types them, in a folder that has a teacher and the dump.
"""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from logitstore.cli.app import main
from logitstore.testing import stores, tiny
from tests.kit import dumps
from tests.kit.dumps import Dumper

ROWS = tiny.corpus()[:3]
IMPORT = "logitstore import dump.jsonl --out s --tokenizer teacher --teacher t"
FULL = (
    "Give log-probabilities over the full vocabulary, at temperature 1: of vLLM those are "
    "`prompt_logprobs` with --logprobs-mode raw_logprobs, its default."
)
ASK = (
    "Ask for ids instead: with vLLM, `return_tokens_as_token_ids: true` in the request, or "
    "`return_token_ids: true` and its `prompt_logprobs`."
)
Row = dict[str, Any]


class Wrong(NamedTuple):
    """A way to be wrong.

    Attributes:
        name: What is wrong.
        make: The rows before.
        breaks: Changes the rows.
        says: The whole message.
        command: What was typed.
    """

    name: str
    make: Callable[[Dumper, str], Row]
    breaks: Callable[[list[Row]], Any]
    says: str
    command: str = IMPORT


def sets(*place: Any, to: Any) -> Callable[[list[Row]], None]:
    def breaks(rows: list[Row]) -> None:
        inner: Any = rows
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = to

    return breaks


def drops(*place: Any) -> Callable[[list[Row]], None]:
    def breaks(rows: list[Row]) -> None:
        inner: Any = rows
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]

    return breaks


def nothing(rows: list[Row]) -> None:
    return None


def chat(dumper: Dumper, text: str) -> Row:
    return dumper.chat([{"role": "user", "content": "?"}], text)


def swap_names(rows: list[Row]) -> None:
    """Text instead of ids."""
    for row in rows:
        for item in row["response"]["choices"][0]["logprobs"]["content"]:
            item["token"] = "no such token"


PREPARED, RAW, SCORED = Dumper.prepared, Dumper.raw, Dumper.scored
CHOICE = (1, "response", "choices", 0)

WRONG = (
    # ---- which rows, which columns ----
    Wrong(
        "no columns that are known",
        lambda d, t: {"text": t},
        nothing,
        "dump.jsonl: line 1: no known columns; expected `logprobs`, `target_logprobs` with "
        "`target_token_ids` and `input_ids`, or a response with `choices`, found text. Name the "
        "column of lists with --logprobs-column; `logitstore import --help` has all that is read.",
    ),
    Wrong(
        "no rows",
        RAW,
        list.clear,
        "dump.jsonl: 0 rows, so nothing to import. Give a dump with some.",
    ),
    Wrong(
        "a row of another kind",
        RAW,
        lambda rows: rows[1].update(choices=[{"text": "a"}]),
        "dump.jsonl: line 2: is not a raw row, as the first one is. Import the two kinds of rows "
        "into two stores.",
    ),
    Wrong(
        "no teacher",
        RAW,
        nothing,
        "dump.jsonl: line 1: does not say which teacher it is of. Name it with --teacher (its hub "
        "id, or its folder).",
        "logitstore import dump.jsonl --out s --tokenizer teacher",
    ),
    Wrong(
        "no tokenizer",
        RAW,
        nothing,
        "dump.jsonl: is not an export of a store, so the teacher's tokenizer is needed. Name its "
        "folder with --tokenizer.",
        "logitstore import dump.jsonl --out s",
    ),
    Wrong(
        "a tokenizer that is not there",
        RAW,
        nothing,
        "--tokenizer ./nowhere: AutoTokenizer cannot load it (there is no such folder). Give the "
        "folder of the teacher's tokenizer, or a hub id that this machine can reach or has cached.",
        "logitstore import dump.jsonl --out s --teacher t --tokenizer ./nowhere",
    ),
    Wrong(
        "a dump that is not there",
        RAW,
        nothing,
        "other.jsonl: no such file or folder. Name a dump.",
        "logitstore import other.jsonl --out s --teacher t --tokenizer teacher",
    ),
    Wrong(
        "a folder without a dump",
        RAW,
        nothing,
        "teacher/none: holds no .parquet or .jsonl file. Name a dump.",
        "logitstore import teacher/none --out s --teacher t --tokenizer teacher",
    ),
    Wrong(
        "another kind of file",
        RAW,
        nothing,
        "teacher/model.safetensors: unknown kind of file; expected .parquet or .jsonl (this also "
        "with .gz or .zst), found '.safetensors'. Convert it.",
        "logitstore import teacher/model.safetensors --out s --teacher t --tokenizer teacher",
    ),
    # ---- flags ----
    Wrong(
        "an alignment that is none",
        RAW,
        nothing,
        "--aligned-to is before, expected token or next.",
        f"{IMPORT} --aligned-to before",
    ),
    Wrong(
        "a way with unlisted tokens that is none",
        RAW,
        nothing,
        "--unlisted is keep, expected mark or drop.",
        f"{IMPORT} --unlisted keep",
    ),
    Wrong(
        "a vocabulary smaller than the tokenizer's",
        RAW,
        nothing,
        "--vocab-size is 300, but teacher has ids up to 399. Give the width of the teacher's "
        "logits.",
        f"{IMPORT} --vocab-size 300",
    ),
    Wrong(
        "a vocabulary of nothing",
        RAW,
        nothing,
        "--vocab-size is -1, expected 1 or more.",
        f"{IMPORT} --vocab-size -1",
    ),
    Wrong(
        "a flag for conversations",
        RAW,
        nothing,
        "dump.jsonl: line 1: the rows are not conversations, so --supervise last would have no "
        "effect. Leave it out.",
        f"{IMPORT} --supervise last",
    ),
    Wrong(
        "lists said to be renormalised that are not",
        RAW,
        nothing,
        "dump.jsonl: the tails of its lists are 0.8199 on average, so they were not renormalised. "
        "Leave --renormalised out.",
        f"{IMPORT} --renormalised",
    ),
    # ---- lengths ----
    Wrong(
        "a list too few",
        RAW,
        lambda rows: rows[1]["logprobs"].pop(),
        "dump.jsonl: line 2: 8 lists of logprobs for 9 tokens. Give one list a token (an empty "
        "one or null where there is none), or drop the row.",
    ),
    Wrong(
        "lists of ids and of numbers of unequal length",
        PREPARED,
        lambda rows: rows[1]["target_logprobs"][2].pop(),
        "dump.jsonl: line 2, token 2: 7 log-probabilities for 8 ids. Give one an id, or drop the "
        "row.",
    ),
    Wrong(
        "more lists of ids than of numbers",
        PREPARED,
        lambda rows: rows[1]["target_logprobs"].pop(),
        "dump.jsonl: line 2: 8 lists of target_logprobs for 9 of target_token_ids. Give both one "
        "list a token, or drop the row.",
    ),
    Wrong(
        "labels of another length",
        PREPARED,
        lambda rows: rows[2]["labels"].pop(),
        "dump.jsonl: line 3: labels has 11 values, but there are 12 input_ids. Give one a token, "
        "or leave the column out.",
    ),
    Wrong(
        "labels that are shifted",
        PREPARED,
        lambda rows: rows[0].update(labels=[*rows[0]["labels"][1:], -100]),
        "dump.jsonl: line 1: label 0 is 278, expected the token itself (1) or -100. Labels lie on "
        "their own tokens here, as Trainer has them: do not shift them.",
    ),
    Wrong(
        "a mask of another shape",
        PREPARED,
        lambda rows: rows[0]["target_mask"][3].pop(),
        "dump.jsonl: line 1: target_mask does not have the lengths of target_logprobs. Prepare the "
        "data again.",
    ),
    Wrong(
        "prompt_logprobs of another prompt",
        SCORED,
        lambda rows: rows[0]["choices"][0]["prompt_token_ids"].append(5),
        "dump.jsonl: line 1: 9 lists of prompt_logprobs for 10 tokens. Give one list a token (an "
        "empty one or null where there is none), or drop the row.",
    ),
    # ---- values ----
    Wrong(
        "an id outside the vocabulary",
        PREPARED,
        sets(2, "target_token_ids", 1, 3, to=400),
        "dump.jsonl: line 3, token 1: id 400 is outside the vocabulary, which has 0 to 399. Give "
        "the width of the teacher's logits with --vocab-size, or the --tokenizer that the dump was "
        "made with.",
    ),
    Wrong(
        "a token outside the vocabulary",
        PREPARED,
        lambda rows: (rows[0]["input_ids"].__setitem__(2, 400), rows[0].pop("labels")),
        "dump.jsonl: line 1: token ids reach from 1 to 400, but the teacher's tokenizer has 0 to "
        "399. Tokenise the dataset with it, or give text.",
    ),
    Wrong(
        "not a number",
        PREPARED,
        sets(1, "target_logprobs", 4, 0, to=float("nan")),
        "dump.jsonl: line 2, token 4: the log-probability of id 281 is not a number. Drop the row.",
    ),
    Wrong(
        "a probability instead of its logarithm",
        RAW,
        sets(1, "logprobs", 3, 0, "logprob", to=0.25),
        "dump.jsonl: line 2, token 3: 0.25 for id 243 is above 0, so it is not a log-probability. "
        f"Are these probabilities or logits? {FULL}",
    ),
    Wrong(
        "more probability than one",
        RAW,
        sets(1, "logprobs", 3, 0, "logprob", to=-0.01),
        "dump.jsonl: line 2, token 3: its probabilities add up to 1.1332, expected 1 or less. "
        f"{FULL}",
    ),
    Wrong(
        "an id twice in a list",
        RAW,
        lambda rows: rows[0]["logprobs"][2].__setitem__(1, rows[0]["logprobs"][2][0]),
        "dump.jsonl: line 1, token 2: id 243 is in its list twice. Drop the row, or repair what "
        "wrote it.",
    ),
    Wrong(
        "text for a number",
        RAW,
        sets(0, "logprobs", 2, 0, "logprob", to="low"),
        "dump.jsonl: line 1: logprobs: cannot be read as lists (Could not convert 'low' with "
        "type str: tried to convert to double). Fix the row.",
    ),
    Wrong(
        "lists that are none",
        RAW,
        sets(0, "logprobs", to="none"),
        "dump.jsonl: line 1: logprobs: expected lists of entries with a token_id (or token) and a "
        "logprob, found string. Name the column of such lists with --logprobs-column.",
    ),
    Wrong(
        "no list at all",
        PREPARED,
        lambda rows: [row.update(target_mask=[[0] * 8] * len(row["input_ids"])) for row in rows],
        "dump.jsonl: no record in 3 rows: of its 27 supervised tokens 0 have a list. Check labels "
        "and masks, and which column the lists are in.",
    ),
    # ---- responses ----
    Wrong(
        "a prompt without its tokens",
        SCORED,
        drops(1, "choices", 0, "prompt_token_ids"),
        "dump.jsonl: line 2: prompt_logprobs does not say which tokens the prompt has. Add "
        "prompt_token_ids (vLLM: `return_token_ids: true`), or input_ids.",
    ),
    Wrong(
        "an answer without its prompt",
        chat,
        lambda rows: [row.pop("messages") for row in rows],
        "dump.jsonl: line 1: does not say what the answer is an answer to. Add the request's "
        "messages to the line, or prompt_token_ids (vLLM: `return_token_ids: true`).",
    ),
    Wrong(
        "a response without log-probabilities",
        chat,
        sets(*CHOICE, "logprobs", to=None),
        "dump.jsonl: line 2: the response has no logprobs. Ask for them: `logprobs: true, "
        "top_logprobs: 20` (chat) or `logprobs: 20` (completions); of SGLang "
        "`return_logprob: true, top_logprobs_num: 20, logprob_start_len: 0`.",
    ),
    Wrong(
        "a response that failed",
        chat,
        lambda rows: rows[1].update(response=None, error="too long"),
        "dump.jsonl: line 2: has no response (too long). Drop the row.",
    ),
    Wrong(
        "a token that is none",
        chat,
        swap_names,
        f"dump.jsonl: line 1, token 0: 'no such token' is not a token of teacher. Give the "
        f"--tokenizer that the dump was made with. {ASK}",
    ),
    Wrong(
        "bytes that make no character",
        chat,
        sets(*CHOICE, "logprobs", "content", 2, "token", to="\N{REPLACEMENT CHARACTER}"),
        "dump.jsonl: line 2, token 2: the text '\N{REPLACEMENT CHARACTER}' does not say which "
        f"token of teacher it is. {ASK}",
    ),
    Wrong(
        "an id that is no whole number",
        PREPARED,
        sets(1, "target_token_ids", 2, 0, to=1.5),
        "dump.jsonl: line 2: target_token_ids and target_logprobs: a value is no whole number. Fix "
        "or drop the row.",
    ),
    Wrong(
        "numbers as text",
        PREPARED,
        lambda rows: rows[1].update(
            target_logprobs=[["NaN"] * len(each) for each in rows[1]["target_logprobs"]]
        ),
        "dump.jsonl: line 2: target_token_ids and target_logprobs: a value is text, not a number. "
        "Fix or drop the row.",
    ),
    Wrong(
        "half of a surrogate pair",
        PREPARED,
        sets(1, "target_logprobs", 0, to="\ud800"),
        "dump.jsonl: line 2: target_logprobs: cannot be read as lists ('utf-8' codec can't encode "
        "character '\\ud800' in position 0: surrogates not allowed). Fix the row.",
    ),
    Wrong(
        "a token more probable than certain",
        chat,
        sets(*CHOICE, "logprobs", "content", 2, "logprob", to=5.0),
        f"dump.jsonl: line 2, token 2: 5 for the token itself is above 0, so it is not a "
        f"log-probability. Are these probabilities or logits? {FULL}",
    ),
    Wrong(
        "a key that is no id",
        SCORED,
        sets(0, "choices", 0, "prompt_logprobs", 1, "the", to={"logprob": -1.0}),
        "dump.jsonl: line 1, token 1: expected token ids as keys, found 'the'. Drop the row.",
    ),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dumper]:
    here = tmp_path_factory.mktemp("wrong")
    dumper = dumps.dumper(here / "teacher")
    (here / "teacher" / "none").mkdir()
    return here, dumper


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_each_is_one_exact_message(
    wrong: Wrong,
    world: tuple[Path, Dumper],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, dumper = world
    monkeypatch.chdir(here)
    rows = [json.loads(json.dumps(wrong.make(dumper, text))) for text in ROWS]
    wrong.breaks(rows)
    dumps.write_jsonl(here / "dump.jsonl", rows)
    before = stores.tree(here)
    monkeypatch.setattr(sys, "argv", shlex.split(wrong.command))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert err == f"error: {wrong.says}\n"
    assert (stopped.value.code, out) == (2, "")
    assert stores.tree(here) == before


def test_lines_that_are_no_rows_are_named(
    world: tuple[Path, Dumper],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, dumper = world
    monkeypatch.chdir(here)
    good = json.dumps(dumper.raw(ROWS[0])).encode()
    for line, says in (
        (b'{"logprobs": [', "is not JSON (Expecting value at column 15). Each line must be one"),
        (b"\xff\xfe", "is not UTF-8 (byte 0xFF). Convert the file: iconv"),
        (b"[1, 2]", "holds a list, not an object. Each line must be one object"),
        (b"[" * 100_000, "is nested deeper than 100 levels. Repair or drop the row."),
    ):
        (here / "dump.jsonl").write_bytes(good + b"\n\n" + line + b"\n")
        monkeypatch.setattr(sys, "argv", shlex.split(IMPORT))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: dump.jsonl: line 3 {says}")
