"""The teacher pass, for callers: `capture` runs it, `preview` says what it would do.

Resumable by construction: what each shard holds is fixed before the first is written, a shard is
either committed whole or not there, and a run does the missing ones; see `process.py` for the
doing.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore.capture.estimate.budget import find_budget
from logitstore.capture.estimate.forecast import Forecast
from logitstore.capture.estimate.sample import take_sample
from logitstore.capture.estimate.trial_batches import forecast_capture
from logitstore.capture.passes.teacher_pass import TeacherPass
from logitstore.capture.process import CaptureProcess
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.task import Task, prepare
from logitstore.console.json_log import JsonLog
from logitstore.console.launcher import Ranks, find_ranks
from logitstore.console.signals import stopper
from logitstore.format.spec import SPEC_FILE
from logitstore.storage.paths import StorePath, to_write
from logitstore.store import LogitStore
from logitstore.writing.plan import DEFAULT_SHARD_TEXT_BYTES
from logitstore.writing.writer import StoreWriter, check_place

if TYPE_CHECKING:
    from datasets import Dataset


def capture(
    teacher: str | os.PathLike[str],
    dataset: "str | os.PathLike[str] | Dataset",
    out: str | os.PathLike[str] | StorePath,
    *,
    top_k: int = 64,
    max_tail: float | None = None,
    ids: bool = True,
    temperatures: Sequence[float] = (),
    logit_std: bool = False,
    draws: int = 0,
    seed: int | None = None,
    generate: bool = False,
    max_new_tokens: int | None = None,
    generate_temperature: float | None = None,
    generate_top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str] = (),
    split: str | None = None,
    config_name: str | None = None,
    text_column: str | None = None,
    supervise: str | None = None,
    chat_template_path: str | None = None,
    chat_template_kwargs: str | Mapping[str, Any] | None = None,
    max_length: int | None = None,
    overflow: str = "split",
    stride: int | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    tokens_per_batch: int | str | None = None,
    on_nan: str = "stop",
    shard_text_bytes: int = DEFAULT_SHARD_TEXT_BYTES,
    codec: str = "portable",
    trust_remote_code: bool = False,
    claim: bool = False,
    log_json: str | os.PathLike[str] | None = None,
    ranks: Ranks | None = None,
) -> LogitStore:
    """Run the teacher over a dataset and write a store; resume it if it is begun, or do nothing.

    Several processes may do this at once, each with the same arguments: each takes whole shards
    (as ranks of a launcher, or with `claim`), and all return when the store is finished.

    Args:
        teacher: Hub id, or a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.
        dataset: Hub id, folder, `save_to_disk` folder, .jsonl, .parquet or .txt file, or a
            `datasets.Dataset`; with `text`, `prompt` and `completion`, `messages` or `input_ids`
            (see `logitstore.rows.dataset`).
        out: The store's folder, or a URL: `s3://bucket/name`.
        top_k: Entries of a record at most; 0 for draws alone.
        max_tail: Keep only the most probable entries that leave no more than this probability
            outside (never more than top_k).
        ids: Keep the entries' token ids. Without them ULD still works, at a fifth of the size.
        temperatures: Extra temperatures that losses may ask for; 1 always works.
        logit_std: Keep the standard deviation of the logits and the log-normaliser at it, which
            `multilevel_ot` reads.
        draws: So many draws of each record, with replacement, from what lies outside its entries,
            which `sampled_kl` reads. A token's draws are the same in any batch and on any rank.
        seed: Of the draws, and of completions that are sampled; default 0.
        generate: The dataset has prompts only (`prompt`, or `messages` that end with the user's
            turn): the teacher writes each completion, which is then captured.
        max_new_tokens: Of a completion; default 512.
        generate_temperature: Of sampling; 0, the default, takes the most probable token always.
        generate_top_k: Sample from so many of the most probable tokens.
        top_p: Sample from the fewest of the most probable tokens with this much together.
        stop: Texts before which a completion ends.
        split: Of the dataset.
        config_name: Of a hub dataset with several.
        text_column: Read this column instead of `text`.
        supervise: Of conversations, `all` assistant turns (the default) or the `last`.
        chat_template_path: A Jinja file, or a tokenizer's folder, instead of the teacher's own.
        chat_template_kwargs: Variables of the template for every row, a dict or JSON.
        max_length: Tokens of a sequence at most; default: what the teacher reads.
        overflow: What becomes of a longer row: `split` into windows, `truncate`, or `skip`.
        stride: Tokens of context before the new ones of a window; default: max_length // 8.
        revision: Of a hub model.
        dtype: ``auto`` (the model's own), ``float32``, ``bfloat16`` or ``float16``.
        quantization: Load the teacher quantised: ``bitsandbytes-4bit`` (nf4), ``bitsandbytes-8bit``
            or a `quantization_config` of `transformers`, as a dict or JSON. Recorded, for it
            changes the distribution. What a checkpoint was saved with needs no argument.
        attn_implementation: As `transformers` names them (``sdpa``, ``eager``,
            ``flash_attention_2``, …); default: its choice.
        device: Default: the accelerator if there is one, with several one a rank.
        device_map: Spread the teacher over devices: ``auto``, ``balanced``, ``balanced_low_0``,
            ``sequential``, or modules and their devices as a dict or JSON.
        tokens_per_batch: Padded tokens of a forward pass, or ``auto`` for what fits (see
            `logitstore.capture.estimate.budget`). Recorded by the first run of a store and then
            kept, so that a resumed store is the same bytes; default 8192. Records agree from one
            number to another to within rounding (see `logitstore.capture.passes.teacher_pass` for
            how much that is).
        on_nan: ``stop`` at a row of which the logits are not finite, or ``skip`` it: its line has
            the status ``not_finite`` and no records.
        shard_text_bytes: Text of a shard, about; what a crash can cost.
        codec: ``portable``, or ``compact``: 4 % smaller, and to be read where pcodec is installed.
        trust_remote_code: Run code that comes with the model. Only for models you have read.
        claim: Share the store with other processes that have this set, too, on any machine that
            sees its folder. They may come and go; each takes the next shard that nobody has.
        log_json: Append what happens to this file, a JSON object a line.
        ranks: Which of several processes this is; default: what the launcher's variables say.

    Returns:
        The finished store, open for reading.

    Raises:
        InputError: A model, dataset or setting that cannot be used.
        MissingLibraryError: `codec` is compact, and pcodec is not installed.
        MismatchError: `out` holds a store made with other settings, or something else.
        StorageError: The file system refused; what was committed stays good.
        BusyError: Another capture is writing this store, and one of the two has no `claim`.
        IncompleteStoreError: Another rank had no heartbeat while this one waited for it.
        Stopped: SIGINT or SIGTERM came; what was committed stays good.
    """
    settings = CaptureSettings(
        top_k=top_k,
        max_tail=max_tail,
        ids=ids,
        temperatures=temperatures,
        logit_std=logit_std,
        draws=draws,
        seed=seed,
        generate=generate,
        max_new_tokens=max_new_tokens,
        generate_temperature=generate_temperature,
        generate_top_k=generate_top_k,
        top_p=top_p,
        stop=stop,
        split=split,
        config_name=config_name,
        text_column=text_column,
        supervise=supervise,
        chat_template_path=chat_template_path,
        chat_template_kwargs=chat_template_kwargs,
        max_length=max_length,
        overflow=overflow,
        stride=stride,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        attn_implementation=attn_implementation,
        device=device,
        device_map=device_map,
        tokens_per_batch=tokens_per_batch,
        on_nan=on_nan,
        claim=claim,
        shard_text_bytes=shard_text_bytes,
        codec=codec,
        trust_remote_code=trust_remote_code,
    )
    place = to_write(out)
    with stopper() as signals:
        ranks = find_ranks() if ranks is None else ranks
        task = prepare(os.fspath(teacher), dataset, settings)
        events = JsonLog(Path(log_json) if log_json is not None and ranks.is_first else None)
        return CaptureProcess(
            task, place, lambda budget: _writer(task, place, budget), ranks, signals, events
        ).run()


def preview(
    teacher: str | os.PathLike[str],
    dataset: "str | os.PathLike[str] | Dataset",
    out: str | os.PathLike[str] | StorePath | None = None,
    **settings: Any,
) -> Forecast:
    """What `capture` with the same arguments would do. Writes nothing.

    Args:
        teacher, dataset: As there.
        out: The store of which the missing shards are looked at; None: a new one, anywhere.
        **settings: As there.

    Raises:
        InputError: A model, dataset or setting that cannot be used.
        MismatchError: `out` holds a store made with other settings.
    """
    place = None if out is None else to_write(out)
    task = prepare(os.fspath(teacher), dataset, CaptureSettings(**settings))
    missing = list(range(task.plan.shard_count))
    budget: int | None = None
    if place is not None and (place / SPEC_FILE).exists():  # then nothing is begun
        writer = _writer(task, place)
        missing, budget = writer.missing(), task.budget(writer)
    elif place is not None:
        check_place(place)
    sample = take_sample(task.reader, task.text_bytes)
    if not missing or not (sample.records or task.settings.generate):
        return Forecast.before_teacher(task, sample, missing)
    device, on_nan = task.device(Ranks()), task.settings.on_nan
    teacher_pass = TeacherPass(task.teacher, task.spec, device, on_nan=on_nan)
    if budget is None and task.wants_budget:
        budget = find_budget(task, teacher_pass, sample)
    budget = budget or int(task.provenance["tokens_per_batch"])
    return forecast_capture(task, teacher_pass, sample, missing, budget)


def _writer(task: Task, out: StorePath, budget: int | None = None) -> StoreWriter:
    """Begins the store if it is not there yet; `budget` is what was found to fit in a batch."""
    provenance = task.provenance
    if budget is not None:
        provenance = provenance | {"tokens_per_batch": budget}
    return StoreWriter(out, task.spec, task.plan, task.teacher.tokenizer_files, provenance)
