"""A number and its word agree: nobody reads of 1 shards."""

import re

import pytest

from logitstore.console.counts import counted
from tests.kit.paths import ROOT

NOUNS = "shards|rows|sequences|records|tokens|files|steps|seeds|runs|prompts|labels|turns|draws"
#: Where people are told what a command has done.
TELLING = ("logitstore/cli", "logitstore/inspection", "distill/report", "distill/training/summary")


def test_one_is_singular_and_all_others_are_not() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2, 1200)] == [
        "0 shards", "1 shard", "2 shards", "1,200 shards",
    ]  # fmt: skip
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


@pytest.mark.parametrize("part", TELLING)
def test_what_a_command_tells_is_counted_so(part: str) -> None:
    """A number that is formatted by itself in front of its word is right but for one."""
    paths = [*ROOT.joinpath(part).rglob("*.py"), *ROOT.glob(f"{part}.py")]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    alone = re.compile(rf"\{{[^{{}}:!]+(:,)?\}} ({NOUNS})\b")
    assert [line for line in lines if alone.search(line) and "of {" not in line] == []
