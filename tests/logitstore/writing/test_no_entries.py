"""A record may have no entries: its token and scalars alone, or with draws from everything."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given

from logitstore import open_store
from logitstore.errors import InputError
from logitstore.format.fields import DRAWS
from logitstore.info import facts, info_text
from logitstore.testing import stores
from logitstore.writing.encode import encode_records

PIECES = ["ein ", "Wort"]


def headless(draws: int, **changed: Any) -> Any:
    of = stores.spec(top_k=0, draws=draws)
    raw = stores.raw_records(of, PIECES, np.random.default_rng(0))
    return of, dataclasses.replace(raw, **changed)


@pytest.mark.parametrize("draws", [0, 7])
def test_a_store_without_entries_is_read_and_all_its_mass_is_tail(
    tmp_path: Path, draws: int
) -> None:
    of = stores.write(tmp_path / "s", stores.spec(top_k=0, draws=draws, temperatures=(2.0,)))
    store = open_store(tmp_path / "s")
    for row, records in enumerate(store):
        assert len(records.entry_logprobs) == 0 == records.padded().mask.size
        assert (records.tail_logmass == 0).all()
        pieces = stores.row_pieces(row)
        if pieces:
            raw = stores.raw_records(of, pieces, np.random.default_rng(1000 + row))
            np.testing.assert_array_equal(records.token_ids, raw.token_ids)
            np.testing.assert_allclose(records.entropy, raw.entropy, atol=1 / 512)
        assert (records.sample_ids is None) == (draws == 0)
    assert store.fidelity.tail_mean == 1
    assert store.largest_tail(0) == 1


def test_zarr_opens_a_shard_without_entries(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", stores.spec(top_k=0, draws=3))
    path = tmp_path / "s" / "shards" / "00000.zarr.zip"
    with warnings.catch_warnings():  # zarr remarks on rows.parquet, which is no array
        warnings.simplefilter("ignore")
        group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
        arrays = {name: array[:] for name, array in group.arrays()}
    assert arrays["entry_logprobs"].shape == arrays["entry_ids"].shape == (0,)
    assert arrays["draw_total"].sum() == arrays["sample_counts"].sum()


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_a_token_drawn_more_often_than_a_byte_can_say_is_there_again(counts: list[int]) -> None:
    n = len(PIECES) + 1
    ids = np.arange(len(counts)) * 3
    of, raw = headless(
        sum(counts),
        draw_count=np.full(n, len(counts)),
        sample_ids=np.tile(ids, (n, 1)),
        sample_counts=np.tile(counts, (n, 1)),
    )
    encoded = encode_records(raw, of)
    draw_count = encoded.fields["draw_count"]
    first = slice(0, int(draw_count[0]))
    again, times = encoded.fields["sample_ids"][first], encoded.fields["sample_counts"][first]
    assert (np.diff(again.astype(int)) >= 0).all()
    assert times.min() >= 1
    assert np.bincount(again, times, minlength=ids[-1] + 1)[ids].tolist() == counts
    assert encoded.total(DRAWS) == draw_count.sum()


@pytest.mark.parametrize(
    ("count", "says"), [(0, "a count below 1"), (255 * 3, "a record has 6 distinct draws")]
)
def test_draws_that_the_spec_has_no_room_for_are_refused(count: int, says: str) -> None:
    n = len(PIECES) + 1
    of, raw = headless(
        5,
        draw_count=np.full(n, 2),
        sample_ids=np.tile([1, 2], (n, 1)),
        sample_counts=np.full((n, 2), count),
    )
    with pytest.raises(InputError, match=says):
        encode_records(raw, of)


def test_info_says_that_there_are_no_entries(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", stores.spec(top_k=0, draws=3))
    found = facts(open_store(tmp_path / "s"))
    assert "no entries, 3 draws from the tail" in info_text(found)
