"""A loss of the user's own: `--loss my_module:my_loss`, or the function itself.

Naming a module on the command line imports it, which runs it: that is the user's own code, from
where Python finds modules, or from the folder of the command. Nothing else imports one. A string in
a program, a `--config` file, a store, a checkpoint or a student's `results.json` may hold such a
name, and they are passed on from hand to hand: a name in them is looked up among the modules that
the program has imported already, and runs nothing.
"""

import importlib
import operator
import os
import sys
import traceback

from distill.losses import all_losses, all_options, keep
from distill.losses.loss import Loss
from distill.losses.names import addresses_in
from logitstore.errors import InputError, in_a_line

#: Words that are something else in `--loss`, or in what is logged.
_TAKEN = ("ce", "kd", "auto", "eval", "train", "aux")
_given: dict[str, Loss] = {}  # by address: those that no module has, as they lie in a function


def use(loss: Loss) -> str:
    """Make a loss known by the name of its function; return its address.

    Raises:
        InputError: It has no declaration, its name is another loss's, or it wants a flag.
    """
    name = loss.name
    if name in _TAKEN or name in all_losses() or not name.isidentifier():
        raise InputError(
            f"{loss.home or 'a loss'}: expected a declared function with a name of its own, found "
            f"{name!r}, which is taken or no name. Rename the function.",
            kind="own-loss",
        )
    known_options = all_options()
    for option in loss.options:
        if known_options.get(option.name) is not option:
            raise InputError(
                f"{loss.home}: declares the flag --{option.name}, and a loss of your own can read "
                "those that are there, but add none. Leave it out of options=…, and use a constant "
                "of your module.",
                kind="own-loss",
            )
    if _in_modules(loss.home) is not loss:
        _given[loss.home] = loss
    keep(name, loss)
    return loss.home


def check_declared(loss: object) -> None:
    """Reject a function that no `@distill.loss(…)` stands above, where a loss is expected.

    Raises:
        InputError: It is one; says what to write.
    """
    if callable(loss) and not isinstance(loss, Loss):
        name = getattr(loss, "__qualname__", type(loss).__name__)
        raise InputError(
            f"loss is {name}, which no @distill.loss(…) declares. Write @distill.loss(needs=…) "
            "above it: that says what of a store the function is given.",
            kind="own-loss",
        )


def known(address: str) -> Loss | None:
    """Find a loss by its address in what is imported already; None if it is not there."""
    found = _in_modules(address) or _given.get(address)
    if found is not None:
        use(found)
    return found


def _in_modules(address: str) -> Loss | None:
    module, _, function = address.partition(":")
    found = _attribute(sys.modules.get(module), function)
    return found if isinstance(found, Loss) else None


def import_named(text: str) -> None:
    """Import the modules that `--loss` names on the command line, which runs their code.

    Raises:
        InputError: One cannot be imported, or has no such loss; says why.
    """
    for address in addresses_in(text):
        module, _, function = address.partition(":")
        _check_declared(_imported(module, address), function, address)


def _imported(module: str, address: str) -> object:
    """Import a module from where Python looks, or else from this folder."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name != module.partition(".")[0] or here in sys.path:
            raise _not_imported(module, address, error) from error
        sys.path.append(here)  # last, so that no file there stands in for a library
        try:
            return importlib.import_module(module)
        except Exception as error:
            sys.path.remove(here)
            raise _not_imported(module, address, error) from error
    except Exception as error:  # whatever the module itself does
        raise _not_imported(module, address, error) from error


def _not_imported(module: str, address: str, error: Exception) -> InputError:
    if (line := _line_of(module, error)) is not None:
        return InputError(
            f"--loss {address}: {line} fails when it is imported ({in_a_line(error)}). Change it "
            "there.",
            kind="own-loss",
        )
    hint = " Write the module's name, without .py and without slashes." if "/" in module else ""
    if module.endswith(".py"):
        hint = f" Write --loss {module.removesuffix('.py')}:{address.partition(':')[2]}."
    return InputError(
        f"--loss {address}: {module} cannot be imported from {os.getcwd()} ({in_a_line(error)})."
        f"{hint or ' Run the command in the folder of that file, or set PYTHONPATH to it.'}",
        kind="own-loss",
    )


def _line_of(module: str, error: Exception) -> str | None:
    """Name the last line of the module's own file that an error came through, if any did."""
    file = f"{module.replace('.', os.sep)}.py"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.endswith((os.sep + file, os.sep + "__init__.py"))]
    own = [f for f in own if f.filename.endswith(file) or module in f.filename]
    return f"{own[-1].filename} line {own[-1].lineno}" if own else None


def _check_declared(module: object, function: str, address: str) -> None:
    found = _attribute(module, function)
    if isinstance(found, Loss):
        use(found)
        return
    where = address.partition(":")[0]
    file = getattr(module, "__file__", None)
    if file is not None:
        where = f"{where} ({file})"
    there = [name for name, each in vars(module).items() if isinstance(each, Loss)]
    what = "has no such name" if found is None else f"has a {type(found).__name__} of that name"
    raise InputError(
        f"--loss {address}: {where} {what}, expected a function under @distill.loss(…)"
        f"{f'; it declares {chr(44).join(there)}' if there else ''}. Write @distill.loss(…) above "
        "it, or name another one.",
        kind="own-loss",
    )


def _attribute(module: object, name: str) -> object:
    try:
        found: object = operator.attrgetter(name)(module)
    except AttributeError:
        return None
    return found
