"""`--store PATH[:WEIGHT]`: a weight is only what is a number behind the last colon."""

from pathlib import Path
from typing import Any

import pytest

from distill.training.command_line import parse
from distill.training.config import CachedTeacherConfig
from distill.training.named_stores import parse_store
from logitstore.errors import InputError

STUDENT = ("--model_name_or_path", "student", "--output_dir", "out")


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("store", "store", 1.0),
        ("store:0.5", "store", 0.5),
        ("store:2e-1", "store", 0.2),
        ("s3://bucket/store", "s3://bucket/store", 1.0),
        ("s3://bucket/store:.5", "s3://bucket/store", 0.5),
        ("s3://host:9000/bucket", "s3://host:9000/bucket", 1.0),
        ("hf://datasets/me/store@v1:3", "hf://datasets/me/store@v1", 3.0),
        ("a:b:c", "a:b:c", 1.0),
        ("C:store", "C:store", 1.0),
        ("run:nan", "run:nan", 1.0),
        ("run:inf", "run:inf", 1.0),
        ("run:1_0", "run:1_0", 1.0),
        ("run:", "run:", 1.0),
    ],
)
def test_a_weight_is_a_number_behind_the_last_colon(text: str, path: str, weight: float) -> None:
    found = parse_store(text)
    assert (found.path, found.weight) == (path, weight)
    assert found.has_weight == (path != text)


def test_a_folder_that_is_there_is_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_store("run:2").path == "run"
    (tmp_path / "run:2").mkdir()
    assert parse_store("run:2") == ("run:2", 1.0, False)
    assert parse_store("run:2:3") == ("run:2", 3.0, True)


@pytest.mark.parametrize("number", ["0", "-1", "1e999"])
def test_a_weight_is_above_0(number: str) -> None:
    with pytest.raises(InputError, match=f"--store a:{number}: the weight {number} is not a"):
        parse_store(f"a:{number}")


def test_a_weight_needs_a_store() -> None:
    with pytest.raises(InputError, match="names no store before the weight"):
        parse_store(":2")


@pytest.mark.parametrize(
    ("flags", "store"),
    [
        (("--store", "a"), "a"),
        (("--store", "a", "--store", "b:0.5"), ["a", "b:0.5"]),
        (("--store", "a", "b:0.5"), ["a", "b:0.5"]),
        (("--store=a", "--seed", "3", "--store=b:0.5", "--bf16", "false"), ["a", "b:0.5"]),
        (("--config", "YAML"), ["x", "y:2"]),
        (("--config", "YAML", "--store", "a"), "a"),
        (("--config", "YAML", "--store", "a", "--store", "b"), ["a", "b"]),
    ],
)
def test_a_flag_that_is_repeated_names_several_and_wins_over_the_file(
    flags: tuple[str, ...], store: Any, tmp_path: Path
) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text("store:\n  - x\n  - y:2\n")
    config, _ = parse([*STUDENT, *(str(yaml) if word == "YAML" else word for word in flags)])
    assert config.store == store


def test_held_out_stores_are_named_alike() -> None:
    named = ("--store", "a", "--store", "b", "--eval-store", "c", "--eval_store", "d")
    config, _ = parse([*STUDENT, *named])
    assert (config.store, config.eval_store) == (["a", "b"], ["c", "d"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"store": "a:2"}, "--store a:2: the weight of a store is against that of others"),
        ({"store": ["a"], "teachers": "best"}, "--teachers best would have no effect: --store nam"),
        ({"store": ["a", "b:2"], "teachers": "best"}, "--teachers best: the weight of b:2 would"),
        ({"store": ["a", "b"], "teachers": "worst"}, "--teachers is worst, expected mean or best"),
        (
            {"store": ["a", "b"], "teachers": "best", "loss": "ce"},
            "--teachers best would have no effect: --loss ce asks no teacher",
        ),
        (
            {"store": ["a", "b"], "eval_store": ["c", "d:2"]},
            "--eval_store: the weight of d:2",
        ),
        ({"store": []}, "--store is required"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        CachedTeacherConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "loss": "uld", **how})
