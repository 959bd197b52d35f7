"""`--push_to_hub` uploads the card of the run, and a hub that is not there is told at once."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from logitstore.errors import StorageError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit import fake_hub
from tests.kit.commands import Run
from tests.kit.fake_hub import Hub
from tests.kit.rows import texts_file
from tests.kit.students import ragged_rows, trainer_of

#: How `huggingface_hub` hands bytes to its client, which would have them otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
KEY, TOKEN = "models/me/student", "hf_a_token_that_nobody_may_see"
OURS = "A student trained from a store of its teacher's probabilities by `distill train`."


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub.for_client(monkeypatch, TOKEN) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    tokenizer = tiny.byte_bpe()
    teacher = tiny.llama(len(tokenizer), seed=7)
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), tmp_path / "t")


@pytest.fixture
def typed(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of two steps from a store of its own student."""
    import logitstore

    monkeypatch.chdir(tmp_path)
    texts_file(tmp_path / "rows.jsonl", tiny.corpus()[36:40])
    logitstore.capture(teacher, "rows.jsonl", "s", top_k=8, self_test=False)
    words = ["train", "--model_name_or_path", str(teacher), "--store", "s", "--use_cpu"]
    words += ["--output_dir", "out", "--max_steps", "1", "--save_strategy", "no"]
    return [*words, "--push_to_hub", "--hub_model_id", "me/student"]


def test_a_run_pushes_its_own_card_with_its_results(hub: Hub, run: Run, typed: list[str]) -> None:
    status, _, err = run(*typed)
    assert status == 0, err
    there = hub.repos[KEY]
    card = there["README.md"].decode()
    assert OURS in card
    assert card == Path("out/README.md").read_text()
    assert "| steps | 1 |" in card
    assert {"config.json", "model.safetensors", "results.json", "tokenizer.json"} <= set(there)
    assert not any(name.endswith((".bin", ".pt")) for name in there)
    assert TOKEN.encode() not in b"".join(there.values())


def test_a_trainer_of_python_pushes_that_card_too(
    hub: Hub, store: FakeStore, tmp_path: Path
) -> None:
    student = tiny.llama(len(tiny.byte_bpe()))
    trainer = trainer_of(
        student, store, tmp_path / "out", max_steps=1, push_to_hub=True, hub_model_id="me/student"
    )
    trainer.train()
    trainer.push_to_hub()
    card = hub.repos[KEY]["README.md"].decode()
    assert OURS in card
    assert "CE &#43; uld" in card
    assert "generated_from_trainer" not in card


def test_a_hub_that_is_not_there_is_told_before_the_first_step(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.point_at(monkeypatch, "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"^--push_to_hub me/student: the hub cannot be reached"):
        trainer_of(
            tiny.llama(len(tiny.byte_bpe())), store, tmp_path / "out",
            push_to_hub=True, hub_model_id="me/student",
        )  # fmt: skip
    assert time.monotonic() - started < 60


def test_a_hub_that_goes_away_costs_the_push_and_nothing_else(
    hub: Hub, store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tiny.llama(len(tiny.byte_bpe()))
    trainer = trainer_of(
        student, store, tmp_path / "out", max_steps=1, push_to_hub=True, hub_model_id="me/student"
    )
    fake_hub.point_at(monkeypatch, "http://127.0.0.1:9")
    said = r"^hf://me/student: the hub cannot be reached .*run `distill push .* hf://me/student`\.$"
    with pytest.raises(StorageError, match=said):
        trainer.push_folder()
