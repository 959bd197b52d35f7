"""Tell a caller from Python which argument has a wrong type, before it fails far inside.

    @typed("logitstore.open_store")
    def open_store(path: str | os.PathLike[str], *, allow_partial: bool = False) -> LogitStore: ...

    logitstore.open_store: path is 3, an int; expected a text or a path.

What a parameter may be is its annotation. Only what that says for sure is held against an argument:
numbers, text, paths, truth values, words to choose from, sequences and mappings; anything else
(arrays, models, names that are known to a type checker alone) is let through.
"""

import dataclasses
import difflib
import functools
import inspect
import operator
import os
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from logitstore.errors import WrongTypeError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_UNION = (Union, types.UnionType)
#: What can be held against an argument: the words for it.
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    os.PathLike: "a path",
    None: "None",
    type(None): "None",
}
_LONGEST = 40
#: What no interface of ours is.
_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, type(None))
#: Our own classes, which an argument is or is not; others may be stood in for.
_OURS = ("logitstore.", "distill.")


def typed(name: str, *, leave: Collection[str] = ()) -> Callable[[_Function], _Function]:
    """Let a public function check the types of its arguments.

    Args:
        name: What the function is called by its users, for messages.
        leave: Parameters that it checks itself.
    """

    def with_check(function: _Function) -> _Function:
        signature = inspect.signature(function)
        left = [p.replace(annotation=Any) for p in signature.parameters.values() if p.name in leave]
        held = signature.replace(
            parameters=[*(signature.parameters | {p.name: p for p in left}).values()]
        )

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check_arguments(name, held, function.__globals__, args, kwargs)
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return with_check


def check_arguments(
    name: str,
    signature: inspect.Signature,
    known: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> None:
    """Hold arguments to a signature.

    Args:
        name: Of the function, for messages.
        signature: Of the function.
        known: The names that annotations which are written as text may use.
        args: Given by place.
        kwargs: Given by name.

    Raises:
        WrongTypeError: One has a type that it cannot have, or a name that no parameter has.
    """
    _check_names(name, signature, kwargs)
    # Too many by place, or one missing, is Python's own to tell.
    for parameter, value in signature.bind_partial(*args, **kwargs).arguments.items():
        held = signature.parameters[parameter]
        if held.kind in (held.VAR_KEYWORD, held.VAR_POSITIONAL) or value is held.default:
            continue
        _check(name, parameter, value, _resolved(held.annotation, known))


def check_fields(made: Any) -> None:
    """Hold the fields of a dataclass to their types; those that have their default are left.

    Raises:
        WrongTypeError: One has a type that it cannot have.
    """
    # Not `Field.type`: HfArgumentParser writes into it what it can parse.
    declared: dict[str, Any] = {}
    for kind in reversed(type(made).__mro__):
        declared |= inspect.get_annotations(kind)
    for each in dataclasses.fields(made):
        value = getattr(made, each.name)
        # What is no plain value was made of one, in a copy, or is a library's own.
        if each.init and value is not each.default and isinstance(value, _PLAIN):
            _check(type(made).__name__, each.name, value, _resolved(declared[each.name], {}))


def whole_number(value: object, what: str, count: int) -> int:
    """Return what is given as the number of something.

    Args:
        value: What is given.
        what: What it is to be the number of, for the message.
        count: How many there are.

    Raises:
        WrongTypeError: It is no whole number.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]  # which is what is asked
    except TypeError:
        raise WrongTypeError(
            f"{what} has a number, 0 to {count - 1:,}, and {_shown(value)} is none."
        ) from None


def _check(name: str, parameter: str, value: object, annotation: Any) -> None:
    if not fits(value, annotation):
        raise WrongTypeError(
            f"{name}: {parameter} is {_shown(value)}; expected "
            f"{' or '.join(dict.fromkeys(_said(annotation)))}. Give one of that type."
        )


def _shown(value: object) -> str:
    shown, kind = repr(value), type(value).__name__
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    return f"{shown}, {'an' if kind[0] in 'aeio' else 'a'} {kind}"


def fits(value: object, annotation: Any) -> bool:
    """Tell whether a value can be what an annotation says; True where that is not known."""
    origin = get_origin(annotation)
    if origin in _UNION:
        return any(fits(value, each) for each in get_args(annotation))
    if origin is Literal:
        return isinstance(value, tuple(map(type, get_args(annotation))))  # which: checked later
    kind = origin or annotation
    if kind is None or kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind in (str, os.PathLike):
        return isinstance(value, kind)
    if kind is Sequence:
        return _is_sequence_of(value, *get_args(annotation))
    if kind is Mapping or kind is dict:
        return isinstance(value, Mapping)
    if getattr(kind, "_is_protocol", False):
        return not isinstance(value, _PLAIN)
    if isinstance(kind, type) and kind.__module__.startswith(_OURS):
        return isinstance(value, kind)
    return True


def _is_sequence_of(value: object, of: Any = Any) -> bool:
    """Tell whether a value is a sequence of things that fit; a text counts as one thing."""
    if isinstance(value, str | bytes):
        return False
    if not isinstance(value, Sequence):
        return hasattr(value, "__iter__")  # an array, a generator, a set
    return all(fits(each, of) for each in value)


def _said(annotation: Any) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin in _UNION:
        for each in get_args(annotation):
            yield from _said(each)
    elif origin is Literal:
        yield from map(repr, get_args(annotation))
    elif (origin or annotation) is Sequence:
        yield f"a list of {' or '.join(_plural(*get_args(annotation)))}"
    elif (origin or annotation) in (Mapping, dict):
        yield "a dict"
    elif not getattr(annotation, "_is_protocol", False):
        words = _WORDS.get(origin or annotation)
        yield words or str(getattr(annotation, "__name__", annotation))


def _plural(of: Any = Any) -> Iterator[str]:
    for word in _said(of):
        yield f"{word.removeprefix('a ')}s" if word.startswith("a ") else word


def _resolved(annotation: Any, known: Mapping[str, Any]) -> Any:
    """Return an annotation that is written as text; Any where it names what is not imported."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(known))  # our own source's annotations
    except (NameError, TypeError):
        return Any


def _check_names(name: str, signature: inspect.Signature, kwargs: Mapping[str, Any]) -> None:
    parameters = signature.parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for given in kwargs:
        if given not in parameters:
            near = difflib.get_close_matches(given, list(parameters), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise WrongTypeError(
                f"{name}: has no argument {given}.{hint} help({name}) lists all of them."
            )
