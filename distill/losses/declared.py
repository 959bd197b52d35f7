"""The declaration of a loss: what is written above the function that computes it.

    @loss(needs={"entries", "ids", "tail"})
    def total_variation(teacher, student, options):
        p = torch.cat([student.at_ids(), student.rest()[:, None]], 1).exp()
        q = torch.cat([teacher["entry_logmass"], teacher["rest_logmass"][:, None]], 1).exp()
        return (p - q).abs().sum(1)

The losses of this folder are declared so, and so is one of your own: there is no other way. What a
loss needs of a store decides what its function is given, unless it makes its arrays itself:

    always            index          (P,) the label of each pair
    groups            token_index, token_pair: every label of a group, for `student.added_up`
    sequence          likewise every label of it; the arrays of each are then named token_…
    entries           entry_logprobs (P, K), most probable first, and tail_logmass (P,)
    … and ids         where pairs begin together, instead: entry_ids (P, K), the student's tokens,
                      or groups of them, that the entries are sent to; entry_logmass (P, K) and
                      rest_logmass (P,); the student is asked at those ids
    … and draws       as stored: entry_ids, entry_logprobs, tail_logmass; draw_ids and draw_times
    token logprob     logprob (P,), the teacher's of all its tokens of the pair
    logit std         token_logprobs (L, k) at the columns of a sequence
    hidden            whole_codes (m, D) and whole_scale (m,), the teacher's last hidden states,
                      each predicting whole_ids (m,), behind whole_read (m,), of whole_sequence
    embedding         likewise embedding_codes … of whole_embedding_ids, the distinct tokens
    lm head           for `module` alone: `widths.lm_head`, the teacher's output embedding
    temperature       all of them at `--temperature`

Padding of ids is -1, of log-probabilities -inf, of counts 0.

Shape legend: P = pairs, K = entries of a pair, L = labels that belong to pairs, k = columns.
"""

from collections.abc import Callable, Collection
from typing import Any, get_args

from torch import Tensor, nn

from distill.losses.aligned import Aligned, Arrays
from distill.losses.given import Needs, Width, arrays_for, ask_for
from distill.losses.loss import (
    Ask,
    Kind,
    Loss,
    Option,
    Options,
    Pairing,
    Paper,
    Student,
    Teacher,
    Values,
    Widths,
)
from distill.losses.maps import BETWEEN, MAP, by_map
from logitstore.errors import InputError

#: What a loss may need; :mod:`distill.losses.requirements` says what each word means.
NEEDS = (
    "entries",
    "ids",
    "tail",
    "token logprob",
    "byte spans",
    "same tokenizer",
    "temperature",
    "logit std",
    "draws",
    "hidden",
    "embedding",
    "lm head",
)


def loss(
    function: Callable[..., Any] | None = None,
    /,
    *,
    needs: Collection[str] | Callable[[Options], Needs] = (),
    pairs: Kind | Pairing | Callable[[Options], Pairing] = "starts",
    top_k: Width = 0,
    columns: int = 0,
    logits: bool = False,
    arrays: Callable[[Aligned, Options], Arrays] | None = None,
    ask: Callable[[Teacher, Options], Ask] | None = None,
    cell: Callable[[Teacher, Student, Options], Tensor | None] = lambda *_: None,
    weight: float = 1.0,
    options: tuple[Option, ...] = (),
    has_bound: bool = False,
    module: Callable[[Widths, Options], nn.Module] | None = None,
    second_text: bool = False,
    cited: Paper | None = None,
    order: int = 100,
) -> Callable[[Values], Loss]:
    """Declare a loss: a function of the teacher's arrays, the student's answer, and the options.

    The function returns (P,) the value of each pair, with the student's gradient; with `has_bound`
    also (P,) how far each can be off. It does not reduce over pairs: batches are cut, packed and
    spread over processes, and all values are divided once, by the count of the whole batch.

    Args:
        function: Not given: what stands above a function is `@distill.loss(…)`, with brackets.
        needs: What a store must hold, in the words of `NEEDS`; or a function of the options.
        pairs: Which records are compared with which labels: `starts` where both models have read
            the same bytes, `strict` where they also end together, `groups` of tokens of equal
            bytes, `strings` by warping over what tokens write, `positions` by number, `sequence`
            for one value of all of it, `labels` for each label with all of the teacher's records.
        top_k: How many of the student's largest log-probabilities `student.top` has; `entries`: as
            many as the teacher's records have.
        columns: How many columns of each sequence `student.columns` has.
        logits: Whether `student.logits` is wanted, (P, V), of a chunk of the batch at a time.
        arrays: Makes the arrays of a sequence, instead of those that `needs` gives.
        ask: Makes the request to the student, instead of what the arrays and these say.
        cell: As :class:`distill.losses.loss.Loss` has it.
        weight: The weight beside cross-entropy, if `--loss` gives none.
        options: Flags that it reads.
        has_bound: Whether the function also returns bounds.
        module: Makes weights of its own, as :class:`distill.losses.loss.Loss` has it.
        second_text: Whether they compare two texts of a row, where there are two.
        cited: The paper to cite.
        order: Its place in lists.

    Raises:
        InputError: What is declared is not known; names it.
    """
    if function is not None:
        name = getattr(function, "__qualname__", repr(function))
        raise InputError(
            f"@distill.loss stands above {name} without brackets. Write @distill.loss(needs=…), or "
            "@distill.loss() if it needs nothing of a store.",
            kind="own-loss",
        )
    words = frozenset() if callable(needs) else frozenset(needs)
    pairing = _pairing(pairs, words)
    if pairing is by_map:
        options = (*options, *(each for each in (MAP, BETWEEN) if each not in options))
    kind: Kind = pairing.kind if isinstance(pairing, Pairing) else "starts"
    has_map = not isinstance(pairing, Pairing) or pairing.map is not None

    def declared(values: Values) -> Loss:
        where = f"{values.__module__}:{values.__qualname__}"
        _check(where, words, pairing)
        return Loss(
            needs=needs if callable(needs) else words,
            pairing=pairing,
            arrays=arrays or arrays_for(words, kind, columns, has_map=has_map),
            ask=ask or ask_for(words, top_k, columns, has_logits=logits),
            values=values,
            cell=cell,
            weight=weight,
            options=options,
            has_bound=has_bound,
            module=module,
            second_text=second_text,
            cited=cited,
            order=order,
            home=where,
        )

    return declared


def _pairing(
    pairs: Kind | Pairing | Callable[[Options], Pairing], needs: Needs
) -> Pairing | Callable[[Options], Pairing]:
    """Choose the map too, for a kind of pairs: within one tokenizer, or as the run asks."""
    if not isinstance(pairs, str):
        return pairs
    if "ids" not in needs or pairs not in ("starts", "strict"):
        return Pairing(pairs)
    if "same tokenizer" in needs:
        return Pairing(pairs, "canonical")
    return by_map if pairs == "starts" else Pairing(pairs, "strict")


def _check(where: str, needs: Needs, pairing: Pairing | Callable[[Options], Pairing]) -> None:
    for need in sorted(needs - set(NEEDS)):
        raise InputError(
            f"{where}: declares that it needs {need!r} of a store, expected of: "
            f"{', '.join(NEEDS)}. Name one of these.",
            kind="own-loss",
        )
    kinds = get_args(Kind)
    if isinstance(pairing, Pairing) and pairing.kind not in kinds:
        raise InputError(
            f"{where}: declares pairs {pairing.kind!r}, expected {', '.join(kinds)}. Name one of "
            "these.",
            kind="own-loss",
        )
