"""Dumps as other tools write them, of a tiny teacher: the same distributions in every layout."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from logitstore.checking.verify import verify_store
from logitstore.moving.dumps.importing import import_dump
from logitstore.moving.dumps.settings import ImportSettings
from logitstore.store import LogitStore
from logitstore.testing import tiny

Floats = npt.NDArray[np.float64]
NAME = "tiny/teacher"
TEXTS = tiny.corpus()[36:]
ENGLISH = tiny.corpus()[:8]


@dataclass
class Dumper:
    """A teacher that other tools have asked.

    Attributes:
        folder: Where model and tokenizer lie.
        k: Entries of a list.
        sure: Added to the logit of what comes next, at six tokens of seven: a teacher that knows
            the text, as real ones do, and the tiny one does not.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    k: int = 8
    sure: float = 0.0

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def logprobs(self, ids: Sequence[int]) -> Floats:
        """(T, V) row t predicts token t; row 0 is nothing's."""
        with torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0].double()
        known = [t for t in range(1, len(ids)) if t % 7]
        logits[[t - 1 for t in known], [ids[t] for t in known]] += self.sure
        found = logits.log_softmax(-1).numpy()
        return np.concatenate([np.full((1, found.shape[1]), np.nan), found[:-1]])

    def top(self, row: Floats) -> list[tuple[int, float]]:
        """The k most probable of a row of `logprobs`."""
        return [(int(i), float(row[i])) for i in np.argsort(-row, kind="stable")[: self.k]]

    def prepared(self, text: str, supervised_from: int = 1) -> dict[str, Any]:
        """As axolotl prepares it: list t describes token t + 1; the last is padding."""
        ids = self.ids(text)
        tops = [self.top(row) for row in self.logprobs(ids)[1:]]
        tops.append([(0, -np.inf)] * self.k)
        return {
            "input_ids": ids,
            "labels": [i if t >= supervised_from else -100 for t, i in enumerate(ids)],
            "attention_mask": [1] * len(ids),
            "target_token_ids": [[i for i, _ in top] for top in tops],
            "target_logprobs": [[p for _, p in top] for top in tops],
            "target_mask": [[int(p > -np.inf) for _, p in top] for top in tops],
        }

    def raw(self, text: str) -> dict[str, Any]:
        """As a generator writes it: list t describes token t."""
        ids = self.ids(text)
        lists = [
            [{"token": f"token_id:{i}", "logprob": p} for i, p in self.top(row)]
            for row in self.logprobs(ids)[1:]
        ]
        return {"input_ids": ids, "logprobs": [None, *lists]}

    def scored(self, text: str) -> dict[str, Any]:
        """vLLM's prompt_logprobs: the token itself first, however improbable, with its rank."""
        ids = self.ids(text)
        rows = self.logprobs(ids)
        lists = [
            {str(i): self._ranked(row, i) for i in dict.fromkeys([ids[t], *_ids(self.top(row))])}
            for t, row in enumerate(rows)
            if t
        ]
        choice = {"text": "!", "prompt_logprobs": [None, *lists], "prompt_token_ids": ids}
        return {"object": "text_completion", "model": NAME, "choices": [choice]}

    def sglang(self, text: str, start: int = 0) -> dict[str, Any]:
        """SGLang's /generate, asked for the prompt from token `start` on."""
        ids = self.ids(text)
        rows = self.logprobs(ids)
        said = [(None, ids[start]), *((float(rows[t][ids[t]]), ids[t]) for t in _after(ids, start))]
        tops = [None, *([[p, i, None] for i, p in self.top(rows[t])] for t in _after(ids, start))]
        meta = {
            "id": "0",
            "prompt_tokens": len(ids),
            "input_token_logprobs": [[p, i, None] for p, i in said],
            "input_top_logprobs": tops,
            "output_token_logprobs": [[-0.5, 7, None]],
            "output_top_logprobs": [[[-0.5, 7, None], [-1.5, 8, None]]],
        }
        whole = {} if start == 0 else {"input_ids": ids}
        return {"text": "?", "model": NAME, "meta_info": meta} | whole

    def trl(self, text: str, prompt: int = 1) -> dict[str, Any]:
        """What TRL's client makes of the prompt_logprobs of a sequence, and what was asked."""
        ids = self.ids(text)
        rows = self.logprobs(ids)[prompt:]
        tops = [[*self.top(row), (0, -np.inf)] for row in rows]  # padded
        own = [[float(row[i])] for row, i in zip(rows, ids[prompt:], strict=True)]
        return {
            "prompt_ids": ids[:prompt],
            "completion_ids": ids[prompt:],
            "logprobs": [[p for _, p in top] for top in tops],
            "logprob_token_ids": [[i for i, _ in top] for top in tops],
            "actual_logprobs": own,
        }

    def distillkit(self, text: str, packed: bool = True) -> dict[str, Any]:
        """As its sampler packs them: exact float32 differences, and ids of 9 bits."""
        ids = self.ids(text)
        tops = [self.top(row) for row in self.logprobs(ids)[1:]]
        values = np.array([[p for _, p in top] for top in tops], np.float32)
        chosen = [[i for i, _ in top] for top in tops]
        if not packed:
            return {"input_ids": ids, "token_ids": chosen, "top_values": values.tolist()}
        steps = np.diff(values, axis=1, prepend=np.float32(0))
        return {
            "input_ids": ids,
            "compressed_logprobs": [list(row.astype("<f4").tobytes()) for row in steps],
            "bytepacked_indices": [bits_of(row, 9) for row in chosen],
        }

    def _ranked(self, row: Floats, i: int) -> dict[str, Any]:
        rank = int((row > row[i]).sum()) + 1
        return {"logprob": float(row[i]), "rank": rank, "decoded_token": "?"}

    def chat(self, messages: list[dict[str, str]], answer: str) -> dict[str, Any]:
        """A chat completion whose answer the teacher "generated", beside its request."""
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        asked = list(self.tokenizer(prompt, add_special_tokens=False).input_ids)
        said = [*self.tokenizer(answer, add_special_tokens=False).input_ids]
        said.append(self.tokenizer.eos_token_id)
        rows = self.logprobs([*asked, *said])[len(asked) :]
        content = [
            self._named(i, row)
            | {"top_logprobs": [self._named(j, row) for j in _ids(self.top(row))]}
            for i, row in zip(said, rows, strict=True)
        ]
        message = {"role": "assistant", "content": answer}
        choice = {"message": message, "logprobs": {"content": content}, "finish_reason": "stop"}
        return {"messages": messages, "response": {"model": NAME, "choices": [choice]}}

    def _named(self, i: int, row: Floats) -> dict[str, Any]:
        return {"token": f"token_id:{i}", "bytes": None, "logprob": float(row[i])}


def bits_of(numbers: Sequence[int], bits: int) -> list[int]:
    """Write numbers of some bits each, the highest bit first, as bytes; the last is padded."""
    written = "".join(f"{number:0{bits}b}" for number in numbers)
    written += "0" * (-len(written) % 8)
    return [int(written[i : i + 8], 2) for i in range(0, len(written), 8)]


def _after(ids: Sequence[int], start: int) -> range:
    return range(start + 1, len(ids))


def _ids(top: Sequence[tuple[int, float]]) -> list[int]:
    return [i for i, _ in top]


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{{ eos_token }}{% else %}{{ m.content }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def dumper(folder: Path) -> Dumper:
    """A teacher of 400 tokens."""
    tokenizer = tiny.byte_bpe(400, bos=True)
    tokenizer.chat_template = TEMPLATE
    model = tiny.llama(400)
    tiny.save(folder, model, tokenizer)
    return Dumper(folder, model, tokenizer)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=3)
    return path


def settings(of: Dumper, **more: Any) -> ImportSettings:
    return ImportSettings(tokenizer=str(of.folder), **({"teacher": NAME} | more))


def imported(path: Path, of: Dumper, **more: Any) -> tuple[LogitStore, dict[str, Any]]:
    """Import a dump beside itself; whatever comes of it is whole."""
    store, found = import_dump(path, path.with_suffix(".store"), settings(of, **more))
    assert store is not None
    assert verify_store(store.path, deep=True).damaged == []
    return store, found
