"""An import is as safe as a capture: stopped, changed or merged, it gives the same bytes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from logitstore.errors import InputError, MismatchError
from logitstore.moving.dumps.importing import import_dump
from logitstore.store import open_store
from logitstore.testing import stores
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, TEXTS, Dumper, imported, settings


def test_an_import_that_was_stopped_goes_on_to_the_same_bytes(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.writing.writer import StoreWriter

    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in TEXTS])
    made = settings(teacher, shard_text_bytes=200)
    import_dump(path, tmp_path / "whole", made)
    whole = StoreWriter.write_shard

    def stops(self: StoreWriter, index: int, *more: Any) -> bool:
        if index == 2:
            raise KeyboardInterrupt
        return whole(self, index, *more)

    monkeypatch.setattr(StoreWriter, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        import_dump(path, tmp_path / "s", made)
    monkeypatch.undo()
    import_dump(path, tmp_path / "s", made)
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "whole")
    with pytest.raises(MismatchError, match=r"rendering\.imported"):
        import_dump(path, tmp_path / "s", replace(made, unlisted="drop"))


def test_a_dry_run_counts_and_writes_nothing(teacher: Dumper, tmp_path: Path) -> None:
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in ENGLISH])
    store, found = import_dump(path, tmp_path / "s", settings(teacher), dry_run=True)
    assert store is None
    assert (found["rows"], found["top_k"], found["layout"]) == (8, 8, "raw")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_dump_that_changes_while_it_is_read_is_refused(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.moving.dumps import importing

    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in ENGLISH])
    looks = importing.look_through

    def changes(*arguments: Any) -> Any:
        found = looks(*arguments)
        dumps.write_jsonl(path, [teacher.raw(text) for text in ENGLISH[:-1]])
        return found

    monkeypatch.setattr(importing, "look_through", changes)
    with pytest.raises(InputError, match=r"has changed while it was imported\. Start again\."):
        import_dump(path, tmp_path / "s", settings(teacher))


def test_a_dump_that_keeps_its_size_and_time_is_refused_before_what_was_read_is_committed(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.moving.dumps import importing

    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in ENGLISH])
    pairs = importing._pairs

    def changes(*arguments: Any) -> Any:
        yield from pairs(*arguments)
        about, data = path.stat(), path.read_bytes()
        path.write_bytes(data.replace(b"1", b"2"))
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))

    monkeypatch.setattr(importing, "_pairs", changes)
    with pytest.raises(InputError, match=r"has changed while it was imported\. Start again\."):
        import_dump(path, tmp_path / "s", settings(teacher))
    assert not list((tmp_path / "s" / "shards").iterdir())


def test_an_imported_store_is_merged_and_cut_and_exported_like_any(
    teacher: Dumper, tmp_path: Path
) -> None:
    from logitstore.moving.merge import merge
    from logitstore.moving.parquet.export import export_parquet
    from logitstore.moving.parquet.exported import find_export
    from logitstore.moving.parquet.reimport import reimport

    for name, texts in (("a", ENGLISH), ("b", TEXTS)):
        path = dumps.write_jsonl(tmp_path / f"{name}.jsonl", [teacher.raw(t) for t in texts])
        imported(path, teacher)
    union = merge([tmp_path / "a.store", tmp_path / "b.store"], tmp_path / "u")
    assert len(union) == len(ENGLISH) + len(TEXTS)
    export_parquet(tmp_path / "u", tmp_path / "e")
    found = find_export(tmp_path / "e")
    assert found is not None
    reimport(found, tmp_path / "back")
    assert stores.tree(tmp_path / "back") == stores.tree(tmp_path / "u")
    assert open_store(tmp_path / "back").spec.missing == ("entropy", "token_logprob")
