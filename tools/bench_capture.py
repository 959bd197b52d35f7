"""What a capture costs beyond the teacher's own forward pass.

    python -m tools.bench_capture [--json] [--quick]

Three contenders on the same batches, each in a process of its own, with the teacher loaded:

* bare: `model(...).logits` in inference mode, and nothing else;
* naive: a full log-softmax of those, `topk`, and Python lists into one Parquet file;
* ours: `logitstore capture` from the rows of a file to a finished store, read and verified.

They take turns, so that a slow minute of the machine affects all of them. Ours is also timed by
stage. Stages that are not on the teacher's thread run in parallel with it, so the stages together
take longer than the wall clock. Finally, the forecast of `estimate` is compared with the capture.

On a CPU: a random Llama of 110M parameters, V = 32,000, two threads. Where there is an accelerator,
also one of 1.2B in bfloat16, V = 128,256.

Shape legend: V = vocabulary, K = entries.
"""

import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.benchmark import PeakMemory, goal, run_sizes, said, table

BARE, NAIVE, OURS, ESTIMATE = "bare forward", "naive", "ours", "estimate"
K = 64


@dataclass(frozen=True)
class Sizes:
    """The sizes of a teacher and its data: `rows` of `length` tokens in batches of tokens."""

    device: str
    dtype: str
    rows: int
    length: int
    tokens_per_batch: int
    model: dict[str, Any] = field(default_factory=dict)
    overhead: float = 1.1

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def shard_text_bytes(self) -> int:
        """Return a size that makes about four shards: a word of the text is six bytes."""
        return self.tokens * 3 // 2


def _llama(vocab: int, width: int, inner: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


QUICK = Sizes("cpu", "float32", 6, 16, 32, _llama(500, 32, 64, 1, 2, 2))
ON_CPU = Sizes("cpu", "float32", 24, 256, 1024, _llama(32_000, 768, 2048, 12, 12, 12))
ON_GPU = Sizes(
    "cuda", "bfloat16", 256, 1024, 16_384, _llama(128_256, 2048, 8192, 16, 32, 8), overhead=1.05
)

# ---- the teacher and its text ----


def make(sizes: Sizes, folder: Path) -> None:
    """Write `folder/teacher`, and `folder/rows.jsonl`, of which every row is `length` tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = sizes.model["vocab_size"]
    words = {"</s>": 0, **{f"w{i}": i for i in range(1, vocab)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="</s>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes.model)).to(getattr(torch, sizes.dtype))
    with torch.no_grad():  # so that it is not flat: a tenth of the mass in the most probable token
        model.model.norm.weight.mul_(6)
    model.save_pretrained(folder / "teacher")
    fast.save_pretrained(folder / "teacher")
    rng = np.random.default_rng(0)
    rows = rng.integers(1, vocab, (sizes.rows, sizes.length - 1))  # and the end
    with (folder / "rows.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps({"text": " ".join(f"w{i}" for i in row)}) + "\n")


def task_of(sizes: Sizes, folder: Path) -> Any:
    from logitstore.capture.settings import CaptureSettings
    from logitstore.capture.task import prepare

    settings = CaptureSettings(
        top_k=K,
        device=sizes.device,
        tokens_per_batch=sizes.tokens_per_batch,
        shard_text_bytes=sizes.shard_text_bytes,
        self_test=False,  # it is before the capture, and no part of what is measured
    )
    return prepare(str(folder / "teacher"), str(folder / "rows.jsonl"), settings)


# ---- the contenders ----

Turn = Callable[[], dict[str, float]]


def batches_of(sizes: Sizes, task: Any) -> list[torch.Tensor]:
    """Return the batches that a capture makes: all rows have one length, so none is padded."""
    from logitstore.capture.passes.teacher_pass import batches

    found = []
    for shard in range(task.plan.shard_count):
        rows = range(*task.plan.shard_rows(shard))
        sequences = [s for row in rows for s in task.reader.sequences(row)]
        for chosen in batches(sequences, sizes.tokens_per_batch):
            ids = np.stack([sequences[i].text.token_ids for i in chosen])
            found.append(torch.from_numpy(ids).to(sizes.device))
    return found


def bare(sizes: Sizes, folder: Path) -> Turn:
    from logitstore.capture.teacher.weights import load_model

    task = task_of(sizes, folder)
    model, batches = load_model(task.teacher, torch.device(sizes.device)), batches_of(sizes, task)

    @torch.inference_mode()
    def turn() -> dict[str, float]:
        for ids in batches:
            _ = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        _wait(sizes)
        return {}

    return turn


def naive(sizes: Sizes, folder: Path) -> Turn:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from logitstore.capture.teacher.weights import load_model

    task = task_of(sizes, folder)
    model, batches = load_model(task.teacher, torch.device(sizes.device)), batches_of(sizes, task)

    @torch.inference_mode()
    def turn() -> dict[str, float]:
        rows = []
        for ids in batches:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            top = logits.float().log_softmax(-1).topk(K)
            values, indices = top.values.tolist(), top.indices.tolist()
            rows += [{"logprobs": v, "ids": i} for v, i in zip(values, indices, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "naive.parquet")
        return {}

    return turn


def ours(sizes: Sizes, folder: Path) -> Turn:
    from logitstore.capture.in_process import InThisProcess
    from logitstore.capture.job import writer_of
    from logitstore.capture.process import CaptureProcess
    from logitstore.capture.sharing.sharing import ByRank
    from logitstore.checking.verify import verify_store
    from logitstore.console.json_log import JsonLog
    from logitstore.console.launcher import Ranks
    from logitstore.console.signals import stopper
    from logitstore.storage.paths import store_path

    spent = timed_stages()
    task = task_of(sizes, folder)
    loaded: list[Any] = []

    def turn() -> dict[str, float]:
        out = store_path(tempfile.mkdtemp(dir=folder)) / "store"
        with stopper() as signals:
            sharing, events = ByRank(out, task.plan.shard_count, Ranks()), JsonLog(None)
            hands = InThisProcess(task, Ranks(), sharing, signals, events)
            job = CaptureProcess(task, out, writer_of(task, out), sharing, hands, events)
            if loaded:
                hands.teacher.__dict__["engine"] = loaded[0]  # loading is not what is measured
            loaded[:] = [hands.teacher.engine]
            spent.clear()
            began = time.perf_counter()
            store = job.run()
            done = time.perf_counter()
            assert verify_store(store.path).damaged == []
        took = dict(spent) | {"verifying": time.perf_counter() - done, "capture": done - began}
        stored = sum(p.stat().st_size for p in Path(str(out / "shards")).iterdir())
        return took | {"stored_bytes": stored, "records": float(store.token_counts.sum())}

    turn()  # loads the teacher; this turn is not measured
    return turn


def timed_stages() -> dict[str, float]:
    """Start to count the seconds of each stage, on whichever thread it runs."""
    from logitstore.capture.passes.teacher_pass import TeacherPass
    from logitstore.capture.shard_worker import ShardWorker
    from logitstore.capture.teacher.summary import HeadResult

    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, stage: str, inner: str | None = None) -> None:
        call = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began, within = time.perf_counter(), spent[inner] if inner else 0.0
            try:
                return call(*args, **kwargs)
            finally:
                spent[stage] += time.perf_counter() - began
                if inner:  # counted there
                    spent[stage] -= spent[inner] - within

        is_bound = hasattr(call, "__self__")
        setattr(owner, name, staticmethod(wrapper) if is_bound else wrapper)

    timed(HeadResult, "on_host", "host transfer")
    timed(TeacherPass, "forward", "device", inner="host transfer")
    timed(TeacherPass, "encode", "encoding")
    timed(ShardWorker, "commit", "committing")
    return spent


def _wait(sizes: Sizes) -> None:
    if sizes.device != "cpu":
        torch.accelerator.synchronize()


# ---- how ----


def contend(name: str, sizes: Sizes, folder: Path, pipe: Connection) -> None:
    """Run a contender's process: take a turn whenever it is told to, and report the time."""
    logging.disable(logging.WARNING)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # progress bars
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    turn = CONTENDERS[name](sizes, folder)
    pipe.send(None)
    while pipe.recv():
        memory = PeakMemory()
        if sizes.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        cpu, wall = time.process_time(), time.perf_counter()
        stages = turn()
        _wait(sizes)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = memory.bytes_more()
        if sizes.device != "cpu":
            peak = torch.cuda.max_memory_allocated()
        pipe.send({"cpu_s": cpu, "wall_s": wall, "peak_bytes": peak, **stages})


def measure(sizes: Sizes, folder: Path, turns: int) -> dict[str, dict[str, float]]:
    """Return the medians of each contender's turns, after one to warm up."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(  # imported once, for all of them
        [__name__, "logitstore.capture.job", "transformers.models.llama.modeling_llama"]
    )
    making = context.Process(target=make, args=(sizes, folder))
    making.start()
    making.join()
    pipes, processes = {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=contend, args=(name, sizes, folder, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        pipes[name].recv()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for turn in range(turns + 1):
        for name, pipe in pipes.items():
            if name == ESTIMATE and turn not in (0, turns):
                continue
            pipe.send(True)
            took = pipe.recv()
            if turn or turns == 1:
                found[name].append(took)
            print(f"{sizes.device}, turn {turn}: {name}", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return {
        name: {what: statistics.median(turn[what] for turn in each) for what in each[0]}
        for name, each in found.items()
    }


def forecast(sizes: Sizes, folder: Path) -> Turn:
    """Return what `estimate` forecasts from the same rows."""
    from logitstore.capture import preview

    def turn() -> dict[str, float]:
        said = preview(
            str(folder / "teacher"),
            str(folder / "rows.jsonl"),
            top_k=K,
            device=sizes.device,
            tokens_per_batch=sizes.tokens_per_batch,
            shard_text_bytes=sizes.shard_text_bytes,
        )
        return {"forecast_bytes": float(said.file_bytes), "forecast_s": said.seconds}

    return turn


CONTENDERS: dict[str, Callable[[Sizes, Path], Turn]] = {
    BARE: bare,
    NAIVE: naive,
    OURS: ours,
    ESTIMATE: forecast,
}


def judged(sizes: Sizes, measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return every ratio that has a goal."""

    def ratio(what: str, a: str, b: str) -> float:
        return measured[a][what] / measured[b][what]

    goals = {
        "wall time of the bare forward": goal(ratio("wall_s", OURS, BARE), at_most=sizes.overhead),
        "times faster than naive": goal(ratio("wall_s", NAIVE, OURS), at_least=1.5),
        "memory of the bare forward": goal(ratio("peak_bytes", OURS, BARE), at_most=1.0),
    }
    said, came = measured[ESTIMATE], measured[OURS]
    for what, a, b, most in (
        ("bytes", "forecast_bytes", "stored_bytes", 0.05),
        ("time", "forecast_s", "capture", 0.15),
    ):
        off = max(abs(said[a] / came[b] - 1), 1e-6)
        goals[f"estimated {what}, off by"] = goal(off, at_most=most)
    if sizes.device == "cpu":
        goals["CPU time of the bare forward"] = goal(ratio("cpu_s", OURS, BARE), at_most=1.1)
    return goals


def shown(sizes: Sizes, part: dict[str, Any]) -> str:
    measured, goals = part["measured"], part["goals"]
    rows = [["", "CPU s", "wall s", "peak MiB", "tokens/s"]]
    rows += [
        [
            name,
            f"{m['cpu_s']:.2f}",
            f"{m['wall_s']:.2f}",
            f"{m['peak_bytes'] / 2**20:.0f}",
            f"{sizes.tokens / m['wall_s']:,.0f}",
        ]
        for name, m in measured.items()
    ]
    stages = ("device", "host transfer", "encoding", "committing")
    took = measured[OURS]
    rows += [["", "", "", "", ""]]
    rows += [[f"  {stage}", "", f"{took.get(stage, 0.0):.2f}", "", ""] for stage in stages]
    total = sum(took.get(stage, 0.0) for stage in stages)
    rows += [["  stages together", "", f"{total:.2f}", "", ""]]
    rows += [["  capture", "", f"{took['capture']:.2f}", "", ""]]
    rows += [["  verifying", "", f"{took['verifying']:.2f}", "", ""]]
    head = f"{sizes.device}: {sizes.tokens:,} tokens, V = {sizes.model['vocab_size']:,}, K = {K}"
    lines = [head, table(rows), ""]
    for what, figure in goals.items():
        lines.append(f"  {what}: {said(figure, 'at least' if 'faster' in what else 'at most')}")
    return "\n".join(lines)


def wanted(quick: bool) -> list[Sizes]:
    if quick:
        return [QUICK]
    return [ON_CPU, ON_GPU] if torch.cuda.is_available() else [ON_CPU]


def part_of_report(sizes: Sizes, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        measured = measure(sizes, Path(name), turns=1 if quick else 3)
        goals = judged(sizes, measured)
    return vars(sizes) | {"measured": measured, "goals": goals}


def main() -> None:
    run_sizes(
        __doc__,
        ["torch", "transformers", "numpy", "pyarrow"],
        threads=min(2, len(os.sched_getaffinity(0))),
        sizes=wanted,
        measure=part_of_report,
        shown=shown,
    )


if __name__ == "__main__":
    main()
