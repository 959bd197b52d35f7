"""Say which extra to install where a module of `logitstore.testing` misses a library."""

from collections.abc import Iterator
from contextlib import contextmanager

from logitstore.errors import MissingLibraryError


@contextmanager
def needed_by(module: str, *, extra: str) -> Iterator[None]:
    """Turn a failed import inside the block into one error that says what to install.

    Args:
        module: The name of the importing module.
        extra: The extra of this package that brings the library.

    Raises:
        MissingLibraryError: A library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"{module} needs the library {error.name}, which is not installed. Install it with "
            f"`pip install 'logitstore[{extra}]'`."
        ) from error
