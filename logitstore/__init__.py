"""Store a teacher's sorted next-token probabilities once, and train any student from them.

    store = logitstore.open_store("my-store")
    records = store[0]              # TokenRecords: numpy arrays of one sequence
    text = store.text(0)            # SequenceText

Importing this package imports neither torch nor transformers; `capture` does, when it is called.
`create` writes a store from logits that come from elsewhere, without torch.
"""

import importlib
from typing import TYPE_CHECKING

from logitstore.format.spec import Plan, StoreSpec
from logitstore.info import Fidelity
from logitstore.records import PaddedEntries, Segment, SequenceText, TokenRecords
from logitstore.store import LogitStore, open_store
from logitstore.writing.writer import StoreWriter

if TYPE_CHECKING:
    from logitstore.capture import capture
    from logitstore.moving.created.create import create

__version__ = "0.1.0"

__all__ = [
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


def __getattr__(name: str) -> object:
    if name in ("capture", "ray"):  # subpackages, of which one can be called; imported when asked
        return importlib.import_module(f"logitstore.{name}")
    if name == "create":  # so is whatever it needs
        return importlib.import_module("logitstore.moving.created.create").create
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
