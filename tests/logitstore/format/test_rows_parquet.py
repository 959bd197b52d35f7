"""Lines of a shard's text: the first of a group with its neighbours, later ones by their page."""

import hashlib
import zlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.format import rows_parquet as lines_module
from logitstore.format.line_index import LineIndex
from logitstore.format.rows_parquet import GROUP_LINES, LinesReader, encode_lines
from logitstore.records import Segment, SequenceText

LINES = [
    SequenceText(
        i,
        i % 3,
        "ok" if i % 5 else "truncated",
        (
            *((Segment(f"who? {i % 7}", supervised=False, role="user"),) * (i % 4)),
            Segment(f"naïve text {i} 🙂", supervised=True),
        ),
        supervised_start=i * 2**33,
        messages=f'[{{"é": {i}}}]' if i % 2 else None,
    )
    for i in range(2 * GROUP_LINES + 5)
]


def reader_of(lines: Sequence[SequenceText], **options: object) -> LinesReader:
    """Of the file as it is written, or with other options of Parquet."""
    data = encode_lines(lines)
    if options:
        sink = pa.BufferOutputStream()
        fixed = {"row_group_size": GROUP_LINES, "write_page_checksum": True}
        pq.write_table(pq.read_table(pa.BufferReader(data)), sink, **fixed, **options)
        data = sink.getvalue()
    return LinesReader(memoryview(data), len(lines))


@pytest.fixture
def reader() -> LinesReader:
    return reader_of(LINES)


def test_a_line_read_alone_is_the_line_read_among_its_neighbours(reader: LinesReader) -> None:
    order = [70, 3, 130, 3, 5, 64, 71, 127, 0, 132]
    assert [reader[i] for i in order] == [LINES[i] for i in order]
    assert [reader[i] for i in range(len(LINES))] == LINES
    assert all(index is not None for index in reader._kept.indexes.values())


@pytest.mark.parametrize(
    ("options", "has_index"),
    [
        ({"compression": "none", "use_dictionary": False}, True),
        ({"compression": "zstd", "use_dictionary": False}, True),
        ({"compression": "none"}, True),
        ({"compression": "zstd", "data_page_size": 64, "use_dictionary": False}, False),
        ({"compression": "zstd", "dictionary_pagesize_limit": 64}, False),
    ],
)
def test_lines_are_the_same_however_their_strings_lie(
    options: dict[str, object], has_index: bool
) -> None:
    reader = reader_of(LINES, **options)
    order = [70, 3, 130, 3, 5, 64, 71, 127, 0, 132]
    assert [reader[i] for i in order] == [LINES[i] for i in order]
    assert {index is not None for index in reader._kept.indexes.values()} == {has_index}


def test_a_group_is_decoded_once_and_then_a_page_at_a_time(
    reader: LinesReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, read = [], []
    table, pages = reader.table, LineIndex.read

    def counted(index: LineIndex, data: object) -> object:
        read.append(index)
        return pages(index, data)  # type: ignore[arg-type]

    monkeypatch.setattr(reader, "table", lambda group: (decoded.append(group), table(group))[1])
    monkeypatch.setattr(LineIndex, "read", counted)
    for i in (3, 70, 130, 4, 71, 131, 5):  # a shuffled epoch: another group each time
        assert reader[i] == LINES[i]
    assert decoded == [0, 1, 2]
    assert len(read) == 7
    for i in range(GROUP_LINES):  # in order: the page stays
        assert reader[i] == LINES[i]
    assert (decoded, len(read)) == ([0, 1, 2], 7)


def test_what_is_kept_of_a_shard_is_bounded(
    reader: LinesReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in (3, 70, 130):
        _ = reader[i]
    whole = reader._kept
    assert whole.nbytes == sum(each.nbytes for each in whole.indexes.values() if each)
    monkeypatch.setattr(lines_module, "_INDEX_BYTES", whole.nbytes - 1)
    fresh = reader_of(LINES)
    for i in (3, 70, 130, 4, 71):
        assert fresh[i] == LINES[i]
        assert fresh._kept.nbytes < whole.nbytes
    assert 0 < len(fresh._kept.indexes) < 3
    fresh.drop()
    assert fresh._kept.indexes == {}
    assert fresh[3] == LINES[3]


def test_a_page_that_changes_after_its_group_was_checked_is_an_error() -> None:
    """Its checksum is compared whenever it is read, and the digest of each line."""
    data = bytearray(memoryview(encode_lines(LINES)))
    reader = LinesReader(memoryview(data), len(LINES))
    assert reader[3] == LINES[3]
    index = reader._kept.indexes[0]
    assert index is not None
    page = index.texts.page
    assert page is not None
    _ = reader[70]  # so that the page is read anew
    data[page.start + page.stored // 2] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        _ = reader[4]
    data[page.start + page.stored // 2] ^= 1
    assert reader[4] == LINES[4]
    _ = reader[70]
    wrong = bytes(hashlib.sha256(b"").digest()[:16])
    index.digests[5] = wrong
    with pytest.raises(ValueError, match="does not match its digest"):
        _ = reader[5]


def test_the_checksum_of_a_page_is_that_of_its_stored_bytes(reader: LinesReader) -> None:
    _ = reader[0]
    index = reader._kept.indexes[0]
    assert index is not None
    page = index.texts.page
    assert page is not None
    stored = reader._data[page.start : page.start + page.stored]
    assert zlib.crc32(stored) == page.checksum
