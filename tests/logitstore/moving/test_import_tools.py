"""The dumps of SGLang, TRL and DistillKit hold what the same lists in another layout hold."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.errors import InputError
from logitstore.moving.dumps.distillkit import Packing
from logitstore.moving.dumps.importing import import_dump
from logitstore.store import LogitStore
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, Dumper, bits_of, imported, settings

CONFIG = "d: 400\nk: 8\nexact_k: 8\nexact_dtype: float32\nresidual_bins: []\n"


@pytest.fixture(scope="module")
def raw(teacher: Dumper, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    folder = tmp_path_factory.mktemp("raw")
    rows = [teacher.raw(text) for text in ENGLISH]
    return imported(dumps.write_jsonl(folder / "raw.jsonl", rows), teacher)[0]


def same(one: LogitStore, other: LogitStore, first: int = 0) -> None:
    """The same records, from record `first` on; with the tokens' own numbers where known."""
    assert len(one) == len(other) == len(ENGLISH)
    for i in range(len(one)):
        a, b = one[i], other[i]
        np.testing.assert_array_equal(a.token_ids, b.token_ids[first:])
        np.testing.assert_array_equal(a.padded().ids, b.padded().ids[first:])
        np.testing.assert_allclose(a.padded().logprobs, b.padded().logprobs[first:], atol=1e-5)
        known = ~np.isnan(b.token_logprob[first:])
        np.testing.assert_array_equal(a.token_logprob[known], b.token_logprob[first:][known])


Make = Callable[[Dumper, str], dict[str, Any]]


def from_input_ids(teacher: Dumper, text: str) -> dict[str, Any]:
    """TRL's scores, kept beside what was asked."""
    row = teacher.trl(text)
    ids = [*row.pop("prompt_ids"), *row.pop("completion_ids")]
    return row | {"input_ids": ids, "prompt_length": 1}


LAYOUTS: dict[str, tuple[str, Make, bool]] = {
    "sglang": ("response", Dumper.sglang, True),
    "trl": ("trl", Dumper.trl, True),
    "trl scores": ("trl", from_input_ids, True),
    "distillkit": ("distillkit", Dumper.distillkit, False),
    "distillkit, not packed": (
        "distillkit",
        lambda teacher, text: teacher.distillkit(text, packed=False),
        False,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("write", [dumps.write_jsonl, dumps.write_parquet])
def test_every_layout_gives_the_records_of_the_raw_one(
    name: str, write: Any, teacher: Dumper, raw: LogitStore, tmp_path: Path
) -> None:
    layout, make, knows_own = LAYOUTS[name]
    (tmp_path / "compression_config.yaml").write_text(CONFIG)
    ending = "jsonl" if write is dumps.write_jsonl else "parquet"
    path = write(tmp_path / f"a.{ending}", [make(teacher, text) for text in ENGLISH])
    store, found = imported(path, teacher)
    same(store, raw)
    assert (found["layout"], found["top_k"]) == (layout, 8)
    assert ("token_logprob" in store.spec.missing) is not knows_own


def test_lists_of_a_part_of_the_prompt_are_of_its_end(
    teacher: Dumper, raw: LogitStore, tmp_path: Path
) -> None:
    rows = [teacher.sglang(text, start=3) for text in ENGLISH]
    store, _ = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    same(store, raw, first=3)


def test_an_answer_of_sglang_follows_its_prompt(teacher: Dumper, tmp_path: Path) -> None:
    rows = []
    for text in ENGLISH:
        ids, half = teacher.ids(text), len(teacher.ids(text)) // 2
        meta = teacher.sglang(text, start=half - 1)["meta_info"]
        meta["output_token_logprobs"] = meta.pop("input_token_logprobs")[1:]
        meta["output_top_logprobs"] = meta.pop("input_top_logprobs")[1:]
        rows.append({"input_ids": ids[:half], "meta_info": meta, "output_ids": ids[half:]})
    store, _ = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    for i, text in enumerate(ENGLISH):
        ids = teacher.ids(text)
        np.testing.assert_array_equal(store[i].token_ids, ids[len(ids) // 2 :])
        own = [teacher.logprobs(ids)[t][ids[t]] for t in range(len(ids) // 2, len(ids))]
        np.testing.assert_allclose(store[i].token_logprob, own, atol=0.001)


# ---- DistillKit's packing, against its definition, number by number ----

PACKINGS = {
    "exact": {"exact_k": 8},
    "halves": {"exact_k": 8, "exact_dtype": "float16", "delta_encoding": False},
    "a curve": {"exact_k": 3, "polynomial_terms": [0, 1, "sqrt"], "normalize_t": True},
    "a curve and what is off it": {
        "exact_k": 2,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1, 2],
        "term_dtype": "float64",
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 5, "num_elements": 3},
            {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 2},
        ],
    },
    "residuals alone": {
        "exact_k": 1,
        "delta_encoding": False,
        "residual_bins": [{"scale_dtype": "float32", "element_bits": 11, "num_elements": 7}],
    },
}


def bytes_of(number: float, dtype: str) -> tuple[bytes, float]:
    """Write a number; and what is read of it."""
    if dtype == "bfloat16":
        raw = np.float32(number).tobytes()[2:]
        return raw, float(np.frombuffer(b"\0\0" + raw, "<f4")[0])
    kept = np.dtype(dtype).type(number)
    return kept.tobytes(), float(kept)


def packed_by_definition(said: dict[str, Any], rng: Any) -> tuple[list[int], list[float]]:
    """Make up a token's bytes, and what they mean, one number after the other."""
    data, numbers = b"", []
    for _ in range(said["exact_k"]):
        raw, read = bytes_of(-rng.random(), said.get("exact_dtype", "float32"))
        data, numbers = data + raw, [*numbers, read]
    terms, rest = said.get("polynomial_terms", []), 8 - said["exact_k"]
    off_curve, curve = [0.0] * rest, []
    for _ in terms:
        raw, read = bytes_of(-rng.random(), said.get("term_dtype", "float32"))
        data, curve = data + raw, [*curve, read]
    place = 0
    for one in said.get("residual_bins", []):
        raw, scale = bytes_of(rng.random() * 0.01, one["scale_dtype"])
        bits, count = one["element_bits"], one["num_elements"]
        codes = [int(c) for c in rng.integers(0, 1 << bits, count)]
        data += raw + bytes(bits_of(codes, bits))
        for code in codes:
            off_curve[place] = scale * (2 * code - 1 if bits == 1 else code - (1 << (bits - 1)))
            place += 1
    for n in range(rest):
        t = n / (rest - 1) if said.get("normalize_t") else n
        on = [{"sqrt": math.sqrt(t)}.get(f, 0.0) if isinstance(f, str) else t**f for f in terms]
        numbers.append(sum(c * x for c, x in zip(curve, on, strict=True)) + off_curve[n])
    if said.get("delta_encoding", True):
        numbers = [math.fsum(numbers[: n + 1]) for n in range(8)]
    return list(data), numbers


@pytest.mark.parametrize("name", PACKINGS)
def test_packed_numbers_are_what_the_definition_says(name: str, tmp_path: Path) -> None:
    said = {"d": 400, "k": 8, **PACKINGS[name]}
    (tmp_path / "c.yaml").write_text(str(said))
    packing, rng = Packing.read(tmp_path / "c.yaml"), np.random.default_rng(1)
    tokens = [packed_by_definition(said, rng) for _ in range(5)]
    ids = rng.integers(0, 400, (5, 8))
    indices = np.array([bits_of(row, 9) for row in ids.tolist()], np.uint8)
    found = packing.unpack(np.array([data for data, _ in tokens], np.uint8), indices)
    np.testing.assert_array_equal(found[0], ids)
    np.testing.assert_allclose(found[1], [numbers for _, numbers in tokens], rtol=1e-6, atol=1e-9)


WRONG: dict[str, tuple[Make, str, str]] = {
    "no config": (Dumper.distillkit, "", "compression_config.yaml: cannot be read (No such file"),
    "a config of nothing": (
        Dumper.distillkit,
        "k: 8",
        "compression_config.yaml: does not say how rows were packed (KeyError: 'exact_k')",
    ),
    "a config that asks for memory": (
        Dumper.distillkit,
        CONFIG.replace("k: 8", "k: 80000000"),
        "does not say how rows were packed (ValueError: d 400, k 80000000",
    ),
    "another config": (
        Dumper.distillkit,
        CONFIG.replace("k: 8", "k: 9"),
        "line 1: 32 and 9 bytes a token, expected 36 and 11. Give the compression_config.yaml of",
    ),
    "old rows": (
        lambda teacher, text: {"input_ids": [1], "packed_indices": [[1]], "coeffs": [[1.0]]},
        CONFIG,
        "line 1: packed_indices are DistillKit's older rows, of logits without their normaliser",
    ),
    "lists of no tokens": (
        lambda teacher, text: {"logprobs": [[-1.0]], "logprob_token_ids": [[1]]},
        CONFIG,
        "line 1: does not say which tokens its lists are of. Add prompt_ids and completion_ids",
    ),
    "a list too few": (
        lambda teacher, text: teacher.trl(text) | {"completion_ids": [5, 6]},
        CONFIG,
        "lists of a completion for 2 tokens. Give one list a token",
    ),
    "other tokens than the prompt's": (
        lambda teacher, text: teacher.sglang(text) | {"input_ids": [1, 2, 3]},
        CONFIG,
        "line 1: the tokens of input_token_logprobs are not the last of the 3 input_ids beside",
    ),
    "no entries": (
        lambda teacher, text: {"meta_info": {"input_token_logprobs": [[1]],
                                             "input_top_logprobs": [[[1]]]}, "input_ids": [1]},
        CONFIG,
        "line 1: input_token_logprobs: expected entries such as [-0.1, 123, null], found '[1]'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(
    name: str, teacher: Dumper, tmp_path: Path
) -> None:
    make, config, says = WRONG[name]
    if config:
        (tmp_path / "compression_config.yaml").write_text(config)
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [make(teacher, text) for text in ENGLISH[:2]])
    with pytest.raises(InputError) as caught:
        import_dump(path, tmp_path / "s", settings(teacher))
    assert says in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_a_config_that_would_have_no_effect_is_refused(teacher: Dumper, tmp_path: Path) -> None:
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(ENGLISH[0])])
    with pytest.raises(InputError, match=r"not packed by DistillKit, so it would have no effect"):
        import_dump(path, tmp_path / "s", settings(teacher, compression_config="c.yaml"))
