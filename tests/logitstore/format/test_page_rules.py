"""Two honest readers of FORMAT.md agree: what its table says must be rejected is, by both.

Every case is a golden store in which one thing is wrong, with every digest and checksum around it
made right again (`tests/kit/page_rules`). Messages are compared, so that it is that thing which is
rejected.
"""

import re
from pathlib import Path

import pytest

import logitstore
from logitstore.checking.verify import verify_store
from logitstore.errors import LogitStoreError
from tests.kit.page_rules import NOBODY, READING, VERIFYING
from tests.kit.page_rules.tools import Case, copy_of, read_by_them, read_by_us
from tests.kit.reader_from_spec import RefusedError
from tests.logitstore.format.test_reader_from_spec import PAGE

#: Lines of the table that other tests hold.
ELSEWHERE = {
    "a bomb, of arrays or of text": "tests/logitstore/format/test_page_limits.py",
    "bytes of the text that are not those of the token, as the stored tokenizer has it": (
        "tests/logitstore/checking/test_verify.py"
    ),
}
#: Cases of what a reader must take, on the page but not in its table.
TAKEN = {"shuffles that a writer may choose"}


def flat(rules: dict[str, dict[str, Case]]) -> list[object]:
    return [
        pytest.param(case, id=f"{rule[:40]}-{name}")
        for rule, cases in rules.items()
        for name, case in cases.items()
    ]


def table() -> dict[str, str]:
    """What is wrong, and who rejects it."""
    part = PAGE.split("## Who checks what")[1].split("\n## ")[0]
    lines = [re.fullmatch(r"\| (.+) \| (.+) \|", line) for line in part.splitlines()]
    return {m[1]: m[2] for m in lines if m and m[2] != "who rejects it"}


def test_every_line_of_the_table_has_its_cases() -> None:
    who, known = table(), READING.keys() | VERIFYING.keys() | (NOBODY.keys() - TAKEN)
    assert len(who) > 30
    assert known | ELSEWHERE.keys() == who.keys()
    assert {rule for rule, said in who.items() if "reading" in said} == (
        READING.keys() | {"a bomb, of arrays or of text"}
    )
    assert {rule for rule, said in who.items() if "verifying" in said} == (
        VERIFYING.keys() | (ELSEWHERE.keys() - {"a bomb, of arrays or of text"})
    )
    assert {rule for rule, said in who.items() if said == "nobody"} == NOBODY.keys() - TAKEN
    root = Path(logitstore.__file__).parents[1]
    assert all((root / path).exists() for path in ELSEWHERE.values())


@pytest.mark.parametrize("case", flat(READING))
def test_both_readers_reject(tmp_path: Path, case: Case) -> None:
    store = copy_of(case.golden, tmp_path / "s")
    case.change(store)
    with pytest.raises(LogitStoreError) as ours:
        read_by_us(store)
    assert case.ours in str(ours.value)
    with pytest.raises(RefusedError) as theirs:
        read_by_them(store)
    assert case.theirs in str(theirs.value)


@pytest.mark.parametrize("case", flat(VERIFYING))
def test_verifying_finds(tmp_path: Path, case: Case) -> None:
    store = copy_of(case.golden, tmp_path / "s")
    case.change(store)
    assert any(case.ours in found.reason for found in verify_store(store, deep=True).damaged)


@pytest.mark.parametrize("case", flat({r: c for r, c in VERIFYING.items() if r not in READING}))
def test_what_only_verifying_finds_can_be_read(tmp_path: Path, case: Case) -> None:
    store = copy_of(case.golden, tmp_path / "s")
    case.change(store)
    read_by_us(store)


@pytest.mark.parametrize("case", flat(NOBODY))
def test_what_nobody_rejects_is_valid(tmp_path: Path, case: Case) -> None:
    store = copy_of(case.golden, tmp_path / "s")
    case.change(store)
    read_by_us(store)
    read_by_them(store)
    assert verify_store(store, deep=True).damaged == []
