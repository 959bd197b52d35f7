"""How a teacher is loaded: attention, devices, quantisation.

What changes its distribution is part of what a store is; what changes its rounding is not.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import logitstore
from logitstore.capture.teacher import weights
from logitstore.capture.teacher.head import TeacherHead, check_vocabulary
from logitstore.capture.teacher.quantization import quantization_config
from logitstore.capture.teacher.summary import HeadSettings
from logitstore.capture.teacher.weights import load_model
from logitstore.console.launcher import Ranks
from logitstore.errors import InputError, MismatchError
from logitstore.info import facts, info_text
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit import reader_from_spec
from tests.kit.rows import texts_file

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 700}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading") / "teacher"
    model = tiny.llama(400, hidden_size=64, intermediate_size=128)
    return tiny.save(folder, model, tiny.byte_bpe(400, bos=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("loading") / "rows.jsonl", tiny.corpus()[30:])


@pytest.fixture(scope="module")
def plain(
    teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> logitstore.LogitStore:
    return run(teacher, data, tmp_path_factory.mktemp("loading") / "plain")


def run(teacher: Path, data: Path, out: Path, **settings: Any) -> logitstore.LogitStore:
    return logitstore.capture(teacher, str(data), out, **(SETTINGS | settings))


# ---- the weights are those that the store names ----


def test_weights_that_were_written_after_they_were_identified_are_not_used(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are read between the two, which may take minutes."""
    folder = shutil.copytree(teacher, tmp_path / "teacher")

    def trains_on(*args: Any) -> Any:
        tiny.llama(400, 1, hidden_size=64, intermediate_size=128).save_pretrained(folder)
        return load_model(*args)

    monkeypatch.setattr("logitstore.capture.passes.teacher_pass.load_model", trains_on)
    with pytest.raises(InputError, match="written to between the look at its files"):
        run(folder, data, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_weights_of_the_hub_are_those_of_the_commit_that_was_found() -> None:
    found = SimpleNamespace(
        revision="main", dtype="float32", trust_remote_code=False, attn_implementation=None,
        quantization=None, device_map=None, gguf_file=None,
        config=SimpleNamespace(_commit_hash="0123abcd"),
    )  # fmt: skip
    options = weights._options(found, torch.device("cpu"))  # type: ignore[arg-type]
    assert options["revision"] == "0123abcd"


# ---- attention ----


def test_another_attention_is_the_same_store_but_for_rounding(
    teacher: Path, data: Path, plain: logitstore.LogitStore, tmp_path: Path
) -> None:
    store = run(teacher, data, tmp_path / "s", attn_implementation="eager")
    said = [json.loads((s.path / "store.json").read_bytes()) for s in (store, plain)]
    for each in said:  # a measure of rounding
        del each["provenance"]["self_test"]
    assert said[0] == said[1]
    for i in range(len(plain)):
        np.testing.assert_allclose(store[i].token_logprob, plain[i].token_logprob, atol=1.1 / 512)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_attention_asked_for_is_the_one_that_runs(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    loaded: list[Any] = []

    def spy(*args: Any) -> Any:
        loaded.append(load_model(*args))
        return loaded[-1]

    monkeypatch.setattr("logitstore.capture.passes.teacher_pass.load_model", spy)
    run(teacher, data, tmp_path / "s", attn_implementation=name)
    assert loaded[0].config._attn_implementation == name
    assert loaded[0].config.use_cache is False, "keys and values are kept for nobody"


@pytest.mark.parametrize("name", ["nonsense", "flash_attention_2"])
def test_an_attention_that_cannot_run_is_refused_before_anything_is_written(
    teacher: Path, data: Path, tmp_path: Path, name: str
) -> None:
    says = rf"--attn-implementation {name}: .* cannot run with it here .*Use eager or sdpa"
    with pytest.raises(InputError, match=says):
        run(teacher, data, tmp_path / "s", attn_implementation=name)
    assert not (tmp_path / "s").exists()


# ---- devices ----

SPREAD = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, SPREAD, json.dumps(SPREAD)])
def test_a_teacher_that_is_spread_over_devices_writes_the_same_bytes(
    teacher: Path, data: Path, plain: logitstore.LogitStore, tmp_path: Path, device_map: Any
) -> None:
    """Also where a part, the output embedding included, is fetched when it is needed."""
    store = run(teacher, data, tmp_path / "s", device_map=device_map)
    assert tree(store.path) == tree(plain.path)


class Elsewhere(torch.Tensor):
    """A tensor of another device: it may be cut and sent, and meets no tensor of this one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to:
            return args[0].as_subclass(torch.Tensor)
        own = {torch.Tensor.__getitem__, torch.Tensor.__len__, torch.Tensor.as_subclass}
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if func not in own or len(tensors) > 1:
            raise AssertionError(f"{func.__name__}: tensors of two devices")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("is_known", [True, False])
def test_positions_and_targets_follow_the_hidden_states_to_the_last_device(is_known: bool) -> None:
    """Of a teacher over several devices the output embedding is on another than the input."""
    model = tiny.llama(97)
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    at = torch.arange(1, 9)
    wanted, found = TeacherHead(model, HeadSettings(5)), TeacherHead(model, HeadSettings(5))
    if not is_known:  # the model's own logits are used
        found._fall_back("for the test")
    one = wanted(inputs, at - 1, ids.flatten()[at])
    other = found(inputs, (at - 1).as_subclass(Elsewhere), ids.flatten()[at].as_subclass(Elsewhere))
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"device_map": "everywhere"},
            r"--device-map is everywhere, expected auto, balanced, balanced_low_0, sequential, or",
        ),
        ({"device_map": "[1]"}, r"--device-map is \[1\], expected auto"),
        ({"device_map": {}}, r"--device-map is \{\}, expected auto"),
        ({"device_map": "auto", "device": "cpu"}, r"--device cpu and --device-map auto: each says"),
        (
            {"device_map": "auto", "ranks": Ranks(1, 2, 1)},
            r"--device-map auto: rank 1 of 2 is the second on this machine.*use --claim",
        ),
    ],
)
def test_device_maps_that_cannot_be_are_refused(
    teacher: Path,
    data: Path,
    plain: logitstore.LogitStore,
    tmp_path: Path,
    settings: dict[str, Any],
    says: str,
) -> None:
    out = tmp_path / "s"
    if "ranks" in settings:  # another rank has begun it
        out = run(teacher, data, out).path
        (out / "DONE").unlink()
        (out / "shards" / "00001.zarr.zip").unlink()
    with pytest.raises(InputError, match=says):
        run(teacher, data, out, **settings)


# ---- quantisation ----


def quantized(data: Path, teacher: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store of a quantised teacher, on a machine without the package: loaded as it is."""

    def unquantized(found: Any, device: torch.device) -> Any:
        assert found.quantization is not None
        return load_model(SimpleNamespace(**vars(found) | {"quantization": None}), device)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("logitstore.capture.passes.teacher_pass.load_model", unquantized)
        return run(teacher, data, out, quantization="bitsandbytes-4bit")


def test_a_quantised_teacher_is_recorded_and_no_other_resumes_its_store(
    teacher: Path,
    data: Path,
    plain: logitstore.LogitStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = quantized(data, teacher, tmp_path / "s", monkeypatch)
    assert store.spec.teacher["quantization"] == {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float32",
    }
    assert "quantization" not in plain.spec.teacher
    assert "float32, quantised: {" in info_text(facts(store))
    assert store.digest != plain.digest
    for other in (None, "bitsandbytes-8bit"):
        with pytest.raises(MismatchError, match=r"teacher\.quantization is .* in the store, "):
            run(teacher, data, tmp_path / "s", quantization=other)
    with pytest.raises(MismatchError, match=r"teacher\.quantization is null in the store, "):
        run(teacher, data, plain.path, quantization="bitsandbytes-8bit")
    _, _, sequences = reader_from_spec.read_store(store.path)
    assert len(sequences) == len(store)


@pytest.mark.parametrize(
    ("asked", "recorded"),
    [
        ("bitsandbytes-8bit", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ('{"quant_method": "hqq", "nbits": 4}', {"quant_method": "hqq", "nbits": 4}),
        ({"load_in_8bit": True}, {"load_in_8bit": True}),
    ],
)
def test_a_quantisation_is_a_name_or_the_flags_of_transformers(asked: Any, recorded: Any) -> None:
    assert quantization_config(asked, "bfloat16") == recorded


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"quant_method": "hqq"}, r"--quantization hqq: a package is not installed .*with pip, or"),
        ("int4", r"--quantization is int4, expected bitsandbytes-4bit, bitsandbytes-8bit, or a"),
        ('{"threshold": NaN}', r"--quantization is .*NaN.*, expected bitsandbytes-4bit"),
        ({"dtype": torch.float16}, r"--quantization is .*float16.*, expected bitsandbytes-4bit"),
        ("[4]", r"--quantization is \[4\], expected bitsandbytes-4bit"),
        ('{"bits": 4}', r"--quantization \{.*: transformers does not know it .*no `quant_method`"),
        (
            {"quant_method": "magic"},
            r"--quantization \{.*: transformers does not know it .*Unknown quantization type",
        ),
        (
            {"load_in_8bit": True, "llm_int8_threshold": "high"},
            r"transformers does not know it \(TypeError: .*threshold",
        ),
    ],
)
def test_quantisations_that_cannot_be_are_refused(
    teacher: Path, data: Path, tmp_path: Path, asked: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        run(teacher, data, tmp_path / "s", quantization=asked)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="here it would work")
def test_a_quantisation_without_its_package_says_what_to_install(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    says = (
        r"--quantization needs a package that is not installed \(ImportError: .*pip install -U "
        r"bitsandbytes.*\)\. Install it with pip, or leave --quantization out\."
    )
    with pytest.raises(InputError, match=says):
        run(teacher, data, tmp_path / "s", quantization="bitsandbytes-8bit")
    assert not (tmp_path / "s").exists()


def saved_quantized(teacher: Path, to: Path) -> Path:
    """What a checkpoint that was saved quantised says of itself."""
    to.mkdir()
    for path in teacher.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_a_checkpoint_that_is_quantised_says_how_itself(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    saved = saved_quantized(teacher, tmp_path / "saved")
    with pytest.raises(InputError, match=r"is quantised already \(bitsandbytes\).*Leave it out"):
        run(saved, data, tmp_path / "s", quantization="bitsandbytes-4bit")
    if not HAS_BITSANDBYTES:
        with pytest.raises(
            InputError, match=r"it is quantised \(bitsandbytes\), and needs a package .*pip install"
        ):
            run(saved, data, tmp_path / "s")


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("asked", ["bitsandbytes-8bit", "bitsandbytes-4bit"])
def test_a_quantised_teacher_is_near_the_one_it_was_made_of(
    teacher: Path, data: Path, plain: logitstore.LogitStore, tmp_path: Path, asked: str
) -> None:
    store = run(teacher, data, tmp_path / "s", quantization=asked)
    far = [
        np.abs(a.token_logprob - b.token_logprob).mean() for a, b in zip(store, plain, strict=True)
    ]
    assert 1e-3 < np.mean(far) < 1


@pytest.mark.parametrize("rows", [400, 300])
def test_the_rows_of_packed_weights_are_not_their_shape(rows: int) -> None:
    """4-bit weights lie in one column of bytes."""
    packed = SimpleNamespace(
        weight=torch.zeros(400 * 32 // 2, 1, dtype=torch.uint8), out_features=rows
    )
    model = SimpleNamespace(
        get_output_embeddings=lambda: packed,
        get_input_embeddings=lambda: torch.nn.Embedding(400, 2),
        name_or_path="teacher",
    )
    if rows == 400:
        check_vocabulary(model, 400, 400)
    else:
        with pytest.raises(InputError, match=r"output embedding has 300 rows"):
            check_vocabulary(model, 400, 400)


def test_a_token_that_the_teacher_cannot_read_is_told_before_it_is_read() -> None:
    """On a GPU a row of an embedding that is not there is no error but the end of the process."""
    model = tiny.llama(400)
    model.set_input_embeddings(torch.nn.Embedding(390, 32))
    with pytest.raises(InputError, match=r"reads 390 ids, but its tokenizer makes 400\. Use"):
        check_vocabulary(model, 400, 400)
    check_vocabulary(model, 390, 400)
