"""Answers that a model writes to prompts, scored against the references of the dataset.

    token_f1, exact_match   of SQuAD (arXiv:1606.05250): lower case, without punctuation, articles
                            and spare white space; F1 over words that both hold, each as often
    rouge1, rouge2, rougeL, rougeLsum   F of the `rouge-score` package, with stemming; of rougeLsum,
                            lines are sentences

Where a row has several references, its completion and those in its column `references`, an answer
counts as what it is at best: of each metric by itself the largest value, as SQuAD and ROUGE
(Lin, 2004, section 2.1) have it.

Text is written greedily: the most probable token, up to the model's end or a limit. A prompt is
what stands before the last supervised text of a row, through the model's own chat template for a
conversation; an encoder-decoder reads it with its encoder.

Shape legend: B = prompts of a batch, L = padded length.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from logitstore.console.counts import counted
from logitstore.console.left_out import LeftOut
from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.statuses import reason_of
from logitstore.models.context_length import context_length
from logitstore.models.listed_ends import ends_listed
from logitstore.records import Segment
from logitstore.rows.renderer import Renderer
from logitstore.text.token_budget import by_token_budget

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
#: Tokens of a prompt, for a model that names no limit.
_UNLIMITED = 2**31
_NO_PROMPT = "no_prompt"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Question(NamedTuple):
    """A prompt, and the answers that count as right.

    Attributes:
        token_ids: The prompt.
        reference: The answer in the dataset.
        prompt: The prompt as text.
        others: Other answers that are as good.
        row: Row of the dataset.
    """

    token_ids: list[int]
    reference: str
    prompt: str = ""
    others: tuple[str, ...] = ()
    row: int = -1

    @property
    def references(self) -> tuple[str, ...]:
        """All answers that count as right."""
        return (self.reference, *self.others)


def normalized(text: str) -> str:
    """Normalise a text as SQuAD does: lower case, no punctuation, articles or spare white space."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, reference: str) -> float:
    """Compare answer and reference once both are normalised: 1 where they are equal, else 0."""
    return float(normalized(answer) == normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """Compute the harmonic mean of precision and recall of the reference's words, in [0, 1]."""
    ours, theirs = normalized(answer).split(), normalized(reference).split()
    if not ours or not theirs:  # as in SQuAD 2.0: nothing is the right answer to nothing
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def rouge() -> Callable[[str, str], dict[str, float]]:
    """Make a function of answer and reference that gives F of each of :data:`ROUGE`.

    Raises:
        InputError: The package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(
            "--metrics rouge: the package rouge-score is not installed. Run `pip install "
            "'logitstore[evaluate]'`, or leave rouge out."
        ) from error
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)

    def score(answer: str, reference: str) -> dict[str, float]:
        found = scorer.score(reference, answer)
        return {name: float(found[name].fmeasure) for name in ROUGE}

    return score


def score_answers(
    answers: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]
) -> dict[str, float]:
    """Score answers, each by the reference that it does best against.

    Args:
        answers: One for each prompt.
        references: Of each prompt, at least one.
        metrics: Names out of `ANSWER_METRICS`; others are ignored.

    Returns:
        The mean over all answers of each metric, in [0, 1].
    """
    score = _scorer(metrics)
    each = [
        _best([score(answer, reference) for reference in several])
        for answer, several in zip(answers, references, strict=True)
    ]
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def _scorer(metrics: Sequence[str]) -> Callable[[str, str], dict[str, float]]:
    """Make a function of answer and reference that gives every metric."""
    words = {"token_f1": token_f1, "exact_match": exact_match}
    chosen = {name: function for name, function in words.items() if name in metrics}
    n_grams = rouge() if "rouge" in metrics else None

    def score(answer: str, reference: str) -> dict[str, float]:
        found = {name: function(answer, reference) for name, function in chosen.items()}
        return found | (n_grams(answer, reference) if n_grams else {})

    return score


def _best(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Take the largest value of each metric by itself."""
    return {name: max(score[name] for score in scores) for name in scores[0]}


def questions(render: Renderer) -> list[Question]:
    """Read the prompt and the references of every row that has both.

    Raises:
        InputError: No row has both.
    """
    found = []
    for i in range(len(render.rows)):
        question = question_of(render, render(i).segments)
        if question is not None:
            found.append(question._replace(others=tuple(render.rows.references(i)), row=i))
    if not found:
        raise InputError(
            f"{render.rows.name}: none of its {counted(len(render.rows), 'row')} has a prompt and "
            "a completion, so there is nothing to answer. Give rows with `prompt` and "
            "`completion`, or `messages`, or use --metrics bits_per_byte."
        )
    return found


def unasked(asked: Sequence[Question], rows: int) -> list[LeftOut]:
    """Say how many of so many rows are no question, which is the first, and why."""
    count = rows - len(asked)
    if not count:
        return []
    first = next((i for i, question in enumerate(asked) if question.row != i), len(asked))
    return [LeftOut(_NO_PROMPT, count, rows, first, *reason_of(_NO_PROMPT))]


def question_of(render: Renderer, segments: Sequence[Segment]) -> Question | None:
    """Split a row before its last supervised text into prompt and answer; None without either."""
    texts = [s.text for s in segments]
    if render.special is not None:  # what a template wrote behind the answer, a line break, is none
        texts = [text.strip() for text in texts]
    last = max((n for n, s in enumerate(segments) if s.supervised and texts[n]), default=None)
    if last is None:
        return None
    first = last
    while first and segments[first - 1].supervised:
        first -= 1
    before = [s._replace(supervised=False) for s in segments[:first]]
    conversation = render.template is not None
    tokens = render.tokenizer.encode(before, add_eos=False, add_prefix=not conversation)
    if not len(tokens.token_ids):
        return None
    reference = "".join(s.text for s in segments[first : last + 1])
    return Question(tokens.token_ids.tolist(), reference, "".join(s.text for s in before))


def write_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    *,
    pad_id: int,
    max_new_tokens: int,
    tokens_per_batch: int,
    ends: Sequence[int] = (),
) -> list[str]:
    """Let the model answer each prompt, greedily.

    Args:
        model: On its device.
        tokenizer: The model's.
        asked: The prompts; one that leaves no room for an answer loses its beginning.
        pad_id: Fills prompts, and what is written behind an end.
        max_new_tokens: Tokens of an answer at most.
        tokens_per_batch: Padded tokens of a batch, prompts and answers together.
        ends: Tokens that end an answer, besides those that the model lists and EOS: what its chat
            template ends a turn with.

    Raises:
        InputError: The model cannot generate, or reads fewer tokens than it is to write.
    """
    if not model.can_generate():
        raise InputError(
            f"{model.name_or_path}: {type(model).__name__} cannot generate text. Use --metrics "
            "bits_per_byte."
        )
    model.eval()
    room, closing = _room(model, max_new_tokens), _input_ends(model, tokenizer)
    stops = _ends(model, tokenizer, ends)
    config = _greedy(model, pad_id, max_new_tokens, stops)
    answers = [""] * len(asked)
    lengths = [min(len(question.token_ids), room) + max_new_tokens for question in asked]
    with progress(len(asked), "answer", "prompts") as shown:
        for batch in by_token_budget(lengths, tokens_per_batch):
            prompts = [asked[i].token_ids[-room:] + closing for i in batch]
            for i, ids in zip(batch, _write(model, prompts, config), strict=True):
                own = list(takewhile(lambda token: token not in stops, ids))
                answers[i] = str(tokenizer.decode(own, skip_special_tokens=True)).strip()
            shown.update(len(batch))
    return answers


@torch.no_grad()
def _write(model: Any, prompts: Sequence[list[int]], config: GenerationConfig) -> list[list[int]]:
    """Generate from a batch of prompts: the tokens of each answer, its end and padding."""
    ids, mask = _left_padded(prompts, config.pad_token_id)
    device = next(model.parameters()).device
    written = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
    )
    # Before the answer lies the prompt, or the one token that a decoder starts with.
    before = 1 if model.config.is_encoder_decoder else ids.shape[1]
    answers: list[list[int]] = written[:, before:].tolist()
    return answers


def _greedy(model: Any, pad_id: int, max_new_tokens: int, stops: Sequence[int]) -> GenerationConfig:
    """Ask for the most probable token; nothing else of the model's own settings counts."""
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=list(stops) or None,
        bos_token_id=model.generation_config.bos_token_id,
        decoder_start_token_id=model.generation_config.decoder_start_token_id,
    )


def _input_ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List what ends the input of an encoder; the prompt of a causal model has no end."""
    eos = tokenizer.eos_token_id
    return [int(eos)] if model.config.is_encoder_decoder and isinstance(eos, int) else []


def _room(model: Any, max_new_tokens: int) -> int:
    """Compute the tokens of a prompt that leave room for the answer.

    Raises:
        InputError: The model reads no more tokens than an answer may have.
    """
    readable = context_length(model.config)
    if readable is None:
        return _UNLIMITED
    if readable <= max_new_tokens:
        raise InputError(
            f"--max-new-tokens {max_new_tokens}: the model reads {counted(readable, 'token')}, "
            "prompt and answer together. Give fewer."
        )
    return readable - max_new_tokens


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase, others: Sequence[int]) -> tuple[int, ...]:
    """List the tokens that end an answer: the model's own, the tokenizer's EOS, and others."""
    eos = tokenizer.eos_token_id
    own = [eos] if isinstance(eos, int) else []
    return tuple(sorted({*own, *ends_listed(model.generation_config), *others}))


def _left_padded(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts to (B, L) ids and mask; on the left, as a model goes on from the last column."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
