"""The teacher's output embedding in a store: once, whole, pinned, only where it is asked for."""

import json
import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from logitstore.capture import capture, preview
from logitstore.capture.teacher.lm_head import LmHeadSource
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, InputError, MismatchError
from logitstore.format.lm_head import build_lm_head
from logitstore.format.spec import LM_HEAD_FILE
from logitstore.format.zip_archive import pack
from logitstore.info import facts, info_text
from logitstore.moving.merge import merge
from logitstore.moving.parquet.export import export_parquet
from logitstore.moving.parquet.exported import find_export
from logitstore.moving.parquet.reimport import reimport
from logitstore.moving.subset import subset
from logitstore.store import LogitStore, open_store
from logitstore.testing import tiny
from tests.kit.families import FAMILIES, build
from tests.kit.reader_from_spec import RefusedError, read_store
from tests.kit.reader_from_spec.lm_head import read_logits
from tests.kit.rows import texts_file

ROWS = [text[:40] for text in tiny.corpus()[:6]]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm_head")
    tokenizer = tiny.byte_bpe(bos=True)
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer)), tokenizer)
    texts_file(folder / "rows.jsonl", ROWS)
    return folder


def captured(here: Path, out: Path | str, **settings: Any) -> LogitStore:
    how = {"top_k": 4, "device": "cpu", "shard_text_bytes": 100, "self_test": False, **settings}
    return capture(str(here / "teacher"), str(here / "rows.jsonl"), out=out, **how)


def with_head(here: Path, out: Path | str, **settings: Any) -> LogitStore:
    how = {"hidden": ["last"], "hidden_dtype": "bf16", "with_lm_head": True, **settings}
    return captured(here, out, **how)


@pytest.fixture(scope="module")
def store(here: Path) -> LogitStore:
    return with_head(here, here / "store")


@pytest.fixture
def copy(store: LogitStore, tmp_path: Path) -> Path:
    shutil.copytree(str(store.path), tmp_path / "copy")
    return tmp_path / "copy"


def files(store: Path) -> dict[str, bytes]:
    found = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


def test_it_is_the_teachers_to_the_last_bit(here: Path, store: LogitStore) -> None:
    model = AutoModelForCausalLM.from_pretrained(here / "teacher")
    head = store.lm_head()
    np.testing.assert_array_equal(head.codes, model.lm_head.weight.detach().numpy())
    np.testing.assert_array_equal(head.weight(3, 5), head.codes[3:5])
    assert (head.dtype, head.bias, head.factor, head.divisor, head.cap) == ("f32", *[None] * 4)
    reader = read_logits(Path(str(store.path)))
    for i in range(len(store)):
        records = store[i]
        assert records.hidden is not None
        said = torch.from_numpy(reader(records.hidden)).log_softmax(1).numpy()
        own = said[np.arange(len(said)), records.token_ids]
        np.testing.assert_allclose(own, records.token_logprob, atol=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_what_it_was(here: Path, tmp_path: Path, dtype: str) -> None:
    found = with_head(here, tmp_path / "s", dtype=dtype, shard_text_bytes=None).lm_head()
    model = AutoModelForCausalLM.from_pretrained(here / "teacher", dtype=dtype)
    assert found.dtype == {"bfloat16": "bf16", "float16": "f16"}[dtype]
    np.testing.assert_array_equal(found.weight(), model.lm_head.weight.detach().float().numpy())
    bytes_a_number = (tmp_path / "s" / LM_HEAD_FILE).stat().st_size / found.codes.size
    assert bytes_a_number < 2.3


def spec_of(model: PreTrainedModel, width: int) -> Any:
    config: Any = model.config
    return SimpleNamespace(
        vocab_size=config.vocab_size, hidden=SimpleNamespace(width=width), digest="0" * 64
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_family_has_its_own_steps_behind_it(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that the page's reader makes of the model's own states are the model's."""
    model: Any = build(family)
    width = model.get_output_embeddings().weight.shape[1]
    spec = spec_of(model, width)
    if family == "bart bias":
        with pytest.raises(InputError, match="does more than multiply"):
            LmHeadSource(model, spec, "it")
        return
    members = build_lm_head(spec, LmHeadSource(model, spec, "it").taken())
    (tmp_path / LM_HEAD_FILE).write_bytes(b"".join(pack(members)))
    content: Any = {
        "teacher": {"vocab_size": spec.vocab_size},
        "capture": {"hidden": {"width": width}},
    }
    module = "tests.kit.reader_from_spec.lm_head"
    monkeypatch.setattr(f"{module}.read_description", lambda _: (content, None, b""))
    monkeypatch.setattr(f"{module}.canonical", as_of_the_spec)
    caught: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, x: caught.append(x[0]))
    with torch.no_grad():
        want = model(input_ids=torch.tensor([[5, 9, 2, 7]])).logits[0]
    found = read_logits(tmp_path)(caught[0][0].numpy())
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-4)


def as_of_the_spec(value: Any) -> bytes:
    """Canonical JSON, with the digest that the content of this test is said to have."""
    from tests.kit.reader_from_spec.json_text import canonical

    if "teacher" in value:
        return b"content"
    inside = value["attributes"]["logitstore"]
    return canonical(value | {"attributes": {"logitstore": inside | {"content_sha256": "0" * 64}}})


def test_a_bias_of_its_own_is_kept() -> None:
    model: Any = tiny.llama(20)
    model.lm_head = nn.Linear(32, 20)
    found = LmHeadSource(model, spec_of(model, 32), "it").taken()
    assert found.bias is not None
    np.testing.assert_array_equal(found.bias, model.lm_head.bias.detach().numpy())


def test_what_is_not_a_plain_matrix_is_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model: Any = tiny.llama(20)
    model.lm_head = Doubled(32, 20)
    with pytest.raises(InputError, match="does more than multiply"):
        LmHeadSource(model, spec_of(model, 32), "it")
    model.lm_head = nn.Linear(32, 20, dtype=torch.float64)
    with pytest.raises(InputError, match=r"is kept in torch\.float64"):
        LmHeadSource(model, spec_of(model, 32), "it")
    model.lm_head = nn.Linear(31, 20)
    with pytest.raises(InputError, match=r"has \(20, 31\) numbers, expected \(20, 32\)"):
        LmHeadSource(model, spec_of(model, 32), "it")
    del model.lm_head.weight
    model.lm_head.register_buffer("weight", torch.zeros(20, 32, dtype=torch.int8))
    with pytest.raises(InputError, match="is quantised, or not a matrix"):
        LmHeadSource(model, spec_of(model, 32), "it")


def test_nothing_else_of_the_store_is_another(here: Path, store: LogitStore) -> None:
    plain = captured(here, here / "plain", hidden=["last"], hidden_dtype="bf16")
    assert "lm_head" not in plain.spec.capture["hidden"]
    assert "with_lm_head" not in plain.provenance["settings"]
    kinds = [{name.split("/")[0] for name in files(here / folder)} for folder in ("store", "plain")]
    assert kinds[0] == {*kinds[1], LM_HEAD_FILE}
    for i in range(len(store)):
        np.testing.assert_array_equal(plain[i].hidden, store[i].hidden)
    assert "lm_head_bytes" not in facts(plain)
    with pytest.raises(MismatchError, match="captured without --with-lm-head"):
        plain.lm_head()


def test_a_flipped_byte_is_found_and_the_same_capture_writes_it_again(
    here: Path, store: LogitStore, copy: Path
) -> None:
    assert verify_store(copy, deep=True).damaged == []
    path, want = copy / LM_HEAD_FILE, files(copy)
    whole = path.read_bytes()
    for n, place in enumerate([5, 400, len(whole) // 2, len(whole) - 200, len(whole) - 1]):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        (damage,) = verify_store(copy, deep=n % 2 == 0).damaged
        assert damage.file == LM_HEAD_FILE
        with pytest.raises(CorruptStoreError, match=LM_HEAD_FILE):
            open_store(copy).lm_head()
        with pytest.raises(RefusedError):
            read_logits(copy)
    report = repair_store(copy)
    assert set(report.moved) == {"DONE", "index.parquet", LM_HEAD_FILE}
    assert (report.missing_shards, report.is_complete) == (0, False)
    assert verify_store(copy, allow_partial=True).damaged == []
    with_head(here, copy)
    assert files(copy) == want
    del store


def test_a_store_that_lost_it_is_not_whole_and_gets_it_back(here: Path, copy: Path) -> None:
    want = files(copy)
    (copy / LM_HEAD_FILE).unlink()
    (damage,) = verify_store(copy).damaged
    assert (damage.file, damage.kind) == (LM_HEAD_FILE, "missing-file")
    with pytest.raises(CorruptStoreError) as raised:
        open_store(copy).lm_head()
    assert raised.value.kind == "missing-file"
    with_head(here, copy)
    assert files(copy) == want


def test_that_of_another_store_is_refused(here: Path, copy: Path, tmp_path: Path) -> None:
    other = with_head(here, tmp_path / "other", top_k=5)
    shutil.copy(str(other.path / LM_HEAD_FILE), copy / LM_HEAD_FILE)
    with pytest.raises(CorruptStoreError, match="it is of another store"):
        open_store(copy).lm_head()
    (damage,) = verify_store(copy).damaged
    assert damage.file == LM_HEAD_FILE
    assert "recorded as" in damage.reason


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "f64"},
        {"bias": 1},
        {"steps": {"cap": 1}},
        {"steps": {"cap": 0.0}},
        {"steps": {"more": 1.0}},
        {"bias": True},
    ],
)
def test_a_description_that_cannot_be_is_refused(
    store: LogitStore, copy: Path, change: dict[str, Any]
) -> None:
    members = dict(build_lm_head(store.spec, store.lm_head()))
    group = json.loads(bytes(members["zarr.json"]))
    group["attributes"]["logitstore"]["lm_head"] |= change
    text = json.dumps(group, sort_keys=True, separators=(",", ":")) + "\n"
    members["zarr.json"] = text.encode()
    (copy / LM_HEAD_FILE).write_bytes(b"".join(pack(members)))
    with pytest.raises(CorruptStoreError, match=r"members|cannot be|not that of"):
        open_store(copy).lm_head()


def test_numbers_that_are_none_are_neither_written_nor_read(store: LogitStore) -> None:
    head = store.lm_head()
    head.codes[7, 3] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        build_lm_head(store.spec, head)
    with pytest.raises(ValueError, match=r"expected \(300, 32\)"):
        build_lm_head(store.spec, type(head)(head.codes[:20]))


def test_subsets_and_merges_have_it(here: Path, store: LogitStore, tmp_path: Path) -> None:
    whole = (here / "store" / LM_HEAD_FILE).read_bytes()
    some = subset(store.path, "0:3", tmp_path / "some")
    subset(store.path, "3:6", tmp_path / "rest")
    merge([tmp_path / "some", tmp_path / "rest"], tmp_path / "both")
    for name in ("some", "rest", "both"):
        assert (tmp_path / name / LM_HEAD_FILE).read_bytes() == whole
        assert verify_store(tmp_path / name, deep=True).damaged == []
        read_store(tmp_path / name)
    head = some.lm_head()
    head.codes[0, 0] += 1
    data = b"".join(pack(build_lm_head(some.spec, head)))
    (tmp_path / "rest" / LM_HEAD_FILE).write_bytes(data)
    with pytest.raises(MismatchError, match="are not the same, though their teacher is"):
        merge([tmp_path / "some", tmp_path / "rest"], tmp_path / "again")


def test_parts_of_one_capture_merge_to_the_same_bytes(
    store: LogitStore, copy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    lost = {copy: ["shards/00000.zarr.zip", LM_HEAD_FILE], other: ["shards/00001.zarr.zip"]}
    for folder, names in lost.items():
        for name in ("DONE", "index.parquet", *names):
            (folder / name).unlink()
    merge([copy, other], tmp_path / "both")
    assert files(tmp_path / "both") == files(Path(str(store.path)))


def test_an_export_comes_back_without(store: LogitStore, tmp_path: Path) -> None:
    export_parquet(store.path, tmp_path / "out")
    found = find_export(tmp_path / "out")
    assert found is not None
    assert not reimport(found, tmp_path / "again").spec.has_head


def test_in_a_bucket_it_is_an_object(
    here: Path, store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4().hex}/s"
    far = with_head(here, url)
    np.testing.assert_array_equal(far.lm_head().codes, store.lm_head().codes)
    assert verify_store(url, deep=True).damaged == []
    assert far.lm_head_bytes == store.lm_head_bytes > 0
    (far.path / LM_HEAD_FILE).delete()
    (damage,) = verify_store(url).damaged
    assert (damage.file, damage.kind) == (LM_HEAD_FILE, "missing-file")


def test_info_the_estimate_and_a_warning_say_what_it_is(
    here: Path, store: LogitStore, caplog: pytest.LogCaptureFixture
) -> None:
    about = facts(store)
    assert about["lm_head_bytes"] == (here / "store" / LM_HEAD_FILE).stat().st_size
    (line,) = [line for line in info_text(about).splitlines() if line.startswith("lm head")]
    assert "300 x 32 · its weights, under its licence" in line
    how: dict[str, Any] = {"top_k": 4, "device": "cpu", "hidden": ["last"]}
    teacher, rows = str(here / "teacher"), str(here / "rows.jsonl")
    found = preview(teacher, rows, with_lm_head=True, **how)
    assert "its output embedding (38.4 kB) is kept, which are weights" in caplog.text
    assert found.lm_head_bytes == 300 * 32 * 4
    assert "the teacher's output embedding: about 38.4 kB once" in found.costs_text()
    assert "under the teacher's licence" in found.costs_text()
    costs = found.costs()
    assert costs is not None
    assert costs["lm_head_bytes"] == 300 * 32 * 4
    without = preview(teacher, rows, **how)
    assert found.file_bytes - without.file_bytes == pytest.approx(300 * 32 * 4, abs=200)
    assert "lm_head_bytes" not in (without.costs() or {})


def test_without_hidden_states_it_is_no_use() -> None:
    with pytest.raises(InputError, match="--with-lm-head is given, but no hidden states are kept"):
        capture("nowhere", "nothing", out="nowhere/store", with_lm_head=True)
