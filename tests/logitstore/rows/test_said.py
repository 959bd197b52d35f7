"""What a conversation says of itself is obeyed, or refused by name; no turn is lost in silence."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from logitstore.errors import InputError, MismatchError
from logitstore.rows.dataset import load_rows
from logitstore.testing import tiny
from logitstore.text.conversation import Conversation, read_messages
from tests.kit import templates
from tests.kit.talks import capture, dataset_of, trainer_of
from tests.kit.templates import turns

TALK = turns("Hi!", "The first.", "And?", "The second.", "Why?", "The third.")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = templates.chatml()
    return tiny.save(tmp_path_factory.mktemp("m"), tiny.llama(len(tokenizer)), tokenizer)


def said(**keys: Any) -> list[dict[str, Any]]:
    """The talk, of which the second answer says something of itself."""
    return [*TALK[:3], TALK[3] | keys, *TALK[4:]]


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize(("value", "is_trained_on"), [(0, False), (0.0, False), (1, True)])
def test_a_turn_that_says_no_is_context(key: str, value: float, is_trained_on: bool) -> None:
    for given in (value, bool(value)):
        talk = said(**{key: given})
        chosen = Conversation.choose(read_messages(talk, "row 0"), "all")
        assert chosen.supervised == ((1, 3, 5) if is_trained_on else (1, 5))
        assert list(chosen.messages) == talk
    no = [*TALK[:5], TALK[5] | {key: value}]
    last = Conversation.choose(read_messages(no, "row 0"), "last")
    assert last.supervised == ((5,) if is_trained_on else ())


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"weight": 0.5}, r"has weight 0\.5, but a turn is trained on or not: expected 0 or 1"),
        ({"weight": -1}, "has weight -1"),
        ({"weight": float("nan")}, "has weight nan"),
        ({"train": "no"}, "has train 'no', but expected true or false"),
        ({"weight": 0, "train": True}, "has weight 0 and train True, which say the opposite"),
        ({"train": True, "loss": False}, "has train True and loss False, which say the opposite"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"row 7: message 3: {why}"):
        read_messages(said(**keys), "row 7")


def test_another_turn_may_not_ask_to_be_trained_on() -> None:
    assert read_messages([TALK[0] | {"weight": 1}, *TALK[1:]], "r")  # an exporter's default
    assert read_messages([TALK[0] | {"train": False}, *TALK[1:]], "r")
    for key in ("train", "loss"):
        with pytest.raises(InputError, match=f"message 0: has {key} True, but only turns of the a"):
            read_messages([TALK[0] | {key: True}, *TALK[1:]], "r")


def test_a_turn_that_is_not_trained_on_has_no_record_and_is_read_by_the_others(
    teacher: Path, tmp_path: Path
) -> None:
    every = capture(teacher, [{"messages": TALK}], tmp_path / "all")
    some = capture(teacher, [{"messages": said(weight=0)}], tmp_path / "some")
    assert some.text(0).supervised_bytes == b"The first.The third."
    kept = [t for t in range(len(every[0])) if not _is_second(every, t)]
    assert some[0].token_ids.tolist() == every[0].token_ids[kept].tolist()
    # The others are predicted with it in sight, as before.
    assert some[0].token_logprob.tolist() == every[0].token_logprob[kept].tolist()
    example = dataset_of(teacher, some)[0]
    assert example.is_label.sum() == len(kept)
    assert len(example.token_ids) == len(dataset_of(teacher, every)[0].token_ids)
    assert trainer_of(teacher, some, tmp_path / "o").evaluate()["eval_covered_fraction"] == 1


def _is_second(store: Any, t: int) -> bool:
    """Whether a record is of the second answer, its end with it."""
    start, stop = len("The first."), len("The first.The second.")
    place = int(store[0].byte_starts[t])
    is_end = int(store[0].byte_lengths[t]) == 0
    return start < place <= stop if is_end else start <= place < stop


def test_a_store_that_did_not_obey_is_not_gone_on_with(teacher: Path, tmp_path: Path) -> None:
    """One begun before messages were obeyed has other records of the same rows."""
    store = capture(teacher, [{"messages": said(weight=0)}], tmp_path / "s")
    assert store.spec.rendering["obeys"] == ["messages"]
    plain = capture(teacher, [{"messages": TALK}], tmp_path / "plain")
    assert "obeys" not in plain.spec.rendering
    with pytest.raises(MismatchError):
        capture(teacher, [{"messages": said(weight=0)}], tmp_path / "plain")


# Who speaks


def test_sharegpt_is_read_as_what_it_stands_for(tmp_path: Path) -> None:
    """Keys as TRL renames them; `human` and `gpt`, which TRL leaves, by their meaning."""
    row = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi!"},
            {"from": "gpt", "value": "Hello."},
            {"from": "tool", "value": "3"},
            {"from": "assistant", "value": "Three."},
        ]
    }
    rows = load_rows(datasets.Dataset.from_list([row]))
    assert (rows.kind, rows.columns) == ("conversation", ("conversations",))
    assert rows.dialogue(0).messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Three."},
    ]


def test_the_keys_of_sharegpt_are_those_that_trl_renames() -> None:
    """In whatever column: `maybe_convert_to_chatml` does so in all columns of messages."""
    trl = pytest.importorskip("trl")
    written = [{"from": "user", "value": "Hi!"}, {"from": "assistant", "value": "Hello."}]
    for row in (
        {"messages": written},
        {"conversations": written},
        {"prompt": written[:1], "completion": written[1:]},
    ):
        theirs = trl.data_utils.maybe_convert_to_chatml(
            {k: [dict(m) for m in v] for k, v in row.items()}
        )
        expected = [m for value in theirs.values() for m in value]
        assert load_rows(datasets.Dataset.from_list([row])).dialogue(0).messages == expected


@pytest.mark.parametrize("role", ["Assistant", "gpt", "bot", "model", "ASSISTANT", "User", "human"])
def test_a_role_by_another_name_is_refused(role: str, teacher: Path, tmp_path: Path) -> None:
    """No template knows it, so every answer was lost: a store without a record, exit status 0."""
    meant = "user" if role in ("User", "human") else "assistant"
    talk = [m | {"role": role} if m["role"] == meant else m for m in TALK]
    number = 0 if meant == "user" else 1
    with pytest.raises(
        InputError,
        match=f"row 1: messages: message {number}: has the role '{role}'.*Write '{meant}'",
    ):
        capture(teacher, [{"messages": TALK}, {"messages": talk}], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_who_speaks_in_sharegpt_must_be_known() -> None:
    with pytest.raises(InputError, match=r"message 0: has the role 'bing'.*Rename it"):
        read_messages([{"from": "bing", "value": "Hi!"}], "row 0")
    with pytest.raises(InputError, match=r"message 0: has the role 'Human'.*Write 'user'"):
        read_messages([{"from": "Human", "value": "Hi!"}], "row 0")
    own = [{"role": "critic", "content": "Hm."}]
    assert read_messages(own, "row 0") == own  # a template may know it
