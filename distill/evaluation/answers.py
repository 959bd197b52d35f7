"""What a model writes after a prompt, held against what the dataset has there.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.rows.renderer import Renderer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
#: Which metrics need written answers.
METRICS = ("token_f1", "exact_match", "rouge")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Question(NamedTuple):
    """A prompt, and what may follow it.

    Attributes:
        token_ids: The prompt.
        reference: What the dataset goes on with.
        prompt: The prompt as text.
        others: What would do as well.
    """

    token_ids: list[int]
    reference: str
    prompt: str = ""
    others: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        return (self.reference, *self.others)


def normalized(text: str) -> str:
    """SQuAD's: lower case, without punctuation, articles and spare white space."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, reference: str) -> float:
    """1 for an answer that is the reference once both are normalised, else 0."""
    return float(normalized(answer) == normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the reference's words, in [0, 1]."""
    ours, theirs = normalized(answer).split(), normalized(reference).split()
    if not ours or not theirs:  # as in SQuAD 2.0: nothing is the right answer to nothing
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def rouge() -> Callable[[str, str], dict[str, float]]:
    """A function of answer and reference that gives F of each of :data:`ROUGE`.

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
    """Means over all answers, each in [0, 1] and held against the best of its references."""
    score = _scorer(metrics)
    each = [
        _best([score(answer, reference) for reference in several])
        for answer, several in zip(answers, references, strict=True)
    ]
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def _scorer(metrics: Sequence[str]) -> Callable[[str, str], dict[str, float]]:
    """All figures of one answer and one reference."""
    words = {"token_f1": token_f1, "exact_match": exact_match}
    chosen = {name: function for name, function in words.items() if name in metrics}
    n_grams = rouge() if "rouge" in metrics else None

    def score(answer: str, reference: str) -> dict[str, float]:
        found = {name: function(answer, reference) for name, function in chosen.items()}
        return found | (n_grams(answer, reference) if n_grams else {})

    return score


def _best(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(score[name] for score in scores) for name in scores[0]}


def questions(render: Renderer) -> list[Question]:
    """The prompt of every row that has one and a reference; others have nothing to answer.

    Raises:
        InputError: No row has both.
    """
    found = []
    for i in range(len(render.rows)):
        question = question_of(render, render(i).segments)
        if question is not None:
            found.append(question._replace(others=tuple(render.rows.references(i))))
    if not found:
        raise InputError(
            f"{render.rows.name}: none of its {len(render.rows):,} rows has a prompt and a "
            "completion, so there is nothing to answer. Give rows with `prompt` and `completion`, "
            "or `messages`, or use --metrics bits_per_byte."
        )
    return found


def question_of(render: Renderer, segments: Sequence[Segment]) -> Question | None:
    """What stands before the last supervised text of a row, and that text; None without either."""
    last = max((n for n, s in enumerate(segments) if s.supervised and s.text), default=None)
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


@torch.no_grad()
def write_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    *,
    pad_id: int,
    max_new_tokens: int,
    tokens_per_batch: int,
) -> list[str]:
    """What the model writes after each prompt, greedily; prompts lose their head to make room.

    Raises:
        InputError: The model cannot generate, or reads fewer tokens than it is to write.
    """
    if not model.can_generate():
        raise InputError(
            f"{model.name_or_path}: {type(model).__name__} cannot generate text. Use --metrics "
            "bits_per_byte."
        )
    model.eval()
    room = _room(model, max_new_tokens)
    device = next(model.parameters()).device
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=_ends(model, tokenizer),
        bos_token_id=model.generation_config.bos_token_id,
        decoder_start_token_id=model.generation_config.decoder_start_token_id,
    )
    has_encoder = bool(model.config.is_encoder_decoder)
    eos = tokenizer.eos_token_id
    ends = [int(eos)] if has_encoder and isinstance(eos, int) else []  # of an encoder's input
    answers = [""] * len(asked)

    def behind(ids: torch.Tensor) -> int:
        """Columns before what is written: the prompt, or where a decoder starts."""
        return 1 if has_encoder else int(ids.shape[1])

    with progress(len(asked), "answer", "prompts") as shown:
        for batch in _batches(asked, room, max_new_tokens, tokens_per_batch):
            prompts = [asked[i].token_ids[-room:] + ends for i in batch]
            ids, mask = _left_padded(prompts, pad_id)
            written = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
            for i, row in zip(batch, written[:, behind(ids) :].tolist(), strict=True):
                answers[i] = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
            shown.update(len(batch))
    return answers


def _room(model: Any, max_new_tokens: int) -> int:
    """Tokens of a prompt that leave room for the answer."""
    readable = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if readable is None:
        return 2**31
    if readable <= max_new_tokens:
        raise InputError(
            f"--max-new-tokens {max_new_tokens}: the model reads {readable:,} tokens, prompt and "
            "answer together. Give fewer."
        )
    return int(readable) - max_new_tokens


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Every token that ends an answer: the model's own, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return sorted(ends) or None


def _batches(
    asked: Sequence[Question], room: int, max_new_tokens: int, tokens_per_batch: int
) -> Iterator[list[int]]:
    """Numbers of questions, longest first: neighbours are of like length."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].token_ids), reverse=True)
    start = 0
    while start < len(order):
        length = min(len(asked[order[start]].token_ids), room) + max_new_tokens
        size = max(1, tokens_per_batch // length)
        yield order[start : start + size]
        start += size


def _left_padded(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) ids and mask: a causal model goes on from the last column."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
