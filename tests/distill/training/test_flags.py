"""Help and wrong flags, made from sources alone: quick, and what the parser itself knows."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from distill.losses import all_losses, all_options
from distill.losses.in_source import loss_flags, loss_names
from distill.training import flag_names
from distill.training.command_line import _Parser
from distill.training.flag_names import check_names
from distill.training.flag_values import check_values
from distill.training.help import help_text
from distill.training.presets import PRESETS
from distill.training.trainer_flags import trainer_flags
from logitstore.errors import InputError
from tests.kit.commands import Run
from tests.kit.paths import ROOT

NEEDED = ["--model_name_or_path", "m", "--store", "s", "--output_dir", "o"]


def listed(text: str) -> list[str]:
    """The flags that a help lists; one that a text names stands behind more spaces."""
    return re.findall(r"^  --([\w-]+)", text, re.MULTILINE)


def test_losses_read_from_their_source_are_those_that_are_imported() -> None:
    assert loss_names() == list(all_losses())
    options = all_options()
    assert {flag.name for flag in loss_flags()} == set(options)
    for flag in loss_flags():
        option = options[flag.name]
        assert flag == (option.name, option.default, option.help, option.choices)


def test_a_loss_of_another_folder_is_read_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distill.losses

    monkeypatch.setattr(distill.losses, "__path__", [*distill.losses.__path__, str(tmp_path)])
    (tmp_path / "toy.py").write_text(
        'LOSS = Loss(order=0, options=(Option("toy_scale", 1.5, "Of toy.", is_valid=bool),))\n'
    )
    (tmp_path / "no_loss.py").write_text('raise SystemExit("was imported")\n')
    assert loss_names()[0] == "toy"
    assert ("toy_scale", 1.5, "Of toy.", ()) in loss_flags()


def test_flags_of_training_arguments_read_from_its_source_are_its_fields() -> None:
    real = {each.name: each for each in dataclasses.fields(TrainingArguments) if each.init}
    assert [flag.name for flag in trainer_flags()] == list(real)
    computed = 0
    for flag in trainer_flags():
        default, text = real[flag.name].default, real[flag.name].metadata.get("help", "")
        if flag.default is None:
            computed += default not in (None, dataclasses.MISSING)
        else:
            assert flag.default == default, flag.name
        assert flag.help in ("", text), flag.name
    assert computed < 5


def test_each_flag_of_the_parser_is_known_and_listed_once() -> None:
    parser = {name for name in _Parser().known_keys() if name != "remove_unused_columns"}
    text = help_text(every=True)
    found = listed(text)
    assert len(found) == len(set(found))
    assert set(found) == parser | {"help-all"}
    assert parser <= flag_names.names()
    spelt = {word[2:] for action in _Parser()._actions for word in action.option_strings}
    assert flag_names.names() == spelt | {"help", "help_all"}


def test_our_own_flags_come_first_with_their_defaults() -> None:
    text, every = help_text(), help_text(every=True)
    assert every.startswith(text.rstrip("\n"))
    assert "--fsdp" not in text
    lines = " ".join(text.split())
    assert "--loss NAMES auto: tail_kl where" in lines
    assert "Largest share of the store's sequences" in lines
    assert re.search(r"--max_lost SHARE [^[]*\[0\.05\]", lines)
    assert re.search(r"--max_length N [^[]*\[what the student can read\]", lines)
    assert lines.index("Student:") < lines.index("Store:") < lines.index("Loss:")


@pytest.mark.parametrize("more", ["--help", "-h", "--help-all", "--help_all"])
def test_help_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run("train", *NEEDED, more)
    assert (status, err) == (0, "")
    assert out == help_text(every="all" in more)
    # One name is longer than its column, and a word is not cut.
    assert all(len(line) <= 80 for line in out.splitlines()), max(out.splitlines(), key=len)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_help_of_a_preset_is_its_flags_and_their_sources(run: Run, preset: str) -> None:
    status, out, _ = run("train", "--preset", preset, "--help")
    assert status == 0
    for setting in PRESETS[preset]:
        assert f"--{setting.flag} {setting.value}\n      {setting.source}" in out


def test_a_wrong_or_missing_flag_is_told() -> None:
    check_names([*NEEDED, "--learning-rate=1e-4", "--no_dataloader_pin_memory", "--help-all"])
    check_names(["--config", "run.yaml"])
    with pytest.raises(InputError, match=r"no flag is called --lerning_rate. Did you mean learn"):
        check_names([*NEEDED, "--lerning_rate", "1"])
    with pytest.raises(InputError, match=r"^no flag is called --no_such\. See `distill train"):
        check_names([*NEEDED, "--no_such=--seed"])
    for i, flag in enumerate(["--model_name_or_path", "--store", "--output_dir"]):
        with pytest.raises(InputError, match=f"{flag} is required"):
            check_names([*NEEDED[: 2 * i], *NEEDED[2 * i + 2 :]])


def test_flags_that_cannot_be_read_from_the_source_are_left_to_the_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flag_names, "trainer_flags", lambda: ())
    check_names([*NEEDED, "--lerning_rate", "1"])


def test_a_wrong_word_is_told_by_its_name_alone(tmp_path: Path) -> None:
    check_values([*NEEDED, "--loss", "uld:1.5,my_module:my_loss", "--uncovered=none"])
    check_values([*NEEDED, "--loss", "auto", "--preset", "recommended", "--map", "counted"])
    check_values([*NEEDED, "--learning_rate", "kl", "--run_name", "--loss"])
    for words, said in (
        (["--loss", "ulb"], r"--loss ulb: no loss is called 'ulb'\. Known: ce, mapped_kl"),
        (["--loss=uld:x"], "the weight 'x' is not a number above 0"),
        (["--loss", "uld,uld"], "uld is named twice"),
        (["--preset", "best"], "--preset best: not known. Known: uld_paper, recommended"),
        (["--uncovered", "soft"], "--uncovered soft: not known. Known: hard, none, scale. Name"),
        (["--tail-kl-kind", "back"], "--tail_kl_kind back: not known. Known: forward, reverse"),
        (["--dtype", "int4"], "--dtype int4: not known. Known: float32, bfloat16"),
    ):
        with pytest.raises(InputError, match=said):
            check_values([*NEEDED, *words])
        name, _, value = " ".join(words).replace("=", " ").lstrip("-").partition(" ")
        (tmp_path / "run.yaml").write_text(f"seed: 1\n{name}: {value}\n")
        with pytest.raises(InputError, match=rf"^--config .*run\.yaml: .*{said}"):
            check_values(["--config", str(tmp_path / "run.yaml")])
    check_values([*NEEDED, "--config", str(tmp_path / "run.yaml"), "--dtype", "float32"])
    (tmp_path / "run.yaml").write_text("lerning_rate: 1\n")
    with pytest.raises(InputError, match=r"no key is called lerning_rate. Did you mean learning_r"):
        check_values(["--config", str(tmp_path / "run.yaml")])


TRAIN, WRONG = ["distill", "train"], ["--lerning_rate", "1"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([*TRAIN, "--help"], 0, "usage: distill train"),
        ([*TRAIN, *WRONG], 2, "no flag is called"),
        ([*TRAIN, *NEEDED, "--loss", "ulb"], 2, "no loss is called"),
        (["distill", "coverage", "s", "s", "--loss", "ulb"], 2, "no loss is called"),
        (["logitstore", "capture", "t", "d", "--out", "s", "--engine", "x"], 2, "--engine is x"),
    ],
)
def test_nothing_slow_is_imported_for_help_or_what_is_misspelt(
    words: list[str], status: int, said: str
) -> None:
    heavy = {"torch", "transformers", *(["numpy"] if words[1] == "train" else [])}
    code = (
        f"import sys, {words[0]}.cli\n"
        f"sys.argv = {words!r}\n"
        f"try:\n    {words[0]}.cli.main()\n"
        f"finally:\n    print({heavy} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert done.stdout.endswith("set()\n")
