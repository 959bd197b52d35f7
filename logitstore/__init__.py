"""Store a teacher's sorted next-token probabilities once, and train any student from them.

    store = logitstore.open_store("my-store")
    records = store[0]              # TokenRecords: numpy arrays of one sequence
    text = store.text(0)            # SequenceText

The names are loaded when first used. None but `capture`, when it is called, imports torch or
transformers; `create` writes a store from logits that come from elsewhere without either.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logitstore.capture import capture
    from logitstore.format.fidelity import Fidelity
    from logitstore.format.spec import Plan, StoreSpec
    from logitstore.moving.created.create import create
    from logitstore.records import Example, PaddedEntries, Segment, SequenceText, TokenRecords
    from logitstore.store import LogitStore, open_store
    from logitstore.writing.writer import StoreWriter

__version__ = "0.1.0"

__all__ = [
    "Example",
    "Fidelity",
    "LogitStore",
    "PaddedEntries",
    "Plan",
    "Segment",
    "SequenceText",
    "StoreSpec",
    "StoreWriter",
    "TokenRecords",
    "__version__",
    "capture",
    "create",
    "open_store",
]


_HOME = {
    "Example": "logitstore.records",
    "Fidelity": "logitstore.format.fidelity",
    "LogitStore": "logitstore.store",
    "PaddedEntries": "logitstore.records",
    "Plan": "logitstore.format.spec",
    "Segment": "logitstore.records",
    "SequenceText": "logitstore.records",
    "StoreSpec": "logitstore.format.spec",
    "StoreWriter": "logitstore.writing.writer",
    "TokenRecords": "logitstore.records",
    "create": "logitstore.moving.created.create",
    "open_store": "logitstore.store",
}
#: Modules that are used as `logitstore.errors.InputError`; `capture` is one that can be called.
_MODULES = ("capture", "errors", "ray", "records", "store")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"logitstore.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
