"""`kill -9` a real capture at random moments, again and again; nothing committed may suffer.

    python tools/kill_capture.py --kills 200 [--seed 0] [--workers 3] [--boundaries]

A tiny teacher reads some fifty rows into as many shards as fit. Each attempt is a forked process
(torch is imported once) that is killed at a random moment of its run, start and seal included.
After each kill: every shard that was ever seen is still the same file with the same bytes, those of
an uninterrupted capture, and the store verifies. When a store gets finished it must be byte for
byte the uninterrupted one; then the next is begun, until there were enough kills.

With `--boundaries`, the teacher is asked at a student's boundaries, too: a store inside each store.
With `--workers N`, N processes share a store by claims (`--claim`). Now and then one of them is
killed, and another takes its place immediately.

Prints one line of counts; exit status 1 as soon as anything is not as it should be.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import datasets  # noqa: F401  (imported before the forks, so that they need not)
import numpy as np
import torch
import transformers  # noqa: F401
from tqdm import tqdm

import logitstore
import logitstore.capture.job  # before the forks, as the others above
from logitstore.checking.verify import verify_store
from logitstore.testing import tiny
from logitstore.testing.stores import tree

SHARD_TEXT_BYTES = 100


class Trial:
    """One teacher, one dataset, and the bytes of an uninterrupted capture of them."""

    def __init__(self, folder: Path, *, has_student: bool = False) -> None:
        self.folder = folder
        self.student = str(folder / "student") if has_student else None
        tiny.unigram().save_pretrained(folder / "student")
        self.teacher, self.data = folder / "teacher", folder / "rows.jsonl"
        tiny.save(self.teacher, tiny.llama(400), tiny.byte_bpe(400, bos=True))
        rows = [json.dumps({"text": t}) for t in [*tiny.corpus(), ""]]
        self.data.write_text("\n".join(rows) + "\n")
        began = time.monotonic()
        child = self.begin(folder / "whole")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the capture itself fails"
        self.duration_s = time.monotonic() - began
        self.wanted = tree(folder / "whole")
        self.kept: dict[Path, tuple[int, int]] = {}
        self.counts: Counter[str] = Counter()

    def begin(self, out: Path, *, claim: bool = False) -> int:
        """Start a capture in a forked process."""
        child = os.fork()
        if child == 0:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            try:
                logitstore.capture(
                    self.teacher,
                    str(self.data),
                    out,
                    top_k=8,
                    shard_text_bytes=SHARD_TEXT_BYTES,
                    claim=claim,
                    boundaries_of=self.student,
                )
                os._exit(0)
            finally:
                os._exit(1)
        return child

    def attempt(self, out: Path, delay_s: float | None) -> bool:
        """Start a capture and kill it; return whether the kill came before its end."""
        child = self.begin(out)
        if delay_s is not None:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"a resumed capture failed with exit status {code}")
        return code == -signal.SIGKILL

    def share(self, out: Path, workers: int, kills: int, rng: np.random.Generator) -> int:
        """Run workers that share a store, kill and replace some; return how many were killed."""
        children = [self.begin(out, claim=True) for _ in range(workers)]
        killed = 0
        while children:
            # The second half of a lone run, if they come at the same time; later moments as well.
            time.sleep(float(rng.uniform(0, self.duration_s)))
            for child in list(children):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    children.remove(child)
                    if code := os.waitstatus_to_exitcode(status):
                        raise AssertionError(f"a worker failed with exit status {code}")
            if children and killed < kills:
                child = children.pop(int(rng.integers(len(children))))
                os.kill(child, signal.SIGKILL)
                if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL:
                    killed += 1
                    self.check(out)
                children.append(self.begin(out, claim=True))
        return killed

    def check(self, out: Path) -> None:
        """Check the store after a kill: shards are unchanged, and it verifies."""
        for path in sorted(out.rglob("shards/*.zarr.zip")):
            identity = (path.stat().st_ino, path.stat().st_mtime_ns)
            if self.kept.setdefault(path, identity) != identity:
                raise AssertionError(f"{path} was replaced")
            if path.read_bytes() != self.wanted[str(path.relative_to(out))]:
                raise AssertionError(f"{path} is not what an uninterrupted capture writes")
        self.counts["left a temporary file"] += any(out.rglob(".tmp-*"))
        if not (out / "store.json").exists():
            self.counts["before the store began"] += 1
            return
        damaged = verify_store(out, deep=True, allow_partial=True).damaged
        if damaged:
            raise AssertionError(f"{out}: {damaged}")

    def check_finished(self, out: Path) -> None:
        """Check that a finished store has the same bytes as an uninterrupted capture."""
        if tree(out) != self.wanted:
            raise AssertionError(f"{out} is not the store of an uninterrupted capture")
        self.counts["stores finished, byte-identical"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="share each store by claims")
    parser.add_argument("--boundaries", action="store_true", help="with those of a student")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # tqdm's own lock is a semaphore shared between forks: a killed one would hold it for ever.
    tqdm.set_lock(threading.RLock())
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        trial, kills, number, since = Trial(Path(name), has_student=args.boundaries), 0, 0, 0
        while kills < args.kills or since > 0:
            out = Path(name) / f"store-{number}"
            if args.workers:
                # A few for each store, so that there are ends of stores, too.
                kills += trial.share(out, args.workers, min(5, args.kills - kills), rng)
                print(f"{kills} kills", file=sys.stderr, flush=True)
                trial.check_finished(out)
                number += 1
                continue
            # Starting up takes about half of a run: later moments have more to destroy.
            delay_s = float(rng.uniform(0, trial.duration_s * (0.7 + 0.2 * min(since, 10))))
            finish = kills >= args.kills
            if trial.attempt(out, None if finish else delay_s):
                kills, since = kills + 1, since + 1
                if kills % 20 == 0:
                    print(f"{kills} kills", file=sys.stderr, flush=True)
                trial.check(out)
            elif (out / "DONE").exists():
                trial.check_finished(out)
                number, since = number + 1, 0
        facts = ", ".join(f"{n} {what}" for what, n in sorted(trial.counts.items()))
        shards = sum(name.startswith("shards/") for name in trial.wanted)
        print(
            f"{kills} kills survived ({shards} shards a store, {trial.duration_s:.1f} s): {facts}"
        )


if __name__ == "__main__":
    main()
