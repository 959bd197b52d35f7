"""FORMAT.md is enough: a reader written from it alone agrees with ours."""

import ast
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore
from logitstore import Segment, SequenceText, open_store
from logitstore.checking.verify import verify_store
from logitstore.format import limits, parquet_limits
from logitstore.format.logprob_codec import ENTRY_STEP, TAIL_STEP
from logitstore.format.rows_parquet import GROUP_LINES
from logitstore.format.spec import StoreSpec
from logitstore.format.zarr_arrays import ArraySpec, array_metadata
from logitstore.records import TokenRecords
from logitstore.storage import files
from logitstore.testing import stores, tiny
from tests.kit import reader_from_spec

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
    "18-bit ids": stores.spec(vocab_size=262_144, top_k=3),
}


def assert_same(path: Path) -> int:
    """Both readers, every field of every sequence; returns how many sequences."""
    store = open_store(path, allow_partial=True)
    _, _, theirs = reader_from_spec.read_store(path)
    assert len(theirs) == len(store)
    for i, other in enumerate(theirs):
        mine: Any = store[i]
        for name in TokenRecords.__slots__:
            a, b = getattr(mine, name), other[name]
            assert (a is None) == (b is None), name
            if a is not None and a.dtype == np.float32:
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6, err_msg=name)
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
    tree = ast.parse(Path(reader_from_spec.__file__).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    assert found <= {
        "hashlib",
        "json",
        "struct",
        "zlib",
        "itertools",
        "pathlib",
        "numpy",
        "pyarrow",
        "numcodecs",
    }


PAGE = (Path(logitstore.__file__).parent / "FORMAT.md").read_text()


def test_the_pages_example_is_what_is_written() -> None:
    lines = [line.strip() for line in PAGE.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith('{"attributes":{},'))
    last = next(i for i in range(first, len(lines)) if lines[i].endswith(r"\n"))
    example = "".join(lines[first : last + 1]).removesuffix(r"\n") + "\n"
    of_page = ArraySpec("token_ids", np.dtype("<u4"), (5000,), 2048)
    assert example.encode() == array_metadata(of_page)


def test_the_pages_limits_are_the_codes() -> None:
    assert f"above {files.MAX_SPEC_BYTES >> 20} MiB, {files.MAX_SEAL_BYTES >> 20} MiB" in PAGE
    free, ratio = limits.FREE_BYTES >> 20, limits.MAX_RATIO
    assert f"more than {free} MiB and more than {ratio} times" in PAGE
    assert f"more than {parquet_limits._FREE_VALUES:,} values in a column and less than " in PAGE
    assert f"less than {parquet_limits._BYTES_PER_VALUE} decoded bytes for each" in PAGE
    kib, more = parquet_limits._FOOTER_BYTES >> 10, parquet_limits._FOOTER_BYTES_PER_GROUP >> 10
    assert f"a footer above {kib} KiB + {more} KiB a row group" in PAGE
    assert f"row groups of exactly {GROUP_LINES} (" in PAGE
    for step, name in ((ENTRY_STEP, "q_i"), (TAIL_STEP, "c")):
        assert f"e^(\N{MINUS SIGN}{name}/{round(1 / step)})" in PAGE


def test_every_array_and_field_is_on_the_page(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", VARIANTS["every block"])
    shard = open_store(tmp_path / "s").shard(0)
    names = {n.split("/")[0] for n in shard.archive.names if n.endswith("/zarr.json")}
    fields = names | set(shard.about) | set(shard.about["fidelity"]) | set(shard.about["size"])
    assert {f for f in fields if f"`{f}`" not in PAGE} == set()
