"""No byte of a store can change unseen."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from logitstore import open_store
from logitstore.checking.nonsense import nonsense
from logitstore.checking.text_check import TextCheck
from logitstore.checking.verify import verify_store
from logitstore.cli.app import app
from logitstore.errors import CorruptStoreError, LogitStoreError
from logitstore.format.canonical_json import canonical_json
from logitstore.format.seal import seal_bytes
from logitstore.format.spec import Plan, StoreHeader
from logitstore.format.zip_archive import Archive, pack
from logitstore.reading.shard import Shard
from logitstore.records import TokenRecords
from logitstore.testing import stores, tiny
from tests.kit.made_stores import put


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "s"
    put(path, stores.spec(temperatures=(2.0,), logit_std=True, draws=3))
    return path


def test_a_whole_store_is_said_to_be_whole(whole: Path) -> None:
    for deep in (False, True):
        report = verify_store(whole, deep=deep)
        assert (report.shards, report.rows, report.damaged) == (3, 12, [])


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_found_and_its_file_named(
    whole: Path, tmp_path: Path, flips: int
) -> None:
    """Positions are drawn over all files, so that small ones are hit too.

    The fast check hashes every file, so it finds each; the deep one does that, too, and must not
    stumble over what it then decodes.
    """
    rng = np.random.default_rng(flips)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    copy = shutil.copytree(whole, tmp_path / "copy")
    for n in range(flips):
        name = files[rng.integers(len(files))]
        data = bytearray((whole / name).read_bytes())
        at = int(rng.integers(len(data)))
        data[at] ^= 1 << int(rng.integers(8))
        (copy / name).write_bytes(data)
        for deep in (False, True)[: 1 + (n % 4 == 0)]:
            found = damaged_files(copy, deep=deep)
            assert str(name) in found, f"{name} byte {at} unseen"
            assert found[str(name)] is not None or not str(name).startswith("shards/")
        (copy / name).write_bytes((whole / name).read_bytes())


def damaged_files(path: Path, *, deep: bool = True) -> dict[str, tuple[int, int] | None]:
    try:
        return {d.file: d.rows for d in verify_store(path, deep=deep).damaged}
    except LogitStoreError as e:  # store.json may stop being a description of a store at all
        assert "store.json" in str(e) or "format version" in str(e)  # noqa: PT017
        return {"store.json": None}


def test_a_flipped_byte_never_changes_what_is_read(whole: Path, tmp_path: Path) -> None:
    """Without `verify`: reading either raises or returns exactly what was written."""
    rng = np.random.default_rng(1)
    copy = shutil.copytree(whole, tmp_path / "copy")
    shard = copy / "shards" / "00001.zarr.zip"
    good = shard.read_bytes()
    rows = range(3, 7)
    clean = open_store(whole)
    wanted = {i: (clean[i], clean.text(i)) for i in rows}
    raised = 0
    for _ in range(150):
        data = bytearray(good)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        shard.unlink()  # a new file, not the one that earlier maps still show
        shard.write_bytes(data)
        store = open_store(copy)
        for i in rows:
            try:
                records, text = store[i], store.text(i)
            except CorruptStoreError:
                raised += 1
                continue
            assert same(records, wanted[i][0])
            assert text == wanted[i][1]
        assert len(store[0]) > 0
    assert raised > 300


def test_every_chunk_of_every_array_has_a_checksum_that_reading_checks(
    whole: Path, tmp_path: Path
) -> None:
    """One bit in the middle of each chunk's compressed bytes; blosc alone would not notice most."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    path = copy / "shards" / "00001.zarr.zip"
    good = path.read_bytes()
    members = Archive(path)
    names = [name for name in members.names if "/c/" in name]
    assert len(names) == 18
    for name in names:
        start = good.index(bytes(members[name]))
        data = bytearray(good)
        data[start + 20] ^= 16  # behind the 16 bytes of blosc's header
        path.unlink()
        path.write_bytes(data)
        store = open_store(copy)
        with pytest.raises(CorruptStoreError, match="does not match its checksum"):
            [store[i] for i in range(3, 7)]


def test_a_line_whose_page_is_whole_but_whose_words_are_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("logitstore.format.rows_parquet.line_digest", lambda _: b"another digest..")
        stores.write(tmp_path / "s")
    with pytest.raises(CorruptStoreError, match="text of row 3 does not match its digest"):
        open_store(tmp_path / "s").text(3)


def same(a: TokenRecords, b: TokenRecords) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in TokenRecords.__slots__
    )


def test_files_that_are_gone_are_named(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "shards" / "00002.zarr.zip").unlink()
    (copy / "tokenizer" / "tokenizer.json").unlink()
    found = {d.file: d.rows for d in verify_store(copy).damaged}
    assert found == {"shards/00002.zarr.zip": (7, 11), "tokenizer/tokenizer.json": None}


def test_two_shards_that_changed_places_are_found(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    a, b = copy / "shards" / "00000.zarr.zip", copy / "shards" / "00001.zarr.zip"
    a_bytes = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(a_bytes)
    assert len(verify_store(copy).damaged) == 2


def test_an_older_shard_of_the_same_rows_is_not_the_one_that_was_sealed(
    whole: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    shard = open_store(copy).shard(1)
    members = {name: bytes(shard.archive[name]) for name in shard.archive.names}
    group = json.loads(members["zarr.json"])
    group["attributes"]["logitstore"]["fidelity"]["l1_max"] = 0.0
    members["zarr.json"] = canonical_json(group)
    (copy / "shards" / "00001.zarr.zip").write_bytes(b"".join(bytes(p) for p in pack(members)))
    assert [d.reason for d in verify_store(copy).damaged] == [
        "is not the shard this store was sealed with"
    ]
    with pytest.raises(CorruptStoreError, match="not the one this store was sealed with"):
        open_store(copy)[3]


def test_records_that_make_no_sense_are_found(whole: Path) -> None:
    store = open_store(whole)
    good = store[0]
    fields = {name: getattr(good, name) for name in TokenRecords.__slots__}
    end = len(store.text(0).supervised_bytes)

    def reasons(**changed: np.ndarray) -> list[str]:
        return list(nonsense(TokenRecords(**fields | changed), store.spec, 0, end))

    assert reasons() == []
    assert "outside the text" in reasons(byte_starts=good.byte_starts + end)[0]
    assert "vocabulary" in reasons(token_ids=good.token_ids + 500)[0]
    assert "not sorted" in reasons(entry_logprobs=good.entry_logprobs[::-1].copy())[0]
    assert "do not sum to 1" in reasons(tail_logmass=good.tail_logmass + 1)[0]
    few = stores.spec(top_k=5, draws=3)
    assert "6 entries, at most 5" in next(nonsense(good, few, 0, end))
    assert "entry twice" in reasons(entry_ids=np.repeat(good.entry_ids[::6], 6))[0]
    assert "sample_ids" in reasons(sample_ids=good.sample_ids + 500)[0]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of teachers whose tokenizers write bytes in four ways."""
    import logitstore

    folder = tmp_path_factory.mktemp("captured")
    rows = [*tiny.corpus(), "Cafe\u0301 NFC", "  spaces  "]
    data = folder / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": t[:7], "completion": t[7:]}) + "\n" for t in rows)
    )
    found = {}
    makers = {
        "byte level": tiny.byte_bpe(400, bos=True),
        "unigram": tiny.unigram(),
        "sentencepiece": tiny.sp_bpe(),
        "wordpiece": tiny.wordpiece(),
    }
    for name, tokenizer in makers.items():
        teacher = tiny.save(folder / f"teacher {name}", tiny.llama(len(tokenizer)), tokenizer)
        logitstore.capture(teacher, str(data), folder / name, top_k=4)
        found[name] = folder / name
    return found


@pytest.mark.parametrize("name", ["byte level", "unigram", "sentencepiece", "wordpiece"])
def test_ids_write_the_text_whatever_the_tokenizer(captured: dict[str, Path], name: str) -> None:
    assert verify_store(captured[name], deep=True).damaged == []
    check = TextCheck.from_folder(captured[name] / "tokenizer")
    assert check is not None
    store, seen = open_store(captured[name]), 0
    for i in range(len(store)):
        records, line = store[i], store.text(i)
        ids = records.token_ids.copy()
        ids[:-1] = ids[1:]  # every id one place too early
        changed = TokenRecords(
            **{n: getattr(records, n) for n in TokenRecords.__slots__} | {"token_ids": ids}
        )
        seen += check.disagreement(line, changed) is not None
    assert seen > (30 if name != "wordpiece" else 0)


def test_a_vocabulary_of_gigabytes_is_not_loaded_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The digests are right: whoever made the store made this file, too."""
    bomb = json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 40_000_000}, "merges": []}})
    monkeypatch.setitem(stores.TOKENIZER_FILES, "tokenizer.json", bomb.encode())
    stores.write(tmp_path / "s")

    def load(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenizers.Tokenizer.from_buffer", load)
    assert verify_store(tmp_path / "s", deep=True).damaged == []
    assert "has a token with the id 40,000,000, but 2 tokens" in caplog.text
    assert "ids are not compared with the text" in caplog.text


def test_ids_that_do_not_write_the_text_are_damage(
    captured: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Shard.records

    def shifted(self: Shard, i: int) -> TokenRecords:
        records = good(self, i)
        records.token_ids[:] = np.roll(records.token_ids, 1)
        return records

    monkeypatch.setattr(Shard, "records", shifted)
    damaged = verify_store(captured["byte level"], deep=True).damaged
    assert len(damaged) > 30
    assert "ids and text disagree: record 0: token" in damaged[0].reason
    assert damaged[0].rows == (0, 0)


def test_parts_of_a_row_that_overlap_and_rows_without_a_line_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "s", parts=2)
    assert verify_store(tmp_path / "s", deep=True).damaged == []
    good = Shard.text
    monkeypatch.setattr(Shard, "text", lambda self, i: good(self, i)._replace(part=0))
    assert "overlaps" in verify_store(tmp_path / "s", deep=True).damaged[0].reason
    monkeypatch.setattr(Shard, "text", lambda self, i: good(self, i)._replace(row=self.rows[0]))
    reasons = [d.reason for d in verify_store(tmp_path / "s", deep=True).damaged]
    assert "2 rows have no line" in reasons


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args))
    if isinstance(result.exception, LogitStoreError):
        return 2, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_exits_0_whole_1_damaged_2_not_a_store(whole: Path, tmp_path: Path) -> None:
    assert run("verify", str(whole))[:2] == (0, "3 shards, 12 rows: whole\n")
    copy = shutil.copytree(whole, tmp_path / "copy")
    shard = copy / "shards" / "00000.zarr.zip"
    shard.write_bytes(shard.read_bytes()[:-7])
    code, out, _ = run("verify", str(copy), "--json")
    report = json.loads(out)
    assert code == 1
    assert (report["shards"], report["rows"]) == (3, 12)
    assert [(d["file"], d["rows"]) for d in report["damaged"]] == [
        ("shards/00000.zarr.zip", [0, 2])
    ]
    assert run("verify", str(tmp_path / "nowhere"))[0] == 2


def test_an_unfinished_store_is_not_whole(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", shards=(1,), seal=False)
    code, _, err = run("verify", str(tmp_path / "s"))
    assert (code, "holds 4 of 12 rows" in err) == (2, True)
    assert run("verify", str(tmp_path / "s"), "--allow-partial", "--deep")[0] == 0


@pytest.mark.parametrize("codec", ["portable", "compact"])
def test_zarr_is_a_second_opinion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """What it decodes otherwise is damage; that of one array, and of the shard's rows."""
    of = stores.spec(codec=codec, temperatures=(2.0, 0.5), draws=3, chunks=(3, 7))
    put(tmp_path / "s", of)
    asked = ("verify", str(tmp_path / "s"), "--deep", "--zarr")
    assert run(*asked)[:2] == (0, "3 shards, 12 rows: whole\n")
    right = Shard.array

    def wrong(self: Shard, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        values = right(self, name, start, stop)
        return values + (name == "lognorm" and self.rows[0] == 3)

    monkeypatch.setattr(Shard, "array", wrong)
    code, out, err = run(*asked)
    assert (code, out) == (1, "3 shards, 12 rows: 1 file damaged\n")
    assert "shards/00001.zarr.zip rows 3 to 6: zarr 3" in err
    assert "decodes other values of lognorm, unlike this program" in err


def test_what_zarr_cannot_decode_is_damage(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("error during blosc decompression: -1")

    monkeypatch.setattr("numcodecs.blosc.Blosc.decode", fail)
    reasons = [d.reason for d in verify_store(whole, deep=True, by_zarr=True).damaged]
    assert any("cannot decode token_ids (RuntimeError: error during blosc" in r for r in reasons)


def test_damage_is_said_once_not_by_zarr_too(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    shard = copy / "shards" / "00000.zarr.zip"
    data = bytearray(shard.read_bytes())
    data[60] ^= 1
    shard.write_bytes(data)
    [damage] = verify_store(copy, deep=True, by_zarr=True).damaged
    assert "SHA-256" in damage.reason


def test_a_second_opinion_needs_a_first(whole: Path) -> None:
    code, _, err = run("verify", str(whole), "--zarr")
    assert (code, "add --deep" in err) == (2, True)


@pytest.mark.parametrize("value", [None, 3, ["a"], {}])
def test_a_seal_with_a_digest_that_is_no_text_is_damage(
    whole: Path, tmp_path: Path, value: object
) -> None:
    """Its own digest is right, so it counted as the seal that was written."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    digests = json.loads((copy / "DONE").read_bytes())["sha256"] | {"store.json": value}
    (copy / "DONE").write_bytes(seal_bytes(digests))
    for deep in (False, True):
        assert verify_store(copy, deep=deep).damaged[0].file == "DONE"
    with pytest.raises(CorruptStoreError, match="a digest that is not 64 hex digits"):
        len(open_store(copy))


@pytest.mark.parametrize("name", ["index.parquet", "tokenizer/tokenizer.json"])
def test_a_file_of_any_size_without_content_is_not_hashed(
    whole: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    os.truncate(copy / name, 20 * 2**30)
    began = time.process_time()
    found = {d.file: d.reason for d in verify_store(copy).damaged}
    assert time.process_time() - began < 10
    assert "at most" in found[name]


def test_a_plan_of_very_many_shards_is_read_in_seconds(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    plan = Plan("d" * 64, tuple(range(400_001)), version=1)
    header = StoreHeader(StoreHeader.read(whole).spec, plan, {})
    (copy / "store.json").write_bytes(header.to_bytes())
    began = time.process_time()
    assert StoreHeader.read(copy).plan == plan
    assert time.process_time() - began < 4  # more than ten times that, value by value
