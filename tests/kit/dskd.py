"""DSKD by its definition, label by label and record by record, in float64."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from logitstore.records import Segment
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer

#: Of the teacher; the student has 32.
WIDTH = 24
ROWS = [tiny.corpus()[i][:46] for i in (0, 7, 13, 22, 38)]
TEMPERATURE = 2.0


def states(model: PreTrainedModel, tokenizer: Any, text: str) -> dict[str, Tensor]:
    """Of each supervised token, in float64: state and logits that predict it, e(x), e(y), y."""
    tokens = ByteTokenizer(tokenizer).encode((Segment(text, supervised=True),))
    ids = torch.from_numpy(tokens.token_ids)[None]
    at = torch.from_numpy(np.flatnonzero(tokens.has_record))
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        embedded = model.get_input_embeddings()(ids)[0]
    return {
        "h": out.hidden_states[-1][0, at - 1].double(),
        "z": out.logits[0, at - 1].double(),
        "x": embedded[at - 1].double(),
        "e": embedded[at].double(),
        "y": ids[0, at],
    }


def stored_states(store: LogitStore, i: int) -> dict[str, Tensor]:
    """The same of a store, as it was rounded."""
    found, records = store.states(i), store[i]
    return {
        "h": torch.from_numpy(found.of_records).double(),
        "x": torch.from_numpy(found.embedded(found.ids_of_records)).double(),
        "e": torch.from_numpy(found.embedded(records.token_ids)).double(),
    }


def naive(
    s: dict[str, Tensor], t: dict[str, Tensor], weights: dict[str, Tensor], head_VD: Tensor
) -> tuple[list[Tensor], list[bool]]:
    """Label by label: the loss, and whether the projected teacher says the label."""
    w = {name: each.detach().double() for name, each in weights.items()}
    sides = torch.cat([t["x"], t["e"]], 1)
    key = sides / ((sides - sides.mean()).square().sum() / (sides.numel() - 1)).sqrt()
    value = t["h"] / t["h"].std() + t["e"] / t["e"].std()
    losses, right = [], []
    for i, label in enumerate(s["y"].tolist()):
        query = w["query.weight"] @ torch.cat([s["x"][i], s["e"][i]]) + w["query.bias"]
        scores = torch.stack([query @ k / (2 * t["h"].shape[1]) ** 0.5 for k in key]).exp()
        mean = sum(a * v for a, v in zip(scores / scores.sum(), value, strict=True))
        logits = head_VD @ (w["value.weight"] @ mean + w["value.bias"])
        own = logits.exp().sum().log() - logits[label]
        q, p = ((each / TEMPERATURE).softmax(0) for each in (logits, s["z"][i]))
        right.append(int(logits.argmax()) == label)
        hard = -s["z"][i].log_softmax(0)[label]
        losses.append(own + ((q * (q / p).log()).sum() if right[-1] else hard))
    return losses, right


def naive_teacher_space(
    s: dict[str, Tensor], t: dict[str, Tensor], weights: dict[str, Tensor], head_VD: Tensor
) -> list[Tensor]:
    """Record by record: how far the student, brought to it, is from the teacher's logits."""
    w = {name: each.double() for name, each in weights.items()}
    sides = torch.cat([t["x"], t["e"]], 1)
    key = sides / ((sides - sides.mean()).square().sum() / (sides.numel() - 1)).sqrt()
    query = [
        w["query.weight"] @ torch.cat([x, e]) + w["query.bias"]
        for x, e in zip(s["x"], s["e"], strict=True)
    ]
    own = [w["into_teacher.weight"] @ h + w["into_teacher.bias"] for h in s["h"]]
    losses = []
    for k, h in zip(key, t["h"], strict=True):
        scores = torch.stack([q @ k / (2 * t["h"].shape[1]) ** 0.5 for q in query]).exp()
        mean = sum(a * v for a, v in zip(scores / scores.sum(), own, strict=True))
        q, p = (((head_VD @ each) / TEMPERATURE).softmax(0) for each in (h, mean))
        losses.append((q * (q / p).log()).sum())
    return losses
