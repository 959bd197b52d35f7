"""Lines of a shard's text: the first of a group alone, from the second on all of them."""

import pytest

from logitstore.format import rows_parquet as lines_module
from logitstore.format.rows_parquet import GROUP_LINES, LinesReader, encode_lines
from logitstore.records import Segment, SequenceText

LINES = [
    SequenceText(i, 0, "ok", (Segment(f"text {i}", supervised=True),))
    for i in range(2 * GROUP_LINES + 5)
]


@pytest.fixture
def reader() -> LinesReader:
    return LinesReader(memoryview(encode_lines(LINES)), len(LINES))


def test_a_line_read_alone_is_the_line_read_among_its_neighbours(reader: LinesReader) -> None:
    order = [70, 3, 130, 3, 5, 64, 71, 127, 0, 132]
    assert [reader[i] for i in order] == [LINES[i] for i in order]
    assert [reader[i] for i in range(len(LINES))] == LINES


def test_a_line_read_alone_costs_no_neighbour(
    reader: LinesReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, line = [], lines_module._line

    def counted(item: dict[str, object]) -> SequenceText:
        made.append(item)
        return line(item)

    monkeypatch.setattr(lines_module, "_line", counted)
    for i in (3, 70, 130):  # a shuffled epoch: another group each time
        _ = reader[i]
    assert len(made) == 3
    for i in range(GROUP_LINES):  # in order: a group once, and one line of it twice
        _ = reader[i]
    assert len(made) == 3 + 1 + GROUP_LINES
