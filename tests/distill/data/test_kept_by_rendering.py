"""A map that learnt from a store's text is kept for what the student's template writes of it."""

from pathlib import Path

import pytest

from distill.data.dataset import StoreDataset
from distill.data.maps import rendered_by
from logitstore.testing import tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.one_family import CHATML, instruct
from tests.kit.talks import TALKS, capture

#: Writes answers with a word in front if it is asked to.
LOUD = CHATML.replace("{{ m['content'] }}", "{{ m['content'] ~ (loud or '') }}")
TOOLS = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": LOUD}]


def template(source: object = LOUD, pad: str | None = None, **kwargs: object) -> ChatTemplate:
    tokenizer = instruct()
    tokenizer.chat_template = source
    if pad is not None:
        tokenizer.pad_token = pad
    return ChatTemplate.of(tokenizer, ByteTokenizer(tokenizer), kwargs=kwargs)


def test_whatever_changes_what_a_template_writes_changes_its_digest() -> None:
    made = [
        template(),
        template(loud="!"),
        template(loud="?"),
        template(CHATML),
        template({each["name"]: each["template"] for each in TOOLS}),
        template(pad="<|im_start|>"),
    ]
    assert len({rendered_by(each) for each in made}) == len(made)
    assert rendered_by(template(loud="!")) == rendered_by(template(loud="!"))
    assert rendered_by(None) is None


def test_a_learnt_map_is_counted_again_for_other_variables_of_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    teacher = tiny.unigram()
    teacher.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    tiny.save(tmp_path / "teacher", tiny.llama(len(teacher), seed=7), teacher)
    rows = [{"messages": talk} for talk in TALKS]
    store = capture(tmp_path / "teacher", rows, tmp_path / "store")
    student, kept = ByteTokenizer(instruct()), []
    for loud in ("", "", "!"):
        StoreDataset(store, student, ["mapped_kl"], template=template(loud=loud), map="counted")
        kept.append(len(list((tmp_path / "cache/maps").iterdir())))
    assert kept == [1, 1, 2]
