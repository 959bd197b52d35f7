"""Make the demo's models: a teacher, and students with another tokenizer, as ordinary folders.

The teacher reads byte-level BPE, as GPT-2 and Llama 3 do. The student's tokenizer is a Unigram
behind a Metaspace with byte fallback, as T5's and XLM-R's: another kind, so hardly a token of one
is a token of the other. Everything is seeded; the same sizes give the same folders.
"""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from logitstore.console.progress import progress
from logitstore.testing.unigram import unigram_pieces
from tools.demo.settings import Shape


def byte_bpe(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the teacher's tokenizer: byte-level BPE with one special token, the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _fast(tokenizer, eos_token="<|endoftext|>")


def unigram(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the student's tokenizer: Unigram, byte fallback, and `<s>` before every text."""
    special = ["<unk>", "<s>", "</s>"]
    # Runs of spaces stay together, so that indentation is a token and not one for each space.
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(r"▁+[^▁\s]*|[^▁\s]+|\s+"), "isolated"),
        ]
    )
    counts = Counter(word for text in texts for word, _ in words.pre_tokenize_str(text))
    # Bytes are used only where no piece fits, so their scores do not matter.
    idle = [*((token, 0.0) for token in special), *((f"<0x{b:02X}>", -100.0) for b in range(256))]
    learned = unigram_pieces(counts, vocabulary - len(idle))
    tokenizer = Tokenizer(models.Unigram([*idle, *learned], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return _fast(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Make a Llama with random weights; all students of a seed start from the same one."""
    torch.manual_seed(seed)
    heads = max(1, shape.width // 32)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.width * 8 // 3,
            num_hidden_layers=shape.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
            tie_word_embeddings=False,
        )
    )


def train_teacher(
    rows: list[str], tokenizer: PreTrainedTokenizerFast, shape: Shape, *, steps: int, threads: int
) -> LlamaForCausalLM:
    """Train a language model on `rows`: AdamW, several epochs, linear warm-up, cosine decay."""
    torch.set_num_threads(threads)
    model = new_model(shape, tokenizer, seed=0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / 30) * (0.05 + 0.95 * math.cos(0.5 * math.pi * step / steps))
        ),
    )
    batches = _batches(rows, tokenizer)
    with progress(steps, "teacher", "steps") as shown:
        for _ in range(steps):
            input_ids, attention_mask, labels = next(batches)
            loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            shown.update(1, loss=f"{loss.item():.3f}")
    return model


def _fast(tokenizer: Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)  # type: ignore[no-untyped-call]


def _batches(
    rows: list[str], tokenizer: PreTrainedTokenizerFast, rows_per_batch: int = 16
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (input_ids, attention_mask, labels) without end, right-padded; rows end with EOS."""
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(rows)["input_ids"]]
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        for start in range(0, len(order) - rows_per_batch + 1, rows_per_batch):
            batch = [torch.tensor(encoded[i]) for i in order[start : start + rows_per_batch]]
            labels = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
            yield labels.clamp(min=0), (labels >= 0).long(), labels


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # for milliseconds of writing
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
