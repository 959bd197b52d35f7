"""Make the models that a hub would provide: `teacher/` and `init/<seed>/` for each seed, once.

Imports no torch itself: that is for the process it starts.
"""

import multiprocessing
import sys
from pathlib import Path

from tools.demo.commands import CommandError
from tools.demo.corpus import load_corpus
from tools.demo.settings import Settings, cores


def make_models(out: Path, settings: Settings) -> None:
    """Train the teacher and both tokenizers, unless an interrupted run has done so.

    This runs in a separate process, whose gigabyte of memory is released before students start.
    """
    if (out / "init").exists():
        return
    spawn = multiprocessing.get_context("spawn")
    # Small arguments only: with more than a pipe holds, a child that dies early would hang us.
    process = spawn.Process(target=_train_and_save, args=(out, settings), daemon=True)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise CommandError(f"training the teacher ended with status {process.exitcode}")


def _train_and_save(out: Path, settings: Settings) -> None:
    from tools.demo import models  # torch and transformers, only in the process that trains

    corpus = load_corpus(**settings.corpus_bytes)
    text = _first_bytes(corpus.student + corpus.teacher[::-1], settings.tokenizer_bytes)
    print("tokenizers: byte-level BPE for the teacher, Unigram for the students", file=sys.stderr)
    ours = models.byte_bpe(text, settings.teacher.vocabulary)
    theirs = models.unigram(text, settings.student.vocabulary)
    model = models.train_teacher(
        corpus.teacher, ours, settings.teacher, steps=settings.teacher_steps, threads=cores()
    )
    models.save(out / "teacher", model, ours)
    for seed in settings.seeds:
        student = models.new_model(settings.student, theirs, seed)
        models.save(out / "init.tmp" / str(seed), student, theirs)
    # Renamed last and atomically: it also marks the teacher as complete.
    (out / "init.tmp").rename(out / "init")


def _first_bytes(rows: list[str], wanted_bytes: int) -> list[str]:
    total, taken = 0, []
    for row in rows:
        if total >= wanted_bytes:
            break
        taken.append(row)
        total += len(row.encode())
    return taken
