"""Work out what capturing and training from 10^12 tokens takes, from what was measured.

Every line says what it was made of, so that whoever has another cluster can put in their own rates.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

DAY_S = 86_400


class Cluster(NamedTuple):
    """What is assumed; nothing of it was measured here.

    Attributes:
        tokens: Teacher's tokens of text.
        gpus: GPUs of the capture.
        machines: They are in.
        cores: Of each machine.
        teacher_tokens_a_second: That the teacher reads on one GPU.
        student_tokens_a_second: That a student trains on, on one GPU.
        bytes_a_token: Stored for a token.
        text_bytes_a_token: Of the text.
        tokens_a_row: Of a row of the dataset.
        storage_bytes_a_second: That the file system gives to one machine.
    """

    tokens: float = 1e12
    gpus: int = 64
    machines: int = 8
    cores: int = 64
    teacher_tokens_a_second: float = 20_000
    student_tokens_a_second: float = 40_000
    bytes_a_token: float = 175
    text_bytes_a_token: float = 4.2
    tokens_a_row: float = 1000
    storage_bytes_a_second: float = 4e9


class Line(NamedTuple):
    """A quantity, and how it was worked out."""

    what: str
    amount: str
    because: str


def lines_of(cluster: Cluster, costs: Mapping[str, float], opened: Mapping[str, Any]) -> list[Line]:
    """Work out everything.

    Args:
        cluster: What is assumed.
        costs: What was measured of shards, bytes and tokens, on one core.
        opened: What was measured of opening a store of as many shards, and of its rows.
    """
    return [
        *_sizes(cluster),
        *_before(cluster, costs),
        *_capture(cluster, costs),
        *_checks(cluster, costs),
        *_training(cluster, costs, opened),
    ]


def shards_of(cluster: Cluster) -> int:
    """Count the shards of the default size: 4 MiB of text, but no more than 100,000."""
    return min(100_000, round(_text(cluster) / (4 << 20)))


def _text(cluster: Cluster) -> float:
    return cluster.tokens * cluster.text_bytes_a_token


def _rows(cluster: Cluster) -> float:
    return cluster.tokens / cluster.tokens_a_row


def _sizes(of: Cluster) -> Iterator[Line]:
    store, shards = of.tokens * of.bytes_a_token, shards_of(of)
    yield Line(
        "text", size(_text(of)), f"{of.tokens:.3g} tokens times {of.text_bytes_a_token} bytes"
    )
    yield Line("rows", f"{_rows(of):.3g}", f"{of.tokens_a_row:,.0f} tokens each")
    yield Line(
        "store",
        size(store),
        f"{of.bytes_a_token:g} bytes a token (64 entries, portable; 16 entries: 53, 4-bit budgets "
        "with --max-tail 0.05: 82)",
    )
    yield Line("shards", f"{shards:,}", f"of {size(store / shards)} each; a shard is below 4 GiB")
    small = round(_text(of) / (4 << 20))
    yield Line(
        "shards of 4 MiB of text", f"{small:,}", "if asked for by --shard-text-bytes 4194304"
    )


def _before(of: Cluster, costs: Mapping[str, float]) -> Iterator[Line]:
    rate = min(costs["hash_bytes_a_second"], of.storage_bytes_a_second)
    yield Line(
        "digest of the dataset, once a machine",
        duration(_text(of) / rate),
        f"{size(rate)} a second on one core; kept, so a resume takes seconds",
    )


def _capture(of: Cluster, costs: Mapping[str, float]) -> Iterator[Line]:
    rate = of.gpus * of.teacher_tokens_a_second
    yield Line(
        "capture",
        duration(of.tokens / rate),
        f"{of.gpus} GPUs times {of.teacher_tokens_a_second:,.0f} tokens a second (assumed)",
    )
    written = rate * of.bytes_a_token
    yield Line("written meanwhile", f"{size(written)} a second", "by all machines together")
    per_shard = of.tokens / shards_of(of) / of.teacher_tokens_a_second
    yield Line("a kill costs a GPU at most", duration(2 * per_shard), "two shards in hand")


def _checks(of: Cluster, costs: Mapping[str, float]) -> Iterator[Line]:
    store, shards = of.tokens * of.bytes_a_token, shards_of(of)
    seal = costs["seal_ms_a_shard"] / 1e3
    yield Line(
        "seal",
        duration(shards * seal / of.cores),
        f"{1e3 * seal:.2f} ms a shard on each of {of.cores} cores; goes on where it was stopped",
    )
    for name in ("verify", "verify --deep"):
        key = f"{name.replace(' --', '_')}_bytes_a_second"
        rate = min(of.cores * costs[key], of.storage_bytes_a_second)
        yield Line(
            f"{name}, one machine",
            duration(store / rate),
            f"{size(rate)} a second ({size(costs[key])} a core, {size(of.storage_bytes_a_second)} "
            "of the file system)",
        )


def _training(of: Cluster, costs: Mapping[str, float], opened: Mapping[str, Any]) -> Iterator[Line]:
    shards, rows = shards_of(of), _rows(of)
    yield Line(
        "opening the store, each process",
        f"{opened['seconds']:.2f} s, {size(opened['bytes'])}",
        f"measured with {opened['shards']:,} shards",
    )
    count_s = costs["count_ms_a_shard"] / 1e3 * shards / of.cores
    yield Line(
        "counting the records of rows, once a machine",
        duration(count_s),
        f"{costs['count_ms_a_shard']:.2f} ms a shard on each of {of.cores} cores; then mapped: "
        f"{size(8 * rows)} of file, shared by all processes",
    )
    yield Line("order of an epoch", "no list", "a keyed permutation; a window of 65,536 rows")
    rate = of.gpus * of.student_tokens_a_second
    yield Line(
        "an epoch",
        duration(of.tokens / rate),
        f"{of.gpus} GPUs times {of.student_tokens_a_second:,.0f} tokens a second (assumed)",
    )
    yield Line("read meanwhile", f"{size(rate * of.bytes_a_token)} a second", "by all machines")
    yield Line(
        "cores that decode",
        f"{rate / costs['read_tokens_a_second']:.1f} of {of.machines * of.cores}",
        f"{costs['read_tokens_a_second']:,.0f} tokens a second a core, before alignment",
    )


def size(count: float) -> str:
    """Format bytes in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def duration(seconds: float) -> str:
    """Format seconds in the unit that a person plans in."""
    for unit, length in (("days", DAY_S), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
