"""Read responses of vLLM, or of a server with OpenAI's completions or chat API.

A line of a file is a response, or an object that has one under `response` (OpenAI's batches: under
`response.body`) beside the request's `messages` or `labels`. Each of its choices is a row:

    scored      `prompt_logprobs` (vLLM) beside `prompt_token_ids`: the lists belong to the tokens
                of the prompt, and generated tokens are left out. In a completion with `echo`, lists
                of all tokens are kept.
    generated   `logprobs` of the generated tokens. The prompt before them is given as
                `prompt_token_ids`, or as `messages` that the teacher's chat template renders.

`return_token_ids: true` makes vLLM add `prompt_token_ids` and `token_ids`. SGLang's own responses
have both in `meta_info` (writing/lists/sglang.py).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import F64, I64
from logitstore.moving.dumps.columns import spread
from logitstore.moving.dumps.row import Dumped, integers, messages_of, wanted
from logitstore.moving.dumps.token_names import TokenNames
from logitstore.text.conversation import Message
from logitstore.writing.lists import sglang
from logitstore.writing.lists.keyed import keyed_lists, number_of
from logitstore.writing.lists.lists import Lists, int64s, reject_lengths

_IDS = ("prompt_token_ids", "input_ids")
_OF_A_MESSAGE = ("role", "content", "reasoning_content", "tool_calls", "name")


class _Generated(NamedTuple):
    """The tokens that a server generated, and their log-probabilities.

    Attributes:
        lists: One list for each token.
        own: Log-probabilities of the tokens themselves; NaN where they are not known.
        ids: The tokens.
        ranks: Ranks of the tokens in the vocabulary; NaN where they are not known.
        is_echo: Whether the tokens begin with those of the prompt.
    """

    lists: Lists
    own: F64
    ids: I64
    ranks: F64
    is_echo: bool = False


def looks_like(row: Mapping[str, Any]) -> bool:
    """Return whether a line of a file is a response, or contains one."""
    inner = row.get("response", row)
    if inner is None:  # of a batch: the request failed
        return row.get("error") is not None
    known = ("choices", "outputs", "prompt_logprobs", "body", "meta_info")
    return isinstance(inner, Mapping) and any(name in inner for name in known)


def choices_of(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return a line's choices, each merged with the fields of its response and request.

    Raises:
        InputError: The line has no response, or the request failed.
    """
    inner = row.get("response", row)
    response = inner.get("body", inner) if isinstance(inner, Mapping) else None
    if not isinstance(response, Mapping):
        raise InputError(f"{where}: has no response ({row.get('error')}). Drop the row.")
    request = row.get("request", row)
    request = request.get("body", request) if isinstance(request, Mapping) else {}
    around = {**request, **row, **response}
    choices = response.get("choices", response.get("outputs", [{}]))
    if not isinstance(choices, list) or not all(isinstance(c, Mapping) for c in choices):
        raise InputError(f"{where}: its choices are not a list of objects. Drop the row.")
    if not choices:
        raise InputError(
            f"{where}: the response has no choices ({response.get('error')}). Drop it."
        )
    return [{**around, **choice} for choice in choices]


def read_choice(choice: Mapping[str, Any], names: TokenNames, where: str) -> Dumped:
    """Read one choice of a response.

    Raises:
        InputError: It does not name its tokens, or its lists do not belong to them.
    """
    prompt = _prompt_ids(choice, where)
    if choice.get("prompt_logprobs") is not None:
        return _scored(choice, prompt, where)
    meta = choice.get("meta_info")
    if isinstance(meta, Mapping) and (scored := sglang.prompt_of(meta, where)) is not None:
        return _scored_by_sglang(choice, meta, scored, prompt, where)
    answer = _generated(choice, names, where)
    if answer.is_echo:
        is_wanted = wanted(choice, answer.ids, where)
        return Dumped(answer.lists, answer.ids, is_wanted, answer.own, answer.ranks)
    messages = _messages(choice, where)
    if messages is not None:
        own, ranks = answer.own, answer.ranks
        return Dumped(answer.lists, None, None, own, ranks, messages, answer_ids=answer.ids)
    if prompt is None:
        raise InputError(
            f"{where}: does not say what the answer is an answer to. Add the request's messages to "
            "the line, or prompt_token_ids (vLLM: `return_token_ids: true`)."
        )
    return _behind(prompt, answer)


def _scored(choice: Mapping[str, Any], prompt: I64 | None, where: str) -> Dumped:
    values = choice["prompt_logprobs"]
    if prompt is None:
        raise InputError(
            f"{where}: prompt_logprobs does not say which tokens the prompt has. Add "
            "prompt_token_ids (vLLM: `return_token_ids: true`), or input_ids."
        )
    if not isinstance(values, list) or len(values) != len(prompt):
        count = len(values) if isinstance(values, list) else 0
        reject_lengths(where, "lists of prompt_logprobs", count, len(prompt))
    lists, ranks = keyed_lists(values, where, prompt)
    generated = _list(choice, "token_ids", where)
    messages = None
    if choice.get("messages") is not None:
        messages = messages_of(choice["messages"], where)
    return Dumped(
        lists,
        prompt,
        wanted(choice, prompt, where),
        ranks=ranks,
        messages=messages,
        left_out=len(generated),
    )


def _scored_by_sglang(
    choice: Mapping[str, Any],
    meta: Mapping[str, Any],
    scored: sglang.Listed,
    prompt: I64 | None,
    where: str,
) -> Dumped:
    """Join the tokens that SGLang has lists of with those of the prompt before them."""
    ids = scored.ids if prompt is None else prompt
    first = len(ids) - len(scored.ids)
    if first < 0 or not np.array_equal(ids[first:], scored.ids):
        raise InputError(
            f"{where}: the tokens of input_token_logprobs are not the last of the "
            f"{len(ids):,} input_ids beside them. Drop the row, or leave the wrong ones out."
        )
    places = np.arange(first, len(ids))
    own = np.full(len(ids), np.nan)
    own[places] = scored.own
    messages = choice.get("messages")
    return Dumped(
        spread(scored.lists, places, len(ids)),
        ids,
        wanted(choice, ids, where),
        own,
        messages=None if messages is None else messages_of(messages, where),
        left_out=len(_list(meta, "output_token_logprobs", where)),
    )


def _behind(prompt: I64, answer: _Generated) -> Dumped:
    """Join the prompt, as context, and the generated tokens."""
    whole = np.concatenate([prompt, answer.ids])
    places = np.arange(len(prompt), len(whole))
    unknown = np.full(len(prompt), np.nan)
    return Dumped(
        spread(answer.lists, places, len(whole)),
        whole,
        np.arange(len(whole)) >= len(prompt),
        np.concatenate([unknown, answer.own]),
        np.concatenate([unknown, answer.ranks]),
    )


def _generated(choice: Mapping[str, Any], names: TokenNames, where: str) -> _Generated:
    meta = choice.get("meta_info")
    if isinstance(meta, Mapping) and (said := sglang.output_of(meta, where)) is not None:
        return _Generated(said.lists, said.own, said.ids, np.full(len(said.ids), np.nan))
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, list):  # vLLM's own objects, written out
        ids = _token_ids(choice, len(logprobs), where)
        lists, ranks = keyed_lists(logprobs, where, ids)
        return _Generated(lists, np.full(len(ids), np.nan), ids, ranks)
    if not isinstance(logprobs, Mapping):
        raise InputError(
            f"{where}: the response has no logprobs. Ask for them: `logprobs: true, top_logprobs: "
            "20` (chat) or `logprobs: 20` (completions); of SGLang `return_logprob: true, "
            "top_logprobs_num: 20, logprob_start_len: 0`."
        )
    if logprobs.get("tokens") is not None:
        return _completion(choice, logprobs, names, where)
    return _chat(choice, logprobs, names, where)


def _chat(
    choice: Mapping[str, Any], logprobs: Mapping[str, Any], names: TokenNames, where: str
) -> _Generated:
    """Read the chat API's log-probabilities.

    {"content": [{"token", "bytes", "logprob", "top_logprobs": [{"token", "bytes", …}]}]}
    """
    content = _list(logprobs, "content", where)
    counts, ids, values = [], [], []
    for t, item in enumerate(content):
        if not isinstance(item, Mapping):
            raise InputError(f"{where}, token {t:,}: an entry has no token. Drop the row.")
        top = _list(item, "top_logprobs", f"{where}, token {t:,}")
        counts.append(len(top))
        for entry in top:
            ids.append(_named(entry, names, f"{where}, token {t:,}"))
            values.append(_number(entry.get("logprob"), f"{where}, token {t:,}"))
    lists = Lists(int64s(counts), int64s(ids), np.array(values, np.float64))
    own = [_number(item.get("logprob"), f"{where}, token {t:,}") for t, item in enumerate(content)]
    if choice.get("token_ids") is not None:
        tokens = _token_ids(choice, len(content), where)
    else:
        named = (_named(item, names, f"{where}, token {t:,}") for t, item in enumerate(content))
        tokens = int64s(list(named))
    return _Generated(lists, np.array(own, np.float64), tokens, np.full(len(tokens), np.nan))


def _completion(
    choice: Mapping[str, Any], logprobs: Mapping[str, Any], names: TokenNames, where: str
) -> _Generated:
    """Read the completions API's log-probabilities.

    {"tokens": […], "token_logprobs": […], "top_logprobs": [{token: log-probability}, …]}
    """
    tokens, top, own = (
        _list(logprobs, name, where) for name in ("tokens", "top_logprobs", "token_logprobs")
    )
    for name, values_T in (("top_logprobs", top), ("token_logprobs", own)):
        if len(values_T) != len(tokens):
            reject_lengths(where, name, len(values_T), len(tokens))
    counts, ids, values = [], [], []
    for t, entries in enumerate(top):
        if entries is not None and not isinstance(entries, Mapping):
            raise InputError(f"{where}, token {t:,}: its top_logprobs are no object. Drop the row.")
        counts.append(len(entries or ()))
        for name, value in (entries or {}).items():
            ids.append(names.id_of(str(name), f"{where}, token {t:,}"))
            values.append(_number(value, f"{where}, token {t:,}"))
    is_echo = bool(len(own)) and own[0] is None
    if choice.get("token_ids") is not None and not is_echo:
        known = _token_ids(choice, len(tokens), where)
    else:
        named = (names.id_of(str(n), f"{where}, token {t:,}") for t, n in enumerate(tokens))
        known = int64s(list(named))
    return _Generated(
        Lists(int64s(counts), int64s(ids), np.array(values, np.float64)),
        np.array(
            [
                np.nan if value is None else _number(value, f"{where}, token {t:,}")
                for t, value in enumerate(own)
            ],
            np.float64,
        ),
        known,
        np.full(len(known), np.nan),
        is_echo,
    )


def _named(item: Any, names: TokenNames, where: str) -> int:
    if not isinstance(item, Mapping) or not isinstance(item.get("token"), str):
        raise InputError(f"{where}: an entry has no token. Drop the row.")
    data = item.get("bytes")
    if data is None:
        return names.id_of(item["token"], where)
    if not isinstance(data, list) or not all(type(b) is int and 0 <= b < 256 for b in data):
        raise InputError(f"{where}: the bytes of {item['token']!r} are no bytes. Drop the row.")
    return names.id_of(item["token"], where, data)


def _number(value: Any, where: str) -> float:
    number = number_of(value)
    if number is None:
        raise InputError(f"{where}: an entry has no log-probability. Drop the row.")
    return number


def _list(values: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """Return a list of an object; where there is none, an empty one."""
    found = values.get(name)
    if found is not None and not isinstance(found, list):
        raise InputError(f"{where}: {name} is no list. Drop the row.")
    return found or []


def _token_ids(choice: Mapping[str, Any], count: int, where: str) -> I64:
    if choice.get("token_ids") is None:
        raise InputError(f"{where}: has logprobs but no token_ids. Add them to the line.")
    ids = integers(choice["token_ids"], f"{where}: token_ids")
    if len(ids) != count:
        reject_lengths(where, "logprobs", count, len(ids))
    return ids


def _prompt_ids(choice: Mapping[str, Any], where: str) -> I64 | None:
    for name in _IDS:
        if choice.get(name) is not None:
            return integers(choice[name], f"{where}: {name}")
    return None


def _messages(choice: Mapping[str, Any], where: str) -> list[Message] | None:
    """Return the request's messages and then the answer; None if the line has no messages."""
    if choice.get("messages") is None:
        return None
    answer = choice.get("message")
    if not isinstance(answer, Mapping):
        answer = {"role": "assistant", "content": choice.get("text")}
    kept = {name: answer[name] for name in _OF_A_MESSAGE if answer.get(name)}
    asked = _list(choice, "messages", where)
    answer = {"role": "assistant", "content": "", **kept}
    return [*messages_of(asked, where), *messages_of([answer], where)]
