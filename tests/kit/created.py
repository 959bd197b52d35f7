"""Rows of a tiny teacher as a caller has them: texts, and the logits of each of their tokens."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import logitstore
from logitstore.checking.verify import verify_store
from logitstore.store import LogitStore, open_store
from tests.kit.dumps import NAME, Dumper

Floats = npt.NDArray[np.float32]
Rows = Sequence[tuple[str, dict[str, Any]]]


def logits_of(teacher: Dumper, ids: Sequence[int]) -> Floats:
    """(T, V) as a model returns them: row t says what comes after token t."""
    with torch.no_grad():
        return np.asarray(teacher.model(torch.tensor([list(ids)])).logits[0].numpy())


def with_logits(teacher: Dumper, texts: Iterable[str]) -> Rows:
    return [(text, {"logits": logits_of(teacher, teacher.ids(text))}) for text in texts]


def with_entries(teacher: Dumper, texts: Iterable[str], k: int = 8) -> Rows:
    """The k most probable of each row, and the tail beyond them."""
    rows = []
    for text, given in with_logits(teacher, texts):
        logp = log_softmax(given["logits"])
        ids = np.argsort(-logp, 1, kind="stable")[:, :k]
        logprobs = np.take_along_axis(logp, ids, 1)
        rest = np.exp(logp).sum(1) - np.exp(logprobs).sum(1)
        rows.append((text, {"ids": ids, "logprobs": logprobs, "tail": np.log(rest)}))
    return rows


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The definition, in float64."""
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    found: npt.NDArray[np.float64] = z - np.log(np.exp(z).sum(1, keepdims=True))
    return found


def settings(of: Dumper, rows: Rows | int, **more: Any) -> dict[str, Any]:
    count = rows if isinstance(rows, int) else len(rows)
    return {"tokenizer": of.folder, "teacher": NAME, "rows": count} | more


def created(
    place: Path,
    of: Dumper,
    rows: Rows,
    order: Iterable[int] | None = None,
    before: Callable[[int], None] | None = None,
    **more: Any,
) -> LogitStore:
    """Write a store of rows as a program does that may have been stopped before."""
    with logitstore.create(place, **settings(of, rows, **more)) as w:
        for row in order if order is not None else w.missing():
            if before is not None:
                before(row)
            text, given = rows[row]
            assert w.add(row, text, **given) is True
    assert verify_store(place, deep=True).damaged == []
    return open_store(place)
