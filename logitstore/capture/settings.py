"""The settings of a capture: each described once, and checked before anything is loaded.

The options of `logitstore capture` and `estimate`, the signature and docstring of
`logitstore.capture`, and what a store records of its making are derived from the fields of
`CaptureSettings` (see `logitstore.console.settings`). Importing this imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from logitstore.capture.checked import ENGINES, TRANSFORMERS, Checked
from logitstore.capture.sampling import DEFAULT_MAX_NEW_TOKENS
from logitstore.console.left_out import DEFAULT_MAX_LOST
from logitstore.console.settings import not_recorded, setting
from logitstore.errors import InputError
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH
from logitstore.writing.plan import DEFAULT_IN_WORDS

# Headings of `logitstore capture --help`.
_TEACHER = "Teacher"
_DATA = "Data"
_KEPT = "What is kept"
_WRITTEN = "Completions that the teacher writes"
_RUNNING = "Running"
#: In the order of the help.
PANELS = (_TEACHER, _DATA, _KEPT, _WRITTEN, _RUNNING)


@dataclass(frozen=True, kw_only=True)
class CaptureSettings(Checked):
    """The arguments of `logitstore.capture` besides teacher, dataset and folder.

    A setting with `is_recorded=False` belongs to this machine and this run, not to the store. One
    of them is whether to run a model's code: the user must decide that every time, not a file.
    """

    top_k: int = setting(
        64,
        _KEPT,
        "Entries to keep per record at most: the teacher's most probable tokens. 0 keeps none, "
        "for `draws` alone.",
        metavar="K",
    )
    max_tail: float | None = setting(
        None,
        _KEPT,
        "Keep only as many entries as leave at most this probability to the tail (never more "
        "than `top_k`).",
        metavar="P",
        unset="keep all",
    )
    ids: bool = setting(
        True,
        _KEPT,
        "Keep the token ids of the entries. Without them the store is enough for uld, at a fifth "
        "of the size.",
        switch_help="Keep no token ids of the entries: enough for uld, at a fifth of the size.",
    )
    temperatures: Sequence[float] = setting(
        (),
        _KEPT,
        "Temperature that losses may use besides 1: the log-normaliser at it is kept, too.",
        flag="--temperature",
        metavar="T",
    )
    logit_std: bool = setting(
        False,
        _KEPT,
        "Keep the standard deviation of the logits and the log-normaliser at it, which the loss "
        "multilevel_ot reads.",
        is_rare=True,
    )
    hidden: Sequence[str] = setting(
        (),
        _KEPT,
        "Also keep the teacher's hidden states, which the losses dskd and cot2align read: `last`, "
        "what its output head read where it predicted a token (behind the final norm); with "
        "`embedding` also the rows of its input embedding, which are weights, under the teacher's "
        "licence. They lie in files of their own, of which a student that does not need them reads "
        "nothing, and are far larger than all else: `logitstore estimate` says how large.",
        metavar="last[,embedding]",
        unset="none",
    )
    hidden_dtype: str | None = setting(
        None,
        _KEPT,
        "How numbers of hidden states are kept: fp8 (e4m3 and a scale for each token, D + 4 bytes "
        "for D numbers) or bf16 (2 D bytes).",
        metavar="fp8|bf16",
        unset="fp8",
        is_rare=True,
    )
    hidden_context: bool = setting(
        False,
        _KEPT,
        "Keep the hidden states of all tokens that the teacher reads, also of those without a "
        "record.",
        is_rare=True,
    )
    with_lm_head: bool = setting(
        False,
        _KEPT,
        "Keep the teacher's output embedding, too, once a store, with which the loss dskd also "
        "compares in the teacher's space: V x D weights, gigabytes of a large teacher, under the "
        "teacher's licence. `logitstore estimate` says how large.",
    )
    draws: int = setting(
        0,
        _KEPT,
        "Tokens to draw at random per record, with replacement, from its tail, which the loss "
        "sampled_kl reads. They are the same in any batch and on any rank.",
        metavar="N",
    )
    boundaries_of: str | None = setting(
        None,
        _KEPT,
        "Also keep the teacher's distribution at every boundary of one student's tokens: the "
        "folder or hub id of a student, of which the tokenizer alone is read. `distill train "
        "--boundaries` learns from it. A store that is finished gets it added.",
        metavar="STUDENT",
        unset="the teacher's own tokens alone",
        is_recorded=False,
        is_rare=True,
    )
    seed: int | None = setting(
        None,
        _KEPT,
        "Seed of the random draws, of completions and of experts that are sampled.",
        metavar="N",
        unset="0",
    )
    generate: bool = setting(
        False,
        _WRITTEN,
        "The rows hold prompts only (a column prompt, or messages that end with the user's turn): "
        "the teacher writes each completion, which is then captured.",
    )
    max_new_tokens: int | None = setting(
        None,
        _WRITTEN,
        "Tokens of a completion at most.",
        metavar="N",
        unset=str(DEFAULT_MAX_NEW_TOKENS),
    )
    generate_temperature: float | None = setting(
        None,
        _WRITTEN,
        "Sample completions at this temperature; 0 always takes the most probable token.",
        metavar="T",
        unset="0",
        is_rare=True,
    )
    generate_top_k: int | None = setting(
        None,
        _WRITTEN,
        "Sample from the K most probable tokens only.",
        metavar="K",
        unset="all tokens",
        is_rare=True,
    )
    top_p: float | None = setting(
        None,
        _WRITTEN,
        "Nucleus sampling: sample from the fewest most probable tokens whose probabilities add "
        "up to P or more.",
        metavar="P",
        unset="1",
        is_rare=True,
    )
    stop: Sequence[str] = setting(
        (),
        _WRITTEN,
        "Text that ends a completion, which stops before it.",
        metavar="TEXT",
        is_rare=True,
    )
    split: str | None = setting(
        None,
        _DATA,
        "Split of the dataset, such as train or train[:1000]. Needed if there are several.",
        metavar="NAME",
    )
    config_name: str | None = setting(
        None,
        _DATA,
        "Configuration of a hub dataset that has several.",
        metavar="NAME",
        is_rare=True,
    )
    text_column: str | None = setting(
        None, _DATA, "Column to read as plain text, instead of text.", metavar="NAME"
    )
    parse_special: bool = setting(
        False,
        _DATA,
        "Read the names of the teacher's special tokens in a text as these tokens: for text that a "
        "chat template wrote. They are context, a student has its own in place of BOS and EOS, and "
        "no second BOS or EOS is added.",
        is_rare=True,
    )
    supervise: str | None = setting(
        None,
        _DATA,
        "Turns of a conversation to keep records of: all of the assistant's, or the last.",
        metavar="all|last",
        unset="all",
        is_rare=True,
    )
    supervised_text: str | None = setting(
        None,
        _DATA,
        "What of these turns: their content (what the message says, thought and calls), or the "
        "whole turn, also what the chat template alone writes there (an empty think block, a "
        "channel), which only students with the teacher's template learn.",
        metavar="content|turn",
        unset="content",
        is_rare=True,
    )
    chat_template_path: str | None = setting(
        None,
        _DATA,
        "Chat template to use: a Jinja file, or the folder of a tokenizer.",
        metavar="PATH",
        unset="the teacher's own",
    )
    chat_template_kwargs: str | Mapping[str, Any] | None = setting(
        None,
        _DATA,
        "Variables of the chat template for every row, as JSON; in Python also a dict.",
        metavar="JSON",
        is_rare=True,
    )
    max_length: int | None = setting(
        None,
        _DATA,
        "Tokens of a sequence at most.",
        metavar="N",
        unset="as many as the teacher reads",
    )
    overflow: str = setting(
        "split",
        _DATA,
        "What to do with a longer row: split it into windows, truncate it, or skip it.",
        metavar="split|truncate|skip",
    )
    stride: int | None = setting(
        None,
        _DATA,
        "Tokens of context that a window repeats before its new ones.",
        metavar="N",
        unset="an eighth of the maximum length",
        is_rare=True,
    )
    engine: str = setting(
        TRANSFORMERS,
        _TEACHER,
        "What runs the teacher: transformers, in this process; vllm, for teachers of many devices; "
        "or a server, which `server` names.",
        metavar="|".join(ENGINES),
        is_recorded=False,  # the spec names another than the first, whose settings are not kept
    )
    server: str | None = setting(
        None,
        _TEACHER,
        "Server that has the teacher: vLLM's, another with its prompt_logprobs, or SGLang's. Of "
        "TEACHER only configuration and tokenizer are read here. A key for the server is taken "
        "from the environment (LOGITSTORE_SERVER_KEY).",
        metavar="URL",
        is_recorded=False,
    )
    engine_args: Sequence[str] = setting(
        (),
        _TEACHER,
        "Option of the engine. Of vllm: an argument of its class LLM, such as "
        "tensor_parallel_size=8, and way=public (entries and tails alone) or way=worker (all that "
        "a store can keep), which is taken if `temperatures`, `logit_std` or `draws` ask for it. "
        "Of a server: concurrency=16, requests_per_s=0 (any number), timeout_s=600, model=NAME "
        "(its name for the teacher), api=vllm or sglang.",
        metavar="KEY=VALUE",
        is_recorded=False,
    )
    revision: str | None = setting(
        None,
        _TEACHER,
        "Branch, tag or commit of a hub model.",
        metavar="NAME",
        unset="main",
        is_rare=True,
    )
    dtype: str = setting(
        "auto",
        _TEACHER,
        "Number format of the weights: auto (as the model was saved), float32, bfloat16 or "
        "float16.",
        metavar="NAME",
    )
    quantization: str | Mapping[str, Any] | None = setting(
        None,
        _TEACHER,
        "Quantise the teacher: bitsandbytes-4bit (nf4), bitsandbytes-8bit, or a "
        "quantization_config of transformers as JSON (in Python also a dict). Recorded, because "
        "it changes the distribution. A checkpoint that was saved quantised needs no setting.",
        metavar="NAME",
    )
    gguf_file: str | None = setting(
        None,
        _TEACHER,
        "File in TEACHER with its weights, of llama.cpp's format GGUF, mostly quantised. A "
        "tokenizer beside it is taken, else the one in the file. Needs the extra gguf.",
        metavar="FILE",
        is_rare=True,
    )
    experts: str | None = setting(
        None,
        _TEACHER,
        "Of a mixture of experts, how many of its N experts read every token: all, or N-1 (all but "
        "the one that its router likes least). Recorded, because it changes the distribution.",
        metavar="all|N-1",
        unset="as many as its routers choose",
        is_rare=True,
    )
    expert_sample: float | None = setting(
        None,
        _TEACHER,
        "With `experts` N-1, the share of tokens that draw these experts by the router's "
        "probabilities. A store for each `seed` is a view of the teacher; a student learns from "
        "the mean of several.",
        metavar="SHARE",
        unset="0",
        is_rare=True,
    )
    attn_implementation: str | None = setting(
        None,
        _TEACHER,
        "Attention implementation, as transformers names it: sdpa, eager, flash_attention_2, …",
        metavar="NAME",
        unset="what transformers chooses",
        is_recorded=False,
        is_rare=True,
    )
    device: str | None = setting(
        None,
        _TEACHER,
        "Device to run on, such as cpu or cuda:1.",
        metavar="NAME",
        unset="the accelerator, if there is one; of several, one a rank",
        is_recorded=False,
    )
    device_map: str | Mapping[str, Any] | None = setting(
        None,
        _TEACHER,
        "Spread the teacher over several devices: auto, balanced, balanced_low_0, sequential, or "
        "modules and their devices as JSON (in Python also a dict).",
        metavar="NAME",
        is_recorded=False,
    )
    tokens_per_batch: int | str | None = setting(
        None,
        _RUNNING,
        "Padded tokens of a forward pass, or auto: as many as fit. The first run of a store "
        "records the number and later runs keep it, so that a resumed store has the same bytes. "
        "Records differ from one number to another by rounding alone.",
        metavar="N|auto",
        unset=f"{DEFAULT_TOKENS_PER_BATCH}, or as recorded",
        is_recorded=False,
    )
    on_nan: str = setting(
        "stop",
        _RUNNING,
        "What to do at a row whose logits are not finite: stop, or skip it (its line has the "
        "status not_finite and no records).",
        metavar="stop|skip",
        is_rare=True,
    )
    max_lost: float = setting(
        DEFAULT_MAX_LOST,
        _RUNNING,
        "Largest share of the rows that may have no records. Where more of the rows that are "
        "looked at first have none, the capture stops before it begins, and says why. Rows "
        "without text, and those that `overflow` skips, do not count.",
        metavar="SHARE",
        is_recorded=False,
        is_estimated=False,
        is_rare=True,
    )
    self_test: bool = setting(
        True,
        _RUNNING,
        "Try some rows before the first shard: tokens are held to their text, and eight rows are "
        "read alone and together. Where the teacher's answers differ by more than rounding, the "
        "capture stops. The difference is kept in the store.",
        switch_help="Do not try first whether text, tokens and the teacher's answers fit.",
        is_recorded=False,
        is_estimated=False,
        is_rare=True,
    )
    claim: bool = setting(
        False,
        _RUNNING,
        "Share the store with other processes that set this, on any machine that sees the folder. "
        "They may come and go; each takes the next shard that is free.",
        is_recorded=False,
        is_estimated=False,
    )
    shard_text_bytes: int | None = setting(
        None,
        _RUNNING,
        "Bytes of text per shard, about: the most work that a crash can cost.",
        metavar="N",
        unset=DEFAULT_IN_WORDS,
        is_rare=True,
    )
    codec: str = setting(
        "portable",
        _KEPT,
        "How arrays are compressed: portable, or compact, which is 4 % smaller but needs the "
        "library pcodec wherever the store is read.",
        metavar="portable|compact",
        is_rare=True,
    )
    trust_remote_code: bool = setting(
        False,
        _TEACHER,
        "Run code that comes with the model, whose code you should have read.",
        is_recorded=False,
    )

    def recorded(self) -> dict[str, Any]:
        """Select the settings that decide a store, as JSON, for `logitstore repair --capture`.

        A newer setting that is not used is left out: stores without it have the bytes they had.
        """
        return {
            name: value
            for name, value in vars(self).items()
            if name not in NOT_RECORDED and not (name in _NEWER and not value)
        }

    @classmethod
    def from_recorded(cls, recorded: Mapping[str, Any]) -> Self:
        """Make settings of those recorded in a store, and of no others: it may be a stranger's.

        Raises:
            InputError: A name is not one that `recorded` returns.
        """
        known = {f.name for f in fields(cls)} - NOT_RECORDED
        if unknown := sorted(set(recorded) - known):
            raise InputError(
                f"the store's provenance names settings that it cannot decide or that do not "
                f"exist: {', '.join(unknown)}. Run the `logitstore capture …` that made it."
            )
        return cls(**recorded)


#: Settings that stores from before them do not name.
_NEWER = {"gguf_file", "hidden", "hidden_dtype", "hidden_context", "with_lm_head"}
#: Settings of this machine and this run, which do not decide what a store holds.
NOT_RECORDED = not_recorded(CaptureSettings)
