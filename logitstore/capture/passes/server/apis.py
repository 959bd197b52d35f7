"""Ask vLLM's or SGLang's server for the probabilities of a prompt's tokens, and read its answer."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from logitstore.capture.passes.listed import Refused, Said
from logitstore.capture.passes.server.client import Client
from logitstore.capture.passes.server.options import Options
from logitstore.console.counts import counted
from logitstore.errors import InputError, MismatchError
from logitstore.writing.lists import sglang
from logitstore.writing.lists.keyed import keyed_lists
from logitstore.writing.lists.lists import int64s


class Api(Protocol):
    """A way to ask a server.

    Attributes:
        name: `vllm` or `sglang`.
        version: What the server says that it is.
    """

    name: str
    version: str

    def score(self, ids: Sequence[int], top_k: int) -> Said:
        """Ask for the k most probable tokens at each place of a sequence.

        Raises:
            Refused: The server refuses this sequence.
            InputError: It cannot be reached, or answers something else.
        """

    def tokenise(self, text: str) -> list[int] | None:
        """Tokenise a text, without special tokens; None where the server does not tell."""


class Vllm:
    """vLLM's OpenAI-compatible server, and others that have its `prompt_logprobs`."""

    name = "vllm"

    def __init__(self, client: Client, model: str, version: str) -> None:
        self._client, self._model, self.version = client, model, version

    def score(self, ids: Sequence[int], top_k: int) -> Said:
        """Ask for the k most probable tokens at each place of a sequence; see `Api`."""
        where = self._client.place
        answer = self._client.post(
            "/v1/completions",
            {
                "model": self._model,
                "prompt": list(ids),
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": top_k,
                "add_special_tokens": False,
                "return_token_ids": True,
            },
        )
        choice = _first_choice(answer, where)
        lists = choice.get("prompt_logprobs", answer.get("prompt_logprobs"))
        if not isinstance(lists, list):
            raise InputError(
                f"{where}: the server answers without prompt_logprobs, so it does not say what it "
                "thinks of a prompt. Use vLLM's or SGLang's server.",
                kind="engine",
            )
        _check_tokens(choice.get("prompt_token_ids"), ids, where)
        _check_count(len(lists), len(ids), where)
        found, ranks = keyed_lists(lists, where, int64s(ids))
        return Said(found, np.full(len(ids), np.nan), ranks)

    def tokenise(self, text: str) -> list[int] | None:
        """Tokenise a text, without special tokens; see `Api`."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return _tokens_of(self._client, body)


class Sglang:
    """SGLang's own server."""

    name = "sglang"

    def __init__(self, client: Client, version: str) -> None:
        self._client, self.version = client, version

    def score(self, ids: Sequence[int], top_k: int) -> Said:
        """Ask for the k most probable tokens at each place of a sequence; see `Api`."""
        where = self._client.place
        answer = self._client.post(
            "/generate",
            {
                "input_ids": list(ids),
                "sampling_params": {"max_new_tokens": 1, "temperature": 0},
                "return_logprob": True,
                "logprob_start_len": 0,
                "top_logprobs_num": top_k,
                "return_text_in_logprobs": False,
            },
        )
        meta = answer.get("meta_info") if isinstance(answer, Mapping) else None
        said = sglang.prompt_of(meta, where) if isinstance(meta, Mapping) else None
        if said is None:
            raise InputError(
                f"{where}: the server answers without input_top_logprobs, so it does not say what "
                "it thinks of a prompt. Use a newer version of SGLang.",
                kind="engine",
            )
        _check_count(len(said.lists), len(ids), where)
        _check_tokens(said.ids.tolist(), ids, where)
        return Said(said.lists, said.own, np.full(len(ids), np.nan))

    def tokenise(self, text: str) -> list[int] | None:
        """Tokenise a text, without special tokens; see `Api`."""
        return _tokens_of(self._client, {"prompt": text, "add_special_tokens": False})


def find_api(client: Client, options: Options, teacher: str) -> Api:
    """Find out which server it is, and that it has the teacher.

    Raises:
        MismatchError: It has another model.
        InputError: It cannot be reached, or is neither.
    """
    try:
        about = None if options.api == "vllm" else client.get("/get_model_info")
        if isinstance(about, Mapping) and "model_path" in about:
            _check_model(str(about["model_path"]), {str(about["model_path"])}, teacher, options)
            return Sglang(client, _version(client.get("/server_info")))
        models = client.get("/v1/models") if options.api != "sglang" else None
    except Refused as e:
        raise InputError(f"{client.place}: {e}. Check the address.", kind="engine") from None
    listed = models.get("data") if isinstance(models, Mapping) else None
    if not isinstance(listed, list) or not listed:
        raise InputError(
            f"{client.place}: is no server of a model: it has neither /v1/models nor "
            "/get_model_info. Give the address of vLLM's or SGLang's.",
            kind="engine",
        )
    served = _chosen([m for m in listed if isinstance(m, Mapping)], teacher, options)
    return Vllm(client, served, _version(client.get("/version")))


def _chosen(models: list[Any], teacher: str, options: Options) -> str:
    """Choose the model of a server that is the teacher."""
    names = [str(m.get("id")) for m in models]
    for model, name in zip(models, names, strict=True):
        if name == options.model or (not options.model and _is_same(model, teacher)):
            return name
    _check_model(", ".join(names), set(names), teacher, options)
    return options.model


def _is_same(model: Mapping[str, Any], teacher: str) -> bool:
    return any(_same_name(str(model.get(key)), teacher) for key in ("id", "root"))


def _same_name(served: str, teacher: str) -> bool:
    """Tell whether two names are of one model: equal, or folders of one name."""
    return (
        served == teacher or served.rstrip("/").split("/")[-1] == teacher.rstrip("/").split("/")[-1]
    )


def _check_model(shown: str, served: set[str], teacher: str, options: Options) -> None:
    if options.model in served or any(_same_name(name, teacher) for name in served):
        return
    raise MismatchError(
        f"the server has {shown}, and the teacher is {options.model or teacher}. Start a server of "
        "the teacher; or if it only has another name there, give that with --engine-args "
        "model=NAME."
    )


def _version(answer: Any) -> str:
    return str(answer.get("version", "unknown")) if isinstance(answer, Mapping) else "unknown"


def _first_choice(answer: Any, where: str) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        return choices[0]
    raise InputError(f"{where}: the server's answer has no choices. Check it.", kind="engine")


def _check_count(lists: int, tokens: int, where: str) -> None:
    if lists != tokens:
        raise InputError(
            f"{where}: {counted(lists, 'list')} for {counted(tokens, 'token')}: the server has cut "
            "the prompt, or "
            "added to it. Start it with a longer --max-model-len, or capture with a shorter "
            "--max-length.",
            kind="engine",
        )


def _check_tokens(found: Any, sent: Sequence[int], where: str) -> None:
    """Check that the tokens that were read are those that were sent, if the server tells."""
    if isinstance(found, list) and list(found) != list(sent):
        raise InputError(
            f"{where}: the server has read other tokens than it was sent. Use a server that takes "
            "token ids as they are.",
            kind="engine",
        )


def _tokens_of(client: Client, body: dict[str, Any]) -> list[int] | None:
    try:
        answer = client.post("/tokenize", body)
    except Refused:
        return None
    tokens = answer.get("tokens") if isinstance(answer, Mapping) else None
    return [int(t) for t in tokens] if isinstance(tokens, list) else None
