"""Describe a store in numbers and in aligned text, for a person who decides whether to trust it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from logitstore.console.counts import counted
from logitstore.console.left_out import LeftOut, left_out_text
from logitstore.console.notebook import facts_html
from logitstore.format.fidelity import Fidelity
from logitstore.format.fields import IN_WORDS
from logitstore.format.logprob_codec import TAIL_STEP
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.statuses import left_out_of
from logitstore.storage.paths import StorePath

#: What a store says of the turns that were looked at before its capture began.
_ODD_TURNS = {
    "without_end": "that no token ends, so students do not learn from them when to stop",
    "unwritten_tool_calls": "left out, whose tool calls the chat template does not write",
}

#: What the lines take for known, for who has not met it.
_WORDS = (
    "A record is what the teacher said of one token: its entries, the most probable next tokens,\n"
    "and the tail, the probability of all others. docs/glossary.md has every word."
)


class Described(Protocol):
    """The part of a `LogitStore` that `facts` needs."""

    path: StorePath
    spec: StoreSpec
    plan: Plan
    provenance: dict[str, Any]
    shards: Sequence[int]

    @property
    def digest(self) -> str: ...
    @property
    def is_complete(self) -> bool: ...
    @property
    def shard_facts(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def rows_held(self) -> int: ...
    @property
    def fidelity(self) -> Fidelity: ...
    @property
    def boundaries(self) -> Mapping[str, "Described"]: ...
    @property
    def hidden_bytes(self) -> int: ...
    @property
    def lm_head_bytes(self) -> int: ...
    @property
    def statuses(self) -> dict[str, int]: ...
    def __len__(self) -> int: ...
    def first_rows(self) -> Mapping[str, int]: ...
    def largest_tail(self, index: int, /) -> float: ...
    def member_bytes(self) -> Iterable[dict[str, int]]: ...


def facts(store: Described) -> dict[str, Any]:
    """Collect everything that `logitstore info` says."""
    shards = store.shard_facts
    records = sum(f["records"] for f in shards)
    file_bytes = sum(f["file_bytes"] for f in shards)
    spec = store.spec
    statuses = store.statuses
    return {
        "path": str(store.path),
        "complete": store.is_complete,
        "teacher": dict(spec.teacher) | {"name": store.provenance.get("teacher")},
        "tokenizer": {k: v for k, v in spec.tokenizer.items() if k != "files"},
        "rendering": dict(spec.rendering),
        "capture": dict(spec.capture),
        "dataset": {
            "name": store.provenance.get("dataset"),
            "sha256": store.plan.dataset_sha256,
            "rows": store.plan.rows,
        },
        "shards": len(store.shards),
        "shards_planned": store.plan.shard_count,
        "rows": store.rows_held,
        "sequences": len(store),
        "statuses": statuses,
        "left_out": [each.facts() for each in left_out_of(statuses, store.first_rows())],
        "records": records,
        "entries": sum(f["entries"] for f in shards),
        "supervised_bytes": sum(f["supervised_bytes"] for f in shards),
        "file_bytes": file_bytes,
        "bytes_per_token": file_bytes / max(records, 1),
        "bytes_per_token_by_field": _bytes_by_field(store, records),
        "fidelity": vars(store.fidelity),
        "uld_within": uld_within(store),
        "self_test": store.provenance.get("self_test"),
        "turns": store.provenance.get("turns"),
        "digest": store.digest,
        "boundaries": [_boundaries(*each) for each in store.boundaries.items()],
        **({} if spec.hidden is None else {"hidden_bytes": store.hidden_bytes}),
        **({} if not spec.has_head else {"lm_head_bytes": store.lm_head_bytes}),
    }


def _boundaries(fingerprint: str, store: Described) -> dict[str, Any]:
    """Collect what is said of the records at the boundaries of a student."""
    records = sum(f["records"] for f in store.shard_facts)
    return {
        "student": store.provenance.get("boundaries_of"),
        "fingerprint": fingerprint,
        "path": str(store.path),
        "complete": store.is_complete,
        "records": records,
        "file_bytes": sum(f["file_bytes"] for f in store.shard_facts),
        "digest": store.digest,
    }


def uld_within(store: Described) -> dict[str, float | None] | None:
    """Bound the distance of a ULD computed from this store to that of the full distribution.

    With sorted student p and teacher q, of which the store holds k entries and the tail u:
    sum_{i<=k} |p_i - q_i| + |s - u| is at most 2 min(s, u) <= 2 u below the exact value (s is the
    student's tail), and coding moved q by its measured L1. So the gap is at most 2 u + L1.

    Returns:
        ``mean``; ``p99``, the bound of 99 of 100 tokens (of every shard); ``worst``, that of any
        token, from the tails of all records: never more than 2, the largest possible ULD, and None
        for a store in a bucket, whose records are not fetched for this. None instead of all three
        where the tails are not known: entries renormalised before they were imported.
    """
    if "tail_logmass" in store.spec.missing:
        return None
    fidelity = store.fidelity
    rounding = math.exp(TAIL_STEP / 2)  # a stored tail is the true one, up to half a step
    tails = {"mean": fidelity.tail_mean, "p99": fidelity.tail_p99}
    l1 = {"mean": fidelity.l1_mean, "p99": fidelity.l1_max, "worst": fidelity.l1_max}
    if not store.path.is_remote:  # every tail is read: for a bucket, that fetches all of it
        tails["worst"] = max((store.largest_tail(index) for index in store.shards), default=0.0)
    within: dict[str, float | None] = {
        name: min(2 * tail * rounding + l1[name], 2.0) for name, tail in tails.items()
    }
    return within | ({"worst": None} if store.path.is_remote else {})


def info_text(about: dict[str, Any]) -> str:
    """Write the facts as aligned lines, and a table of what was not used."""
    lines = "\n".join(f"{name:<10}{value}" for name, value in info_lines(about).items())
    table = left_out_text([LeftOut.from_facts(each) for each in about["left_out"]], "sequences")
    return "\n\n".join(filter(None, [lines, _WORDS, table]))


def store_html(store: Described, about: dict[str, Any]) -> str:
    """Write the facts for a notebook, and how to look at what the store holds."""
    left_out = left_out_text([LeftOut.from_facts(each) for each in about["left_out"]], "sequences")
    further = "store.show(0) shows a sequence, store[0] its numbers, store.text(0) its text."
    more = "\n\n".join(filter(None, [left_out, further]))
    lines = {name: value for name, value in info_lines(about).items() if name}
    return facts_html(counted(len(store), "sequence"), lines, more)


def info_lines(about: dict[str, Any]) -> dict[str, str]:
    """Write the facts in words, by name; the one named "" continues the line of the size."""
    teacher, capture, fidelity = about["teacher"], about["capture"], about["fidelity"]
    uld = about["uld_within"]
    state = "complete" if about["complete"] else "unfinished: run the same capture again"
    dtype = teacher["dtype"]
    if "quantization" in teacher:
        dtype += f", quantised: {json.dumps(teacher['quantization'])}"
    if "experts" in teacher:
        dtype += f", experts: {json.dumps(teacher['experts'])}"
    lines = {
        "store": f"{about['path']} ({state})",
        "teacher": f"{teacher['name']} · {teacher['architecture']} · {dtype} · "
        f"vocabulary {teacher['vocab_size']:,} · fingerprint {teacher['fingerprint'][:12]}…",
        "tokenizer": f"{about['tokenizer']['size']:,} ids · fingerprint "
        f"{about['tokenizer']['fingerprint'][:12]}…",
        "dataset": f"{about['dataset']['name']} · {about['rows']:,} of "
        f"{counted(about['dataset']['rows'], 'row')} · digest {about['dataset']['sha256'][:12]}…",
        "rows": " · ".join(f"{n:,} {status}" for status, n in sorted(about["statuses"].items())),
        "kept": _kept(capture),
        "records": f"{counted(about['records'], 'token')}, {fidelity['entries_mean']:.1f} entries "
        f"each, {about['supervised_bytes'] / max(about['records'], 1):.2f} bytes of text each",
        "size": f"{counted(about['file_bytes'], 'byte')} in {counted(about['shards'], 'shard')}, "
        f"{about['bytes_per_token']:.1f} bytes a token",
        "": "of these: "
        + " · ".join(
            f"{IN_WORDS.get(name, name)} {value:.2f}"
            for name, value in sorted(
                about["bytes_per_token_by_field"].items(), key=lambda item: -item[1]
            )
            if value >= 0.005
        ),
        "tail": f"{fidelity['tail_mean']:.4f} of the probability on average, "
        f"{fidelity['tail_p99']:.4f} or less at 99 of 100 tokens{_at_cap(capture, fidelity)}",
        "rounding": f"moves {fidelity['l1_mean'] / 2:.2%} of the probability of a token on "
        f"average, {fidelity['l1_max'] / 2:.2%} at most (KL {fidelity['kl_mean']:.1e} nats); "
        f"{counted(fidelity['dropped_entries'], 'entry', 'entries')} too improbable to be kept",
        "ULD": "from this store has no bound"
        if uld is None
        else f"from this store is within {uld['mean']:.4f} of the exact one on average, "
        f"{uld['p99']:.4f} for 99 of 100 tokens" + _at_worst(uld["worst"]),
        **_hidden(capture, about),
        **_turns(about["turns"]),
        **_self_test(about["self_test"]),
        "digest": about["digest"],
    }
    for n, each in enumerate(about["boundaries"]):
        state = "" if each["complete"] else "; unfinished: run the same capture again"
        lines["boundaries" if n == 0 else " " * n] = (
            f"of {each['student']} · fingerprint {each['fingerprint'][:12]}… · "
            f"{counted(each['records'], 'record')}, {each['file_bytes']:,} bytes{state}"
        )
    if "missing" in capture:
        lines["missing"] = f"{', '.join(capture['missing'])}: not {_source(about)}"
    if "tail_logmass" in capture.get("missing", ()):
        lines["tail"] = "not known: the entries were renormalised before they were imported"
    return lines


def _kept(capture: Mapping[str, Any]) -> str:
    """Say what of each prediction is kept."""
    top_k = capture["top_k"]
    kept = f"top {top_k}: the most probable next tokens" if top_k else "no entries"
    if capture["max_tail"] is not None:
        kept += f", the fewest that leave a tail of at most {capture['max_tail']:g}"
    kept += "" if capture["ids"] or not top_k else ", their values alone (no ids)"
    if capture["draws"]:
        kept += f", {counted(capture['draws'], 'draw')} from the tail"
    kept += ", standard deviations of logits" if capture["logit_std"] else ""
    if capture["temperatures"]:
        kept += f", log-normalisers at {', '.join(f'{t:g}' for t in capture['temperatures'])}"
    return kept


def _at_cap(capture: Mapping[str, Any], fidelity: Mapping[str, Any]) -> str:
    """Say at how many tokens the bound on the tail was not met; nothing where none was asked."""
    if capture["max_tail"] is None:
        return ""
    return (
        f"; at {fidelity['at_cap_fraction']:.1%} of the tokens {capture['top_k']} entries were too "
        f"few for {capture['max_tail']:g}"
    )


def _hidden(capture: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
    """Say which hidden states lie beside the records, and what they take."""
    if "hidden" not in capture:
        return {}
    kept, size = capture["hidden"], about["hidden_bytes"]
    said = f"{', '.join(kept['layers'])} · {kept['width']:,} numbers in {kept['dtype']}"
    said += " · of context, too" if kept["context"] else ""
    said += " · the embedding is the teacher's weights" if "embedding" in kept["layers"] else ""
    each = size / max(about["records"], 1)
    lines = {"hidden": f"{said} · {size:,} bytes in files of their own, {each:.1f} a token"}
    if "lm_head" in kept:
        rows, taken = about["teacher"]["vocab_size"], about["lm_head_bytes"]
        lines["lm head"] = (
            f"the teacher's output embedding, {rows:,} x {kept['width']:,} · its weights, under "
            f"its licence · {taken:,} bytes"
        )
    return lines


def _source(about: Mapping[str, Any]) -> str:
    """Name what a store was made of that lacks a field."""
    if "engine" in about["teacher"]:
        return f"said by the engine ({about['teacher']['engine']})"
    given = "created" in about["rendering"]
    return "in what a program gave" if given else "in the data that was imported"


def _self_test(found: object) -> dict[str, str]:
    """Say what the test before the capture found; nothing where a store has none, or another."""
    if not _has_numbers(found, "sequences", "tokens", "largest", "largest_mean", "tolerance"):
        return {}
    return {
        "self-test": f"{counted(found['sequences'], 'sequence')} alone and in a batch: log p of "
        f"{counted(found['tokens'], 'token')} differs by {found['largest']:g} at most, "
        f"{found['largest_mean']:g} on average (up to {found['tolerance']:g} is rounding)"
    }


def _turns(found: object) -> dict[str, str]:
    """Say how many turns are not as they should be; nothing where all are, or it is not known."""
    if not _has_numbers(found, "rows"):
        return {}
    kinds = [kind for kind in _ODD_TURNS if _has_numbers(found, kind)]
    odd = [f"{found[kind]:,} {_ODD_TURNS[kind]}" for kind in kinds]
    return (
        {"turns": f"of {counted(found['rows'], 'row')} looked at: {'; '.join(odd)}"} if odd else {}
    )


def _has_numbers(found: object, *names: str) -> TypeGuard[dict[str, Any]]:
    """Tell whether something that anybody may have written is an object with these numbers."""
    return isinstance(found, dict) and all(
        isinstance(found.get(name), int | float) for name in names
    )


def _at_worst(worst: float | None) -> str:
    return "" if worst is None else f", {worst:.4f} at worst"


def _bytes_by_field(store: Described, records: int) -> dict[str, float]:
    """Compute the bytes a token of each array, from the shards' directories."""
    totals: dict[str, int] = {}
    for sizes in store.member_bytes():
        for name, size in sizes.items():
            totals[name] = totals.get(name, 0) + size
    return {name: size / max(records, 1) for name, size in totals.items()}
