"""Load the engine that a capture asks for, and what writes completions with it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from logitstore.capture.checked import SERVER, VLLM
from logitstore.capture.passes.completer import Completer
from logitstore.capture.passes.engine import Engine
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.console.launcher import Ranks

if TYPE_CHECKING:
    from logitstore.capture.task import Task


def load_engine(task: "Task", ranks: Ranks) -> Engine:
    """Load the teacher, or find the server that has it.

    Raises:
        InputError: It cannot be used.
        MismatchError: The server has another teacher.
        MissingLibraryError: The engine is not installed.
    """
    return _LOADERS.get(task.settings.engine, _transformers)(task, ranks)


def _transformers(task: "Task", ranks: Ranks) -> Engine:
    return TeacherPass(task.teacher, task.spec, task.device(ranks), on_nan=task.settings.on_nan)


def _vllm(task: "Task", ranks: Ranks) -> Engine:
    from logitstore.capture.passes.vllm.loading import Wanted
    from logitstore.capture.passes.vllm.public_pass import PublicPass
    from logitstore.capture.passes.vllm.worker_pass import WorkerPass

    settings = task.settings
    wanted = Wanted(
        teacher=task.teacher,
        spec=task.spec,
        options=settings.vllm_options,
        max_length=task.reader.limits.max_length,
        sampling=settings.sampling,
        on_nan=settings.on_nan,
        ranks=ranks,
    )
    return PublicPass(wanted) if settings.says_lists else WorkerPass(wanted)


def _server(task: "Task", ranks: Ranks) -> Engine:
    from logitstore.capture.passes.server.options import Options
    from logitstore.capture.passes.server.server_pass import ServerPass

    settings = task.settings
    assert settings.server is not None
    options = Options.of(settings.engine_args)
    return ServerPass(task.teacher, task.spec, settings.server, options, settings.on_nan)


def completer_of(
    teacher: Engine, task: "Task", budget: int, beat: Callable[[], None] = lambda: None
) -> Completer | None:
    """Make a completer for a task that asks for completions; None for one that does not."""
    sampling = task.settings.sampling
    if sampling is None:
        return None
    assert isinstance(task.reader, PromptReader)
    return teacher.completer(task.reader, sampling, budget, beat)


_LOADERS: Mapping[str, Callable[["Task", Ranks], Engine]] = {SERVER: _server, VLLM: _vllm}
