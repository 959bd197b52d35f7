"""Rows that are taken along are read elsewhere as they are here, under their own numbers."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from logitstore.errors import InputError
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.part import Part
from tests.kit.rows import rows_file

COUNT = 40
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"text {i}" if i != 7 else None} for i in range(COUNT)],
    "prompt_completion": [
        {"prompt": f"p{i}", "completion": f"c{i}", "teacher_prompt": f"t{i}" if i % 2 else None}
        for i in range(COUNT)
    ],
    "conversation": [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"a{i}", "weight": i % 2},
            ],
            "tools": [{"name": i}],
        }
        for i in range(COUNT)
    ],
    "tokens": [{"input_ids": [1, 2, i], "attention_mask": [1, 1, i % 2]} for i in range(COUNT)],
}


def read(rows: Rows, i: int) -> Any:
    if rows.kind == "conversation":
        return rows.dialogue(i), rows.teacher_dialogue(i)
    if rows.kind == "tokens":
        return repr(rows.documents(i))
    return rows.segments(i), rows.teacher_segments(i)


@pytest.mark.parametrize("places", [range(5, 12), [0, 6, 7, 39]], ids=["range", "spread"])
@pytest.mark.parametrize("kind", ROWS)
def test_a_part_is_read_elsewhere_as_the_whole_is_here(
    kind: str, places: Any, tmp_path: Path
) -> None:
    file = rows_file(tmp_path / "rows.jsonl", *ROWS[kind])
    here = load_rows(str(file), private=True)
    sent = pickle.dumps(Part.of(here, np.array(places)))
    wanted = [(here.where(i), read(here, i)) for i in places]
    settings = (here.kind, len(here), here.columns, here.private, here.survey.obeys)
    file.unlink()  # another machine does not have it
    there = pickle.loads(sent).rows()
    assert [(there.where(i), read(there, i)) for i in places] == wanted
    assert (there.kind, len(there), there.columns, there.private, there.survey.obeys) == settings
    assert there.files == []
    with pytest.raises(IndexError, match="rows 13 to 13 are not in this part"):
        read(there, 13)


def test_of_a_part_no_more_is_sent_than_its_rows() -> None:
    whole = datasets.Dataset.from_dict({"text": [f"{i} " + "x" * 1000 for i in range(1000)]})
    sent = pickle.dumps(Part.of(load_rows(whole), np.arange(500, 503)))
    assert len(sent) < 3 * 1100 + 4000


def test_rows_of_several_files_keep_their_names(tmp_path: Path) -> None:
    files = [rows_file(tmp_path / f"{i}.jsonl", {"text": "a"}, {"text": "b"}) for i in range(3)]
    part = Part.of(load_rows([str(file) for file in files]), np.array([3]))
    assert part.rows().where(3) == f"{files[1]}: row 1"


def test_a_row_that_is_wrong_is_named_there_too(tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", *ROWS["tokens"], {"input_ids": [1], "labels": [1, 2]})
    part = Part.of(load_rows(str(file)), np.array([COUNT]))
    with pytest.raises(InputError, match=rf"rows\.jsonl: row {COUNT}"):
        part.rows().documents(COUNT)
