"""A tiny model that has learnt its text: what it says of a place fits that place and no other."""

from functools import cache

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import Row
from logitstore.text.tokenizer import ByteTokenizer

_STEPS = 60


def rows(count: int = 24) -> list[Row]:
    """English sentences, a row each."""
    return [(Segment(text, supervised=True),) for text in tiny.corpus()[:count]]


@cache
def weights(vocab_size: int, texts: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    """Train a Llama on token sequences, all of them in each step."""
    model = tiny.llama(vocab_size, initializer_range=0.05).train()
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = labels[i, : len(text)] = torch.tensor(text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(_STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.8, f"the tiny model has not learnt its text: {loss.item():.2f}"
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def model_of(tokenizer: PreTrainedTokenizerBase, texts: list[Row]) -> LlamaForCausalLM:
    """A model for this tokenizer that knows these rows."""
    reader = ByteTokenizer(tokenizer)
    tokens = tuple(tuple(reader.encode(segments).token_ids.tolist()) for segments in texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learnt = weights(len(tokenizer), tokens)
    model = tiny.llama(len(tokenizer))
    model.load_state_dict(learnt)
    return model.eval()
