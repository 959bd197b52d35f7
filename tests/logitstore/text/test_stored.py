"""The tokenizer that comes from a store is the one that went into it, or there is an error."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.data.targets import teacher_tokenizer
from logitstore.capture import capture
from logitstore.capture.again import capture_again
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, InputError, MismatchError
from logitstore.format.spec import boundaries_name
from logitstore.moving.subset import subset
from logitstore.storage.folder import LocalPath
from logitstore.store import LogitStore, open_store
from logitstore.testing import tiny
from logitstore.text import sequence_facts as sequence
from logitstore.text import stored
from logitstore.text.fingerprint import fingerprint
from logitstore.text.sequence_facts import sequence_facts
from logitstore.text.stored import files_to_store, stored_tokenizer
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.rows import texts_file

TEXTS = tiny.corpus()[:3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    tokenizer = tiny.byte_bpe()
    teacher = tiny.save(folder / "teacher", tiny.llama(len(tokenizer)), tokenizer)
    tiny.sp_bpe().save_pretrained(folder / "student")
    capture(
        teacher, texts_file(folder / "rows.jsonl", TEXTS), folder / "store", top_k=4,
        boundaries_of=str(folder / "student"),
    )  # fmt: skip
    return folder / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sequence, "_names", {})
    return shutil.copytree(whole, tmp_path / "store")


def rotate(file: Path) -> None:
    """Give every token the id of the next."""
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)[4:]
    vocabulary.update(zip(names, [vocabulary[n] for n in [*names[1:], names[0]]], strict=True))
    file.write_text(json.dumps(content), encoding="utf-8")


def as_path(store: LogitStore) -> object:
    return store.tokenizer_path


def as_targets(store: LogitStore) -> object:
    return teacher_tokenizer(store, ByteTokenizer(tiny.unigram()))


def as_names(store: LogitStore) -> object:
    return sequence_facts(store, 0)


def as_copy(store: LogitStore) -> object:
    assert isinstance(store.path, Path)
    return subset(store.path, "0:2", store.path.with_name("copy"))


Use = Callable[[LogitStore], object]
USES = [as_path, as_targets, as_names, as_copy]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", [rotate, Path.unlink, lambda file: file.write_bytes(b"{}")])
def test_a_changed_file_is_met_by_whoever_uses_the_tokenizer(
    use: Use, fault: Callable[[Path], object], store: Path
) -> None:
    fault(store / "tokenizer" / "tokenizer.json")
    with pytest.raises(CorruptStoreError, match=r"tokenizer\.json"):
        use(open_store(store))


def test_a_pipe_in_place_of_a_file_is_not_waited_for(store: Path) -> None:
    file = store / "tokenizer" / "tokenizer.json"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CorruptStoreError, match="not an ordinary file"):
        as_path(open_store(store))


STRANGERS = {
    "special_tokens_map.json": {"eos_token": "the", "additional_special_tokens": ["a", "e"]},
    "added_tokens.json": {"the": 2},
    "chat_template.jinja": "{{ messages }}",
}


def test_files_that_the_store_does_not_list_change_nothing(store: Path) -> None:
    before = as_targets(open_store(store))
    assert isinstance(before, ByteTokenizer)
    for name, content in STRANGERS.items():
        (store / "tokenizer" / name).write_text(json.dumps(content), encoding="utf-8")
    (store / "tokenizer" / "additional_chat_templates").mkdir()
    opened = open_store(store)
    assert sorted(p.name for p in opened.tokenizer_path.iterdir()) == sorted(
        opened.spec.tokenizer["files"]
    )
    after = as_targets(opened)
    assert isinstance(after, ByteTokenizer)
    assert (after.fingerprint, after.eos_ids) == (before.fingerprint, before.eos_ids)
    assert not verify_store(store, deep=True).damaged


def test_files_that_are_read_as_another_tokenizer_are_refused(store: Path) -> None:
    """As another version of a library may read them: the digests are right."""
    with pytest.raises(MismatchError, match="but are read here as another tokenizer"):
        stored_tokenizer(LocalPath(store / "tokenizer"), "0" * 64, store)


def test_a_tokenizer_is_read_once_for_the_same_files_and_anew_for_others(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    reads = stored.stored_tokenizer

    def counts(folder: Path, *rest: Any) -> Any:
        read.append(folder)
        return reads(folder, *rest)

    monkeypatch.setattr(stored, "_kept", {})
    monkeypatch.setattr(stored, "stored_tokenizer", counts)
    first = as_targets(open_store(store))
    assert isinstance(first, ByteTokenizer)
    copied = shutil.copytree(store, tmp_path / "elsewhere")
    assert as_targets(open_store(store)) is first
    again = as_targets(open_store(copied))
    assert isinstance(again, ByteTokenizer)
    assert len(read) == 1
    # Messages name the one that was asked for.
    assert [each.name for each in (first, again)] == [
        str(folder / "tokenizer") for folder in (store, copied)
    ]
    # Each has its own ends, whoever asked before.
    opened = open_store(store)
    opened.spec.tokenizer["eos_ids"] = [*first.eos_ids, 1]
    assert 1 in as_targets(opened).eos_ids or 1 in first.eos_ids  # type: ignore[attr-defined]
    assert first.eos_ids == as_targets(open_store(store)).eos_ids  # type: ignore[attr-defined]
    # What has changed meanwhile is met as if it had never been read.
    rotate(store / "tokenizer" / "tokenizer.json")
    with pytest.raises(CorruptStoreError, match=r"tokenizer\.json"):
        as_targets(open_store(store))
    with pytest.raises(MismatchError, match="are read here as another tokenizer"):
        stored.stored_bytes(LocalPath(store / "tokenizer"), first.fingerprint, store)
    for folder in ("byte_bpe", "unigram", "sp_bpe"):
        getattr(tiny, folder)().save_pretrained(tmp_path / folder)
        made = ByteTokenizer.from_folder(tmp_path / folder)
        stored.stored_bytes(tmp_path / folder, made.fingerprint, folder)
    assert len(stored._kept) == 2


# The tokenizer of a student whose boundaries a store has


def test_the_student_of_a_store_is_held_to_it_when_it_is_captured_again(store: Path) -> None:
    (inside,) = (store / "boundaries").iterdir()
    (inside / "DONE").unlink()
    next((inside / "shards").iterdir()).unlink()
    (inside / "student" / "added_tokens.json").write_text('{"the": 2}', encoding="utf-8")
    capture_again(store)
    assert [p.name for p in (store / "boundaries").iterdir()] == [inside.name]
    assert (inside / "DONE").exists()
    (inside / "DONE").unlink()
    rotate(inside / "student" / "tokenizer.json")
    with pytest.raises(CorruptStoreError, match=r"student/tokenizer\.json"):
        capture_again(store)


# What the class that saved a tokenizer does not read back


def legacy(folder: Path) -> Any:
    """Llama 2's: its class writes no `legacy`, and without it puts spaces elsewhere."""
    tiny.sp_bpe().save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    file.write_text(json.dumps(config), encoding="utf-8")
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    return loaded


def test_a_store_gives_back_a_tokenizer_that_its_own_class_reads_otherwise(tmp_path: Path) -> None:
    tokenizer = legacy(tmp_path / "teacher")
    torch.manual_seed(0)
    tiny.llama(len(tokenizer)).save_pretrained(tmp_path / "teacher")
    data = texts_file(tmp_path / "rows.jsonl", TEXTS)
    made = capture(tmp_path / "teacher", data, tmp_path / "s", top_k=4)
    by_class: Any = AutoTokenizer.from_pretrained(made.tokenizer_path)
    assert fingerprint(by_class) != fingerprint(tokenizer)  # the reason for all this
    found = as_targets(made)
    assert isinstance(found, ByteTokenizer)
    assert found.fingerprint == made.spec.tokenizer_fingerprint == fingerprint(tokenizer)
    student = ByteTokenizer(tokenizer)
    assert boundaries_name(student.fingerprint) == boundaries_name(found.fingerprint)


def test_a_tokenizer_that_cannot_be_read_back_is_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored, "saved_files", lambda _: stored_files_of(tiny.unigram()))
    with pytest.raises(InputError, match="read back as another tokenizer"):
        files_to_store(tiny.byte_bpe())


def stored_files_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    from logitstore.models.loading import saved_files

    return saved_files(tokenizer)


# A vocabulary of all memory


def test_an_id_that_asks_for_all_memory_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny.byte_bpe()
    made.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 20_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))

    def load(*_: object, **__: object) -> None:
        pytest.fail("it was loaded")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.from_pretrained", load)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", load)
    with pytest.raises(InputError, match="has a token with the id 20,000,000"):
        stored_tokenizer(tmp_path, "0" * 64, "a store")
