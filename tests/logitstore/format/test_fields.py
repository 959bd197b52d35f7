"""A record's fields are one table: what is encoded, stored and decoded is what it says."""

from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import get_args, get_type_hints

import numpy as np
import pytest

from logitstore import open_store
from logitstore.errors import InputError
from logitstore.format.fields import AXIS, FIELD, FIELDS, arrays_of, fields_of, no_records
from logitstore.format.spec import StoreSpec
from logitstore.records import TokenRecords
from logitstore.testing import stores
from logitstore.writing.encode import RawRecords, encode_records

FULL = {"temperatures": (2.0, 4.0), "logit_std": True, "draws": 5}
SPECS = {
    "plain": stores.spec(),
    "values only": stores.spec(ids=False),
    "every block": stores.spec(**FULL),  # type: ignore[arg-type]
    "draws as they are": stores.spec(**FULL, layout=1),  # type: ignore[arg-type]
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> StoreSpec:
    return SPECS[request.param]


def test_the_table_has_every_field_of_raw_and_of_decoded_records() -> None:
    decoded = {f.name for f in fields(TokenRecords)} - {"sidecar"}  # which lies in another file
    assert decoded == set(FIELD) == {f.name for f in fields(RawRecords)}


def test_the_table_has_the_types_of_decoded_records() -> None:
    """What not every store has may be None, and nothing else."""
    always = fields_of(SPECS["values only"])
    hints = get_type_hints(TokenRecords)
    for name, hint in ((name, hints[name]) for name in FIELD):
        is_optional = isinstance(hint, UnionType)
        array = get_args(hint)[0] if is_optional else hint
        dtype = get_args(get_args(array)[1])[0]
        assert np.dtype(dtype) == FIELD[name].decoded, name
        assert is_optional == (FIELD[name] not in always), name


def test_records_are_encoded_and_decoded_in_the_types_of_the_table(
    spec: StoreSpec, tmp_path: Path
) -> None:
    stores.write(tmp_path / "s", spec)
    store = open_store(tmp_path / "s")
    held = {field.name for field in fields_of(spec)}
    records, encoded = store[0], store.encoded(0)
    assert encoded.fields.keys() == held
    for field in FIELDS:
        values = getattr(records, field.name)
        assert (values is not None) == (field.name in held)
        if values is not None:
            assert values.dtype == field.decoded, field.name
            assert encoded.fields[field.name].dtype == field.encoded, field.name
            assert len(values) == encoded.total(field.axis), field.name


def test_a_shard_has_the_arrays_of_the_table(spec: StoreSpec, tmp_path: Path) -> None:
    stores.write(tmp_path / "s", spec)
    names = open_store(tmp_path / "s").shard(0).archive.names
    found = {name.removesuffix("/zarr.json") for name in names if name.endswith("/zarr.json")}
    assert found == {array.name for array in arrays_of(spec)}
    assert found <= AXIS.keys()


def test_what_is_stored_is_encoded_the_same_way_again(spec: StoreSpec, tmp_path: Path) -> None:
    stores.write(tmp_path / "s", spec)
    raw = stores.raw_records(spec, stores.row_pieces(0), np.random.default_rng(1000))
    encoded, stored = encode_records(raw, spec), open_store(tmp_path / "s").encoded(0)
    for name, values in encoded.fields.items():
        np.testing.assert_array_equal(stored.fields[name], values, err_msg=name)


def test_no_records_have_every_field_with_the_type_that_readers_give() -> None:
    nothing = no_records()
    assert len(nothing) == 0
    assert {f.name: getattr(nothing, f.name).dtype for f in FIELDS} == {
        f.name: np.dtype(f.decoded) for f in FIELDS
    }


@pytest.mark.parametrize("lacking", ["sample_ids", "sample_counts", "draw_count"])
def test_draws_are_given_whole_or_not_at_all(lacking: str) -> None:
    spec = SPECS["every block"]
    raw = stores.raw_records(spec, ["a"], np.random.default_rng(0))
    with pytest.raises(InputError, match="give all three"):
        encode_records(replace(raw, **{lacking: None}), spec)
