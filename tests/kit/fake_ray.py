"""As much of Ray as a crew of teachers asks for, in this process and one call at a time.

What it does not have, the tests on a real cluster have. Here a teacher dies when a test wants.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Died(Exception):
    """Raised by an actor's method: its process is gone."""


class RayError(Exception):
    """What a call of an actor that is gone ends with."""


class Ref:
    """A call that is yet to be made."""

    def __init__(self, actor: "Actor", method: str, given: tuple[Any, ...]) -> None:
        self.actor, self.method, self.given = actor, method, given
        self.answer: Any = None
        self.error: RayError | None = None
        self.is_done = False

    def make(self) -> None:
        """Make the call."""
        if self.is_done:
            return
        self.is_done = True
        if self.actor.is_dead:
            self.error = RayError("The actor died.\nThe actor is dead because it was.")
            return
        try:
            self.answer = getattr(self.actor.object, self.method)(*self.given)
        except Died as died:
            self.actor.is_dead = True
            self.error = RayError(f"The actor died unexpectedly.\n\tpid: 1\n{died}.")


class Actor:
    """A handle; `handle.method.remote(…)` is a call."""

    def __init__(self, made: Callable[[], Any]) -> None:
        self.is_dead = False
        self.object = made()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *given: Ref(self, method, given))


class FakeRay:
    """The module.

    Attributes:
        actors: Every actor that was made, in order.
    """

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self) -> None:
        self.actors: list[Actor] = []

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: type) -> Any:
        def make(*given: Any) -> Actor:
            self.actors.append(Actor(lambda: kind(*given)))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, refs: list[Ref], timeout: float) -> tuple[list[Ref], list[Ref]]:
        refs[0].make()
        return refs[:1], refs[1:]

    def get(self, ref: Ref, timeout: float = 0) -> Any:
        ref.make()
        if ref.error is not None:
            raise ref.error
        return ref.answer

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True
