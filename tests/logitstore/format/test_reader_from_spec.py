"""FORMAT.md is enough: a reader written from it alone agrees with ours."""

import ast
import math
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore
from logitstore import Segment, SequenceText, open_store
from logitstore.checking.verify import verify_store
from logitstore.format import (
    canonical_json,
    index,
    limits,
    logprob_codec,
    parquet_limits,
    shard_group,
)
from logitstore.format.fields import FIELD
from logitstore.format.logprob_codec import ENTRY_STEP, TAIL_STEP
from logitstore.format.rows_parquet import GROUP_LINES
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zarr_arrays import ArraySpec, array_metadata, encode_array
from logitstore.format.zip_archive import Archive
from logitstore.storage import files
from logitstore.testing import stores, tiny
from tests.kit import reader_from_spec
from tests.kit.attacks_on_files import ATTACKS
from tests.kit.paths import GOLDEN
from tests.kit.reader_from_spec.arrays import crc32c
from tests.kit.reader_from_spec.records import decode_entries

VARIANTS: dict[str, StoreSpec] = {
    "plain": stores.spec(),
    "values only": stores.spec(ids=False),
    "ragged": stores.spec(max_tail=0.1, top_k=20),
    "small chunks": stores.spec(chunks=(3, 7), temperatures=(2.0, 0.5)),
    "one temperature": stores.spec(temperatures=(4.0,)),
    "logit deviation": stores.spec(logit_std=True),
    "draws": stores.spec(draws=4),
    "every block": stores.spec(temperatures=(4.0, 2.0), logit_std=True, draws=5, chunks=(4, 9)),
    "every block, no ids": stores.spec(ids=False, temperatures=(4.0,), logit_std=True, draws=5),
    "draws, no entries": stores.spec(top_k=0, draws=5),
    "scalars alone": stores.spec(top_k=0, temperatures=(2.0,)),
    "draws, first layout": stores.spec(draws=5, layout=1, chunks=(4, 9)),
    "compact": stores.spec(codec="compact"),
    "compact, every block": stores.spec(
        codec="compact", temperatures=(4.0, 2.0), logit_std=True, draws=5, chunks=(4, 9)
    ),
    "compact, ragged, first layout": stores.spec(
        codec="compact", max_tail=0.1, top_k=20, draws=3, layout=1
    ),
    "everything kept": stores.spec(vocab_size=30, top_k=30),
    "an import that lacks some": stores.spec(missing=("entropy", "token_logprob")),
    "an import that lacks the tail": stores.spec(missing=("tail_logmass",), max_tail=0.1),
    "18-bit ids": stores.spec(vocab_size=150_000, top_k=3),
}


def assert_same(path: Path) -> int:
    """Both readers, every field of every sequence; returns how many sequences."""
    store = open_store(path, allow_partial=True)
    _, _, theirs = reader_from_spec.read_store(path)
    assert len(theirs) == len(store)
    for i, other in enumerate(theirs):
        mine: Any = store[i]
        for name in FIELD:
            a, b = getattr(mine, name), other[name]
            assert (a is None) == (b is None), name
            if a is not None and a.dtype == np.float32:
                np.testing.assert_array_equal(a, b, err_msg=name)  # to the bit
            elif a is not None:
                np.testing.assert_array_equal(a, b, err_msg=name)
                assert a.dtype == b.dtype
        segments = tuple(Segment(**s) for s in other["segments"])
        fields = {name: other[name] for name in reader_from_spec.LINE} | {"segments": segments}
        assert store.text(i) == SequenceText(**fields)
    return len(theirs)


@pytest.mark.parametrize("name", VARIANTS)
def test_both_readers_agree(tmp_path: Path, name: str) -> None:
    stores.write(tmp_path / "s", VARIANTS[name])
    assert assert_same(tmp_path / "s") == 12
    assert verify_store(tmp_path / "s", deep=True).damaged == []


def test_both_readers_agree_on_a_store_that_is_not_finished(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", shards=(0, 2), seal=False)
    assert assert_same(tmp_path / "s") == 8


def test_both_readers_agree_on_many_lines_and_several_parts_of_a_row(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", boundaries=(0, 150, 151), parts=3)
    assert assert_same(tmp_path / "s") > 300
    store = open_store(tmp_path / "s")
    assert len(store.row(7)) == 3
    assert store.text(store.row(7)[1]).messages is not None
    assert verify_store(tmp_path / "s", deep=True).damaged == []


def test_both_readers_agree_on_a_capture(tmp_path: Path) -> None:
    teacher = tiny.save(tmp_path / "t", tiny.llama(400), tiny.byte_bpe(400, bos=True))
    data = tmp_path / "d.txt"
    data.write_text("\n".join(tiny.corpus()))
    logitstore.capture(teacher, str(data), tmp_path / "s", top_k=8, shard_text_bytes=800)
    assert assert_same(tmp_path / "s") > 30


def test_the_second_reader_refuses_every_flipped_byte_too(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", VARIANTS["every block"], boundaries=(0, 2, 4))
    rng = np.random.default_rng(0)
    files = sorted(p for p in (tmp_path / "s").rglob("*") if p.is_file())
    for _ in range(150):
        path = files[rng.integers(len(files))]
        good = path.read_bytes()
        data = bytearray(good)
        at = int(rng.integers(len(data)))
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises((reader_from_spec.RefusedError, ValueError, LookupError, OSError)):
            reader_from_spec.read_store(tmp_path / "s")
        path.write_bytes(good)
    shutil.rmtree(tmp_path / "s")


def test_the_second_reader_uses_nothing_of_ours() -> None:
    own = Path(reader_from_spec.__file__).parent
    found = set()
    for path in own.iterdir():
        for node in ast.walk(ast.parse(path.read_text())) if path.suffix == ".py" else ():
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
    others = {name for name in found if not name.startswith("tests.kit.reader_from_spec.")}
    libraries = {name.split(".")[0] for name in others} - set(sys.stdlib_module_names)
    assert len(found) > 10
    assert libraries == {"numcodecs", "numpy", "pyarrow"}


PAGE = (Path(logitstore.__file__).parent / "FORMAT.md").read_text()


def test_the_pages_example_is_what_is_written() -> None:
    lines = [line.strip() for line in PAGE.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith('{"attributes":{},'))
    last = next(i for i in range(first, len(lines)) if lines[i].endswith(r"\n"))
    example = "".join(lines[first : last + 1]).removesuffix(r"\n") + "\n"
    of_page = ArraySpec("token_ids", np.dtype("<u4"), (5000,), 2048)
    assert example.encode() == array_metadata(of_page)


def test_the_pages_limits_are_the_codes() -> None:
    page = " ".join(PAGE.split())
    assert f"{canonical_json.MAX_BRACKETS:,} bytes `[` and `{{` together" in page
    assert f'{canonical_json.MAX_QUOTES:,} bytes `"`' in page
    assert f"at most {canonical_json.MAX_DEPTH} deep" in page
    assert f"at most {canonical_json.MAX_DIGITS} characters" in page
    spec, seal = files.MAX_SPEC_BYTES >> 20, files.MAX_SEAL_BYTES >> 20
    assert f"`store.json` has at most {spec} MiB, `DONE` {seal} MiB" in page
    assert f"a group (section 4) {shard_group.MAX_GROUP_BYTES >> 10} KiB" in page
    assert index.most_bytes(Plan("", (0, 1))) == (64 + 4) << 10
    assert "`index.parquet` 64 KiB and 4 KiB a shard" in page
    assert f"row groups of exactly {index.GROUP_LINES:,} (" in page
    free, ratio = limits.FREE_BYTES >> 20, limits.MAX_RATIO
    assert f"the larger of {free} MiB and {ratio}·s" in page
    assert f"larger of {parquet_limits._FREE_VALUES:,} and a quarter" in page
    assert parquet_limits._BYTES_PER_VALUE == 4
    kib, more = parquet_limits._FOOTER_BYTES >> 10, parquet_limits._FOOTER_BYTES_PER_GROUP >> 10
    assert f"The footer has at most {kib} KiB, and {more} KiB a row group" in page
    assert f"more than {parquet_limits.CONTAINER_ITEMS:,} items" in page
    assert f"the header of each has at most {parquet_limits._MAX_HEADER_BYTES} bytes" in page
    assert f"row groups of exactly {GROUP_LINES} (" in page
    for step, name in ((ENTRY_STEP, "q_i"), (TAIL_STEP, "c")):
        assert f"e^(\N{MINUS SIGN}{name}/{round(1 / step)})" in page
    assert f"c ≥ {logprob_codec._LAST_TRUSTING_HEAD + 1} (u < 1/2)" in page


def test_the_pages_chunk_decodes_by_hand_to_what_the_page_says() -> None:
    data = hex_of_page()
    index = data[-52:-4]
    assert data[-4:] == crc32c(index)
    values: list[int] = []
    for offset, size in struct.iter_unpack("<QQ", index):
        piece = data[offset : offset + size]
        assert piece[-4:] == crc32c(piece[:-4])
        assert piece[:16] == struct.pack("<4B3I", 2, 1, 0x96, 2, 8, 8, 24)
        values += struct.unpack("<4H", piece[16:-4])
    assert values == [67, 66, 67, 10, 278, 0, 67, 66, 67, 0, 0, 0]
    record = open_store(GOLDEN / "v1-plain")[0]
    page = " ".join(PAGE.split()).replace("\N{MINUS SIGN}", "-")
    for number in (*record.entry_logprobs[:5], *record.tail_logmass[:2]):
        assert str(number) in page
    assert f"h = {sum(math.exp(-q / 96) for q in (67, 133, 200)):.13f}" in page


def test_the_pages_chunk_is_what_is_written() -> None:
    values = np.array([67, 66, 67, 10, 278, 0, 67, 66, 67, 0], "<u2")
    spec = ArraySpec("entry_logprobs", values.dtype, values.shape, 4)
    assert encode_array(spec, values) == hex_of_page()
    stored = Archive(GOLDEN / "v1-plain" / "shards" / "00000.zarr.zip")[spec.data_member]
    assert bytes(stored) == hex_of_page()


def hex_of_page() -> bytes:
    part = PAGE.split("*Example:*")[1].split("By section 5")[0]
    lines = [line.strip() for line in part.splitlines() if line.startswith("    ")]
    return bytes.fromhex(" ".join(re.split(" {5,}", line)[0] for line in lines))


def test_bits_do_not_depend_on_the_order_of_the_sum() -> None:
    """Section 5 says so of an entry in 10^7; here in some 10^5."""
    rng = np.random.default_rng(0)
    deltas = rng.integers(0, 40, (4000, 48)).astype(np.uint16)
    deltas[:, 0] += 60
    tails = rng.integers(0, 2000, len(deltas)).astype(np.uint16)
    codes = deltas.cumsum(1, dtype=np.int64)
    is_right = (tails >= 178) | (np.exp(-codes / 96).sum(1) < 1)
    deltas, tails = deltas[is_right], tails[is_right]
    counts = np.full(len(deltas), 48)
    rectangle = logprob_codec.decode_entries(deltas.ravel(), counts, tails)
    ragged = logprob_codec._decode_ragged(deltas.ravel(), counts, tails)
    by_hand = decode_entries(deltas.ravel(), counts, tails)
    for other in (ragged, by_hand):
        np.testing.assert_array_equal(rectangle[0], other[0])
        np.testing.assert_array_equal(rectangle[1], other[1])


@pytest.mark.parametrize("missing", [("tail_logmass",), ("entropy", "tail_logmass")])
def test_a_tail_that_an_import_lacks_is_read_as_none(
    tmp_path: Path, missing: tuple[str, ...]
) -> None:
    stores.write(tmp_path / "s", stores.spec(missing=missing))
    for records in open_store(tmp_path / "s"):
        assert np.isneginf(records.tail_logmass).all()
        sums = np.exp(records.entry_logprobs.astype(np.float64)).reshape(-1, 6).sum(1)
        np.testing.assert_allclose(sums, 1, atol=1e-6)
    assert assert_same(tmp_path / "s") == 12


@pytest.mark.parametrize("name", ATTACKS)
def test_the_second_reader_refuses_the_attacks_too(tmp_path: Path, name: str) -> None:
    stores.write(tmp_path / "s", stores.spec(chunks=(4, 32768)))
    ATTACKS[name](tmp_path / "s")
    with pytest.raises(reader_from_spec.RefusedError):
        reader_from_spec.read_store(tmp_path / "s")


def test_every_array_and_field_is_on_the_page(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", VARIANTS["every block"])
    shard = open_store(tmp_path / "s").shard(0)
    names = {n.split("/")[0] for n in shard.archive.names if n.endswith("/zarr.json")}
    fields = names | set(shard.about) | set(shard.about["fidelity"]) | set(shard.about["size"])
    assert {f for f in fields if f"`{f}`" not in PAGE} == set()
