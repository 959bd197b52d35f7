"""A loss is one file: everything else finds what that file says, and no other names it."""

import ast
import io
import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from distill.losses import all_losses, all_options
from tests.kit.forks import forget_modules, forked
from tests.kit.paths import ROOT

#: Cross-entropy as a loss of its own, with arrays, a flag and a paper that nobody else has.
TOY = '''
"""How surprised the student is by each token, `toy_scale` times."""

from distill.losses.aligned import Aligned
from distill.losses.loss import Ask, Loss, Option, Pairing, Paper


def _arrays(aligned, options):
    entries = aligned.entries()
    return {
        "index": aligned.last_label,
        "own_count": entries["entry_count"],
        "own_logprobs": entries["entry_logprobs"],
        "seen_index": aligned.labels()["token_index"],
        "seen_pair": aligned.labels()["token_pair"],
    }


def _values(teacher, student, options):
    assert teacher["own_logprobs"].shape[0] == len(teacher["index"])
    assert student.top(1).shape == (len(teacher["index"]), 1)
    return -options["toy_scale"] * student.added_up(teacher["seen_index"], teacher["seen_pair"])


LOSS = Loss(
    needs=frozenset({"entries"}),
    pairing=Pairing("starts"),
    arrays=_arrays,
    ask=lambda teacher, options: Ask(top_k=1),
    values=_values,
    weight=0.25,
    options=(Option("toy_scale", 1.0, "Of toy.", expected="above 0", is_valid=lambda x: x > 0),),
    cited=Paper("2601.00001", "On toys"),
)
'''

#: A run with the folder of that file beside those of our own; what it shows, as JSON.
RUN = """
import json, sys, tempfile
from pathlib import Path

import distill.losses
distill.losses.__path__.append(sys.argv[1])

from dataclasses import replace
from distill.report.model_card import card
from distill.training.command_line import parse
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, LogitStoreError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import ragged_rows

out = Path(sys.argv[1])
tokenizer = tiny.byte_bpe()
teacher = tiny.llama(len(tokenizer), seed=7)
store = FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), out / "t")

def config(*flags):
    needed = ["--store", "s", "--output_dir", str(out / "o"), "--model_name_or_path", "m"]
    quiet = ["--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--max_steps", "2"]
    return parse([*needed, *quiet, "--logging_steps", "1", *flags])[0]

def refused(run):
    try:
        run()
    except LogitStoreError as error:
        return str(error)

args = config("--loss", "toy,uld", "--toy_scale", "3")
model = tiny.llama(len(tokenizer))
trainer = CachedTeacherTrainer(model, args, store, store, processing_class=tokenizer)
evaluated = trainer.evaluate()
trainer.train()
blind = replace(store, spec=type(store.spec)(**vars(store.spec) | {"top_k": 0}))
facts = {
    "weights": args.loss_weights,
    "options": args.loss_options,
    "logged": [entry for entry in trainer.state.log_history if "loss" in entry],
    "evaluated": evaluated,
    "card": card({"name": "run", "loss": args.loss}),
    "origin": trainer._origin(args)["settings"],
    "without effect": refused(lambda: config("--loss", "ce", "--toy_scale", "3")),
    "invalid": refused(lambda: config("--loss", "toy", "--toy_scale", "-1")),
    "unknown": refused(lambda: config("--loss", "toys")),
    "needs": refused(
        lambda: CachedTeacherTrainer(model, args, blind, processing_class=tokenizer)
    ),
}
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("losses")
    (folder / "toy.py").write_text(TOY)

    def run() -> str:
        forget_modules("distill", "tests.kit")  # which have asked for all losses already
        sys.argv = ["-c", str(folder)]
        with redirect_stdout(io.StringIO()) as printed:
            exec(RUN, {"__name__": "__main__"})
        return printed.getvalue().splitlines()[-1]

    found: dict[str, object] = json.loads(forked(run))
    return found


def test_a_file_is_all_that_a_new_loss_takes(shown: dict[str, dict[str, float]]) -> None:
    """Weight, flag, arrays and question of its own; its value is three times cross-entropy's."""
    assert shown["weights"] == {"toy": 0.25, "uld": 1.5}
    assert shown["options"]["toy_scale"] == 3
    for entry in shown["logged"]:
        assert entry["toy_loss"] == pytest.approx(3 * entry["ce_loss"], rel=1e-5)
        parts = 0.25 * entry["toy_loss"] + 1.5 * entry["uld_loss"]
        assert entry["kd_loss"] == pytest.approx(parts, rel=1e-5)
        assert entry["kd_gap"] > 0  # of uld alone: this one states no bound
    assert len(shown["logged"]) == 2
    evaluated = shown["evaluated"]
    assert evaluated["eval_toy_loss"] == pytest.approx(3 * evaluated["eval_ce_loss"], rel=1e-5)


def test_what_it_needs_its_flag_and_its_paper_are_known_everywhere(shown: dict[str, str]) -> None:
    assert "On toys, [arXiv:2601.00001]" in shown["card"]
    assert "toy_scale" in shown["origin"]
    assert shown["without effect"] == (
        "--toy_scale 3.0 would have no effect: --loss ce is without toy. Leave --toy_scale out, or "
        "add toy."
    )
    assert shown["invalid"] == "--toy_scale is -1.0, expected above 0."
    assert ", gold, infifusion, cdm, dskd, clkd, cot2align, toy. Name one" in shown["unknown"]
    assert "so without the entries that toy compares" in shown["needs"]


def test_no_other_file_names_a_loss() -> None:
    """But for the table of advice, the figures that it rests on, and the one figure that
    `distill evaluate` and `compare` show."""
    figure = {"cli", "evaluation", "report"}
    for path in sorted((ROOT / "distill").rglob("*.py")):
        room, own = path.relative_to(ROOT / "distill").parts[0].removesuffix(".py"), path.stem
        if room == "losses" and own in ("advice", "evidence"):
            continue
        named = set(all_losses()) & strings_of(path)
        assert named <= ({"uld"} if room in figure else {own} if room == "losses" else set()), path


def strings_of(path: Path) -> set[str]:
    """Every string that the code itself has."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_options_that_a_type_checker_is_told_of_are_those_that_losses_declare() -> None:
    source = Path(ROOT / "distill/training/loss_flags.py").read_text(encoding="utf-8")
    told = source.split("if TYPE_CHECKING:")[1].split("\nelse:")[0]
    for option in all_options().values():
        default = json.dumps(option.default).replace("false", "False")
        assert any(
            line.strip().startswith(f"{option.name}: ") and line.endswith(f"= {default}")
            for line in told.splitlines()
        ), option.name


def test_the_readme_has_every_loss() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in all_losses() if f"`{name}`" not in text] == []


def methods() -> list[list[str]]:
    """The cells of each row of the table of all methods."""
    lines = (ROOT / "docs/methods.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip().strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_table_of_methods_has_every_loss_with_a_test_that_exists() -> None:
    rows = methods()
    commands = " ".join(row[1] for row in rows)
    held = {path for row in rows for path in re.findall(r"`(tests/[^`]+)`", row[3])}
    assert [path for path in sorted(held) if not (ROOT / path).exists()] == []
    for name in all_losses():
        assert f"--loss {name}" in commands, name
        assert f"tests/distill/losses/test_{name}.py" in held, name
    for option in all_options()["map"].choices[1:]:
        assert re.search(rf"`(--loss mapped_kl --map )?{option}`", commands), option


def test_no_cell_of_the_table_of_methods_is_a_promise() -> None:
    for *said, mine in methods():
        is_own = "my_module" in said[1]
        assert all([*said[:4], is_own or said[4], is_own or mine]), said
        assert "planned" not in " ".join([*said, mine]).lower()
        assert len(said) == 5, said
