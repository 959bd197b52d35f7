"""An argument of a wrong type is told by its name, and all that worked before still does."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import logitstore
from distill.training.config import CachedTeacherConfig
from logitstore.console.argument_types import fits, typed
from logitstore.errors import InputError, WrongTypeError
from logitstore.store import LogitStore
from logitstore.testing import stores
from tests.kit.made_stores import put

RIGHT: list[tuple[object, Any]] = [
    (8, int), (np.int64(8), int), (8, float), (np.float32(0.5), float), (True, bool),
    (np.True_, bool), ("x", str), (Path("x"), "os.PathLike[str] | str"), (None, int | None),
    ((1, 2.5), Sequence[float]), (np.ones(2), Sequence[float]), ([], Sequence[str]),
    ({"a": 1}, Mapping[str, Any] | str), ("mean", Literal["mean", "best"]),
    ("told later", Literal["mean", "best"]), (object(), Any), (object(), Callable[..., Any]),
    (object(), np.ndarray),
]  # fmt: skip
WRONG: list[tuple[object, Any]] = [
    ("8", int), (8.5, int), (True, int), ("8", float), ("yes", bool), (1, bool), (3, str),
    (b"x", str), (None, int), ("x", int | None), ("last", Sequence[str]), (2.0, Sequence[float]),
    ([1, "2"], Sequence[float]), ([1], Mapping[str, Any]), (3, Literal["mean", "best"]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), RIGHT)
def test_what_can_be_meant_is_let_through(value: object, annotation: Any) -> None:
    assert isinstance(annotation, str) or fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), WRONG)
def test_what_cannot_be_meant_is_not(value: object, annotation: Any) -> None:
    assert not fits(value, annotation)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    path = tmp_path_factory.mktemp("typed") / "s"
    put(path, stores.spec(top_k=4))
    return logitstore.open_store(path)


CALLS: dict[str, Callable[[LogitStore], object]] = {
    r"^logitstore\.open_store: path is 3, an int; expected a text or a path\. Give one of": (
        lambda s: logitstore.open_store(3)  # type: ignore[arg-type]
    ),
    r"^LogitStore\.torch: k is '8', a str; expected a whole number or None\.": (
        lambda s: s.torch(k="8")  # type: ignore[arg-type]
    ),
    r": a sequence has a number, 0 to 11, and '0', a str is none": (
        lambda s: s.show("0")  # type: ignore[arg-type]
    ),
    r": a row has a number, 0 to 11, and 1\.5, a float is none": (
        lambda s: s.row(1.5)  # type: ignore[arg-type]
    ),
    r"^logitstore\.create: top_k is '8', a str; expected a whole number\.": (
        lambda s: logitstore.create("x", tokenizer="t", rows=3, top_k="8")  # type: ignore[arg-type]
    ),
    r"^logitstore\.create: has no argument topk\. Did you mean top_k\?": (
        lambda s: logitstore.create("x", tokenizer="t", rows=3, topk=8)  # type: ignore[call-arg]
    ),
    r"^logitstore\.capture: stop is 'END', a str; expected a list of texts\.": (
        lambda s: logitstore.capture("t", "d", "x", stop="END")
    ),
    r"^logitstore\.capture: has no argument top_kk\. Did you mean top_k\?": (
        lambda s: logitstore.capture("t", "d", "x", top_kk=8)
    ),
    r"^CachedTeacherConfig: max_steps is '3', a str; expected a whole number\.": (
        lambda s: CachedTeacherConfig(output_dir="x", store="s", max_steps="3")  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("said", CALLS)
def test_a_public_function_names_the_argument(
    store: LogitStore, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongTypeError, match=said) as raised:
        CALLS[said](store)
    assert isinstance(raised.value, InputError | TypeError)
    assert raised.value.kind == "input"
    assert list(tmp_path.iterdir()) == []


def test_a_call_keeps_its_name_and_what_only_a_type_checker_knows_is_let_through() -> None:
    @typed("mine")
    def mine(one: "Unknown", *, two: int = 2) -> int:  # type: ignore[name-defined]  # noqa: F821
        """Say two."""
        return two

    assert (mine(object()), mine.__name__, mine.__doc__) == (2, "mine", "Say two.")
    with pytest.raises(TypeError, match="missing"):
        mine()
