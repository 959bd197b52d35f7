"""Load the engine that a capture asks for."""

from typing import TYPE_CHECKING

from logitstore.capture.checked import SERVER
from logitstore.capture.passes.engine import Engine
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.console.launcher import Ranks

if TYPE_CHECKING:
    from logitstore.capture.task import Task


def load_engine(task: "Task", ranks: Ranks) -> Engine:
    """Load the teacher, or find the server that has it.

    Raises:
        InputError: It cannot be used.
        MismatchError: The server has another teacher.
    """
    settings = task.settings
    if settings.engine != SERVER:
        device = task.device(ranks)
        return TeacherPass(task.teacher, task.spec, device, on_nan=settings.on_nan)
    from logitstore.capture.passes.server.options import Options
    from logitstore.capture.passes.server.server_pass import ServerPass

    assert settings.server is not None
    options = Options.of(settings.engine_args)
    return ServerPass(task.teacher, task.spec, settings.server, options)
