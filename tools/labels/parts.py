"""The parts of the experiment in one folder: made once, small enough to carry elsewhere.

before.jsonl      what students are trained on before
rows.jsonl        the store's text
heldout.jsonl     what students are measured on
store/            the teacher's records of rows.jsonl
tokenizers/NAME/  the students' tokenizers, and `whole`, the teacher's
before/NAME-SEED.safetensors    students that were trained before, in bfloat16
results*.jsonl    a line for each student that was measured
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import logitstore
from logitstore.console.progress import progress
from tools import real_parts
from tools.demo.corpus import load_corpus, write_jsonl
from tools.labels.settings import CONTROL, Scale, Setting
from tools.labels.trim import trimmed

#: Bytes of text that the Unigram tokenizer is trained on: more takes minutes.
_UNIGRAM_BYTES = 600_000


def prepare(folder: Path, scale: Scale) -> None:
    """Make texts, store and tokenizers, unless they are there; real parts are fetched if needed."""
    _texts(folder, scale)
    if not (folder / "store" / "DONE").exists():
        teacher = real_parts.instruct_model() if scale.is_real else _made_up_teacher(folder, scale)
        source = str(folder / "rows.jsonl")
        logitstore.capture(teacher, source, out=folder / "store", top_k=scale.top_k)
    for name, make in _tokenizers(folder, scale).items():
        made = folder / "tokenizers" / name
        if not made.exists():
            part = made.with_name(f"{name}.part")
            make().save_pretrained(part)
            part.rename(made)


def texts_of(folder: Path, name: str) -> list[str]:
    """Read the rows of a text of the folder."""
    return [
        json.loads(line)["text"]
        for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]


def _texts(folder: Path, scale: Scale) -> None:
    names = ("before", "rows", "heldout")
    if all((folder / f"{name}.jsonl").exists() for name in names):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(names, load_corpus(**scale.corpus_bytes), strict=True):
        part = folder / f"{name}.part"
        write_jsonl(part, rows)
        part.rename(folder / f"{name}.jsonl")


def _made_up_teacher(folder: Path, scale: Scale) -> Path:
    from tools.demo import models

    tokenizer = models.byte_bpe(texts_of(folder, "before"), 2 * scale.student.vocabulary)
    models.save(folder / "teacher", models.new_model(scale.student, tokenizer, 0), tokenizer)
    return folder / "teacher"


def _tokenizers(folder: Path, scale: Scale) -> dict[str, Callable[[], Any]]:
    """Say how each tokenizer is made.

    Real ones are trimmed to what the store's text and the held-out text use, so that they cut both
    as the whole ones do.
    """
    from tools.demo import models

    before, vocabulary = texts_of(folder, "before"), scale.student.vocabulary
    used = [*texts_of(folder, "rows"), *texts_of(folder, "heldout")]
    whole = folder / "store" / "tokenizer"
    foreign: Callable[[], Path] = partial(real_parts.tokenizer, "llama3")
    if not scale.is_real:
        foreign = partial(_made_up_tokenizer, folder)
    return {
        "unigram": lambda: models.unigram(_spread(before, _UNIGRAM_BYTES), vocabulary),
        CONTROL: lambda: trimmed(whole, used),
        "llama3": lambda: trimmed(foreign(), used),
        "bpe": lambda: models.byte_bpe(before, vocabulary),
    }


def _made_up_tokenizer(folder: Path) -> Path:
    from tools.demo import models

    made = folder / "foreign"
    models.byte_bpe(texts_of(folder, "before"), 1_500).save_pretrained(made)
    return made


def _spread(rows: list[str], size: int) -> list[str]:
    """Take every n-th row, so that all together have about `size` bytes."""
    return rows[:: max(1, sum(map(len, rows)) // size)]


# ---- students that were trained before ----


def before_file(folder: Path, student: str, seed: int) -> Path:
    """Name the file of a student's weights after it was trained before."""
    return folder / "before" / f"{student}-{seed}.safetensors"


def start_of(folder: Path, setting: Setting, seed: int) -> str:
    """Name the weights that students begin with: `new`, a digest, or nothing if they are not there.

    Students are compared only with those of the same start.
    """
    if setting.start == "new":
        return "new"
    held = before_file(folder, setting.student, seed)
    return hashlib.sha256(held.read_bytes()).hexdigest()[:12] if held.exists() else ""


def carry(folder: Path, out: Path, *, with_weights: bool) -> int:
    """Copy what another machine needs to `out`; return its bytes."""
    shutil.rmtree(out, ignore_errors=True)
    wanted = ["before.jsonl", "rows.jsonl", "heldout.jsonl", "tokenizers", "store"]
    wanted += [path.name for path in folder.glob("results*.jsonl")]
    wanted += ["before"] if with_weights and (folder / "before").exists() else []
    out.mkdir(parents=True)
    with progress(len(wanted), "copy", "parts") as shown:
        for name in wanted:
            source = folder / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, out / name)
            shown.update(1)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def code_digest() -> str:
    """Digest the code that trains: results of one digest come from the same code."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(
        p for name in ("distill", "logitstore") for p in (root / name).rglob("*.py")
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
