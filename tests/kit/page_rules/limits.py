"""The limits of FORMAT.md: for each, the last store within it and the first beyond it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitstore.format.seal import seal_bytes
from tests.kit.hostile import edit_spec, index_table, parquet, put_index
from tests.kit.page_rules.text_limits import TEXT_LIMITS
from tests.kit.page_rules.tools import (
    Change,
    Limit,
    about,
    body,
    content,
    hollow,
    members_of,
)

MIB = 1 << 20


def provenance(value: Callable[[bytes], Any]) -> Change:
    """Fill the provenance; `value` is given the bytes around it."""

    def change(store: Path) -> None:
        body(lambda b: b.update(provenance={"x": 0}))(store)
        around = (store / "store.json").read_bytes()
        body(lambda b: b.update(provenance={"x": value(around)}))(store)

    return change


def brackets(total: int) -> Change:
    return provenance(lambda raw: "[" * (total - raw.count(b"[") - raw.count(b"{")))


def quotes(total: int) -> Change:
    def texts(raw: bytes) -> list[str]:
        missing = total - raw.count(b'"')
        return [""] * (missing // 2 - 1) + ['"' * (missing % 2)]

    return provenance(texts)


def nested(depth: int) -> Change:
    def lists(raw: bytes) -> Any:
        value: Any = 0
        for _ in range(depth - 2):  # the file and the provenance are two
            value = [value]
        return value

    return provenance(lists)


def of_size(size: int) -> Change:
    return provenance(lambda raw: "x" * (size - len(raw) - 1))  # "…" for 0


def digits(count: int) -> Change:
    return provenance(lambda raw: 10 ** (count - 1))


def group_of_size(size: int) -> Change:
    def change(store: Path) -> None:
        about(lambda a: a["statuses"].update(x=0))(store)
        missing = size - len(members_of(store)["zarr.json"])
        about(lambda a: a["statuses"].update({"x" * (missing + 1): a["statuses"].pop("x")}))(store)
        assert len(members_of(store)["zarr.json"]) == size

    return change


def seal_of_size(size: int) -> Change:
    """A tokenizer of so many files that `DONE` has so many bytes."""

    def change(store: Path) -> None:
        digest = "0" * 64

        def sealed(names: list[str]) -> int:
            whole = ["store.json", "index.parquet", *(f"tokenizer/{n}" for n in names)]
            return len(seal_bytes(dict.fromkeys(whole, digest)))

        each = sealed(["0" * 200, "1" * 200]) - sealed(["0" * 200])
        count, more = divmod(size - sealed([]) - 1, each)  # no comma behind the last
        names = [f"{i:05d}" + "n" * 195 for i in range(count + 1)]
        more += 1
        # The last name makes up what is missing; a name has a length of its own of at least 1.
        names[-1] = "z" * max(more - (each - 200), 1)
        short = size - sealed(names)
        names[0] += "n" * max(short, 0)
        assert sealed(names) == size, (sealed(names), size)
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        for name in names:
            (store / "tokenizer" / name).touch()
        (store / "tokenizer" / "tokenizer.json").unlink()
        edit_spec(
            store, lambda b: b["content"]["tokenizer"].update(files=dict.fromkeys(names, empty))
        )
        assert (store / "DONE").stat().st_size == size

    return change


def index_of_size(size: int) -> Change:
    """An index whose statuses make it so long; a name that does not compress takes the room."""

    def change(store: Path) -> None:
        options = {"compression": "none", "use_dictionary": False, "row_group_size": 1 << 20}

        def encoded(length: int) -> bytes:
            statuses = json.dumps({"empty": 1, "ok": 2, "x" * length: 0}, sort_keys=True)
            return parquet(index_table(store, statuses=[statuses]), **options)

        length = size - len(encoded(0))
        for _ in range(5):  # lengths of lengths change too
            length += size - len(encoded(length))
        data = encoded(length)
        assert len(data) == size
        put_index(store, data)

    return change


def rows_of_shards(last: int) -> Change:
    """An unfinished store whose second shard, which is not there, ends at this row."""

    def change(store: Path) -> None:
        edit_spec(store, lambda b: b["plan"].update(boundaries=[0, 3, last]))
        for name in ("DONE", "index.parquet"):
            (store / name).unlink()

    return change


def spec_limit(field: str, within: Any, beyond: Any) -> Limit:
    part, name = field.split(".")
    return Limit(
        hollow(**{part: {name: within}}),
        hollow(**{part: {name: beyond}}),
        f"{field} cannot be",
        field,
    )


#: Beside chunks of records, a copied array keeps the stored bytes of a sequence up.
HALF = {"records_per_chunk": 60_000}
CHUNKS = {"temperatures": [2.0] * 14}  # 18 + 4·14 = 74 bytes a record
LIMITS: dict[str, Limit] = {
    "brackets of JSON": Limit(
        brackets(20_000), brackets(20_001), "holds more values", "brackets of JSON"
    ),
    "quotes of JSON": Limit(quotes(50_000), quotes(50_001), "holds more values", "quotes of JSON"),
    "depth of JSON": Limit(nested(64), nested(65), "nested too deeply", "depth of JSON"),
    "digits of a number": Limit(digits(40), digits(41), "a number has 41", "length of a number"),
    "bytes of store.json": Limit(
        of_size(8 * MIB), of_size(8 * MIB + 1), "more than 8,388,608 bytes", "store.json is not too"
    ),
    "bytes of DONE": Limit(
        seal_of_size(MIB),
        seal_of_size(MIB + 1),
        "more than 1,048,576 bytes",
        "DONE is not too large",
    ),
    "bytes of a group": Limit(
        group_of_size(65_536), group_of_size(65_537), "65537 bytes", "the group is not too large"
    ),
    "bytes of the index": Limit(
        index_of_size(69_632), index_of_size(69_633), "more than 69,632", "index.parquet is not too"
    ),
    "rows": Limit(
        rows_of_shards(2**48 - 1), rows_of_shards(2**48), "not row numbers", "boundaries"
    ),
    "V": spec_limit("teacher.vocab_size", 2**32 - 1, 2**32),
    "the least V": spec_limit("teacher.vocab_size", 1, 0),
    "size of the tokenizer": spec_limit("tokenizer.size", 2**32 - 1, 2**32),
    "the least size of a tokenizer": spec_limit("tokenizer.size", 1, 0),
    "eos_ids": Limit(
        content("tokenizer", eos_ids=[999]),
        content("tokenizer", eos_ids=[1000]),
        "not all below",
        "eos_ids below size",
    ),
    "K": spec_limit("capture.top_k", 65_535, 65_536),
    "draws": spec_limit("capture.draws", 65_535, 65_536),
    "seed": spec_limit("capture.seed", 2**32 - 1, 2**32),
    "temperatures": spec_limit("capture.temperatures", [2.0] * 64, [2.0] * 65),
    "records of a chunk": spec_limit("codec.records_per_chunk", 65_536, 65_537),
    "entries of a chunk": spec_limit("codec.entries_per_chunk", 1_048_576, 1_048_577),
    "bytes of a sequence": Limit(  # of 18 bytes a record: 2 MiB
        hollow(116_508, codec=HALF),
        hollow(116_509, codec=HALF),
        "they become 2,097,162",
        "sequence is no",
    ),
    "bytes of the chunks of a sequence": Limit(  # 4 MiB
        hollow(3, codec={"records_per_chunk": 56_679}, capture=CHUNKS),
        hollow(3, codec={"records_per_chunk": 56_680}, capture=CHUNKS),
        "they become 2,097,168",
        "chunks of a sequence are no bomb",
    ),
    "32 times the stored bytes": Limit(  # 4 stored bytes of 126, and of 130
        hollow(120_000, copied=["token_ids"], codec=HALF, capture={"temperatures": [2.0] * 27}),
        hollow(120_000, copied=["token_ids"], codec=HALF, capture={"temperatures": [2.0] * 28}),
        "they become 15,600,000",
        "a sequence is no bomb",
    ),
    **TEXT_LIMITS,
}
