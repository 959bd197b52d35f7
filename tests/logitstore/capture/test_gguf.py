"""A teacher that is a GGUF file: the records of what it was made of, and its file named."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError, MismatchError, MissingLibraryError
from logitstore.store import LogitStore
from logitstore.testing import tiny
from tests.kit import gguf_files
from tests.kit.rows import texts_file

SETTINGS: dict[str, Any] = {"top_k": 8, "self_test": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("data") / "rows.jsonl", tiny.corpus()[34:])


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`float`, as transformers saves it, and `gguf`, with the tokenizer beside two files."""
    folder = tmp_path_factory.mktemp("teachers")
    model, tokenizer = tiny.llama(400), tiny.byte_bpe(400, bos=True)
    tiny.save(folder / "float", model, tokenizer)
    (folder / "gguf").mkdir()
    tokenizer.save_pretrained(folder / "gguf")
    gguf_files.write(folder / "gguf" / "f32.gguf", model)
    gguf_files.write(folder / "gguf" / "q8.gguf", model, quantised=True)
    (folder / "alone").mkdir()
    gguf_files.write(folder / "alone" / "m.gguf", model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def of_file(
    teachers: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LogitStore]:
    out = tmp_path_factory.mktemp("out")
    given = {"float": ("float", None), "f32": ("gguf", "f32.gguf"), "q8": ("gguf", "q8.gguf")}
    return {
        name: run(teachers / folder, data, out / name, **({"gguf_file": file} if file else {}))
        for name, (folder, file) in given.items()
    }


def run(teacher: Path, data: Path, out: Path, **settings: Any) -> LogitStore:
    return logitstore.capture(teacher, str(data), out, **SETTINGS, **settings)


def test_a_file_without_rounding_says_what_the_model_says(of_file: dict[str, LogitStore]) -> None:
    for ours, theirs in zip(of_file["f32"], of_file["float"], strict=True):
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.entry_ids, theirs.entry_ids)
        np.testing.assert_array_equal(ours.entry_logprobs, theirs.entry_logprobs)


def test_a_rounded_file_is_another_teacher_that_is_near(of_file: dict[str, LogitStore]) -> None:
    ours, theirs = (
        np.concatenate([r.token_logprob for r in of_file[name]]) for name in ("q8", "float")
    )
    assert 0 < np.abs(ours - theirs).max() < 0.2
    prints = {store.spec.teacher["fingerprint"] for store in of_file.values()}
    assert len(prints) == 3


def test_the_store_says_that_it_was_quantised_and_which_file_it_was(
    of_file: dict[str, LogitStore], teachers: Path
) -> None:
    store, file = of_file["q8"], teachers / "gguf" / "q8.gguf"
    assert store.spec.teacher["quantization"] == {"quant_method": "gguf"}
    assert store.provenance["gguf"] == {
        "file": "q8.gguf",
        "file_bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert store.provenance["settings"]["gguf_file"] == "q8.gguf"
    assert verify_store(store.path).damaged == []
    of_others = (Path(str(of_file["float"].path)) / "store.json").read_text()
    assert "gguf" not in of_others, "other stores keep their bytes"


def test_another_file_does_not_resume_the_store(
    of_file: dict[str, LogitStore], teachers: Path, data: Path
) -> None:
    with pytest.raises(MismatchError, match=r"teacher.fingerprint"):
        run(teachers / "gguf", data, Path(str(of_file["q8"].path)), gguf_file="f32.gguf")


def test_the_tokenizer_of_a_file_is_read_where_none_lies_beside_it(
    of_file: dict[str, LogitStore], teachers: Path, data: Path, tmp_path: Path
) -> None:
    store = run(teachers / "alone", data, tmp_path / "s", gguf_file="m.gguf")
    for ours, theirs in zip(store, of_file["float"], strict=True):
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.entry_logprobs, theirs.entry_logprobs)


def test_what_is_no_such_file_is_said(teachers: Path, data: Path, tmp_path: Path) -> None:
    folder = teachers / "gguf"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "m.gguf").write_bytes(b"not one")
    (tmp_path / "bad" / "cut.gguf").write_bytes((folder / "q8.gguf").read_bytes()[:3000])
    cases: dict[str, tuple[Path, dict[str, Any]]] = {
        r"there is no such file in .*GGUF files there: f32.gguf, q8.gguf": (
            folder,
            {"gguf_file": "none.gguf"},
        ),
        r"m.gguf is no GGUF file: its first bytes are not GGUF": (
            tmp_path / "bad",
            {"gguf_file": "m.gguf"},
        ),
        r"cut.gguf|cannot load a teacher": (tmp_path / "bad", {"gguf_file": "cut.gguf"}),
        r"is a GGUF file, and a teacher is a folder. Give .*gguf --gguf-file q8.gguf\.": (
            folder / "q8.gguf",
            {},
        ),
        r"--quantization would quantise it again. Leave it out": (
            folder,
            {"gguf_file": "q8.gguf", "quantization": "bitsandbytes-8bit"},
        ),
        r"--gguf-file is q8.gguf, which needs the teacher in this process": (
            folder,
            {"gguf_file": "q8.gguf", "engine": "server", "server": "http://localhost:1"},
        ),
    }
    for says, (teacher, settings) in cases.items():
        with pytest.raises(InputError, match=says):
            run(teacher, data, tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


def test_without_the_package_the_extra_is_named(
    teachers: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingLibraryError, match=r"needs gguf.*logitstore\[gguf\]"):
        run(teachers / "gguf", data, tmp_path / "s", gguf_file="q8.gguf")


def test_settings_of_a_store_before_there_were_such_files_are_still_read() -> None:
    from logitstore.capture.settings import CaptureSettings

    old = json.loads(json.dumps(CaptureSettings().recorded()))
    assert "gguf_file" not in old
    assert CaptureSettings.from_recorded(old).gguf_file is None
