"""The parts of the experiment in one folder: made once, each whole or not at all.

before.jsonl, rows.jsonl, heldout.jsonl     texts: to heal on, to learn from, to be measured on
questions-train.jsonl, -heldout.jsonl       questions with the rules' answers
prompts-train.jsonl, -heldout.jsonl         the same as the teacher reads them
stores/text, stores/answers                 the teacher's records: of rows, of its own answers
stores/…-half                               of every second row
stores/heldout-text, heldout-answers        the same of what students are measured on
answers.jsonl                               the teacher's answers to the held-out questions
tokenizers/NAME                             the students'; `whole` is the teacher's
teacher/                                    a made-up one, for a smoke test
before/NAME-I.safetensors                   healed students, in bfloat16
teacher.json                                what the teacher itself is measured at
results*.jsonl                              a line for each student that was measured

Texts, questions and answers are split by module of the standard library: nothing of a held-out
module is in any other part.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import logitstore
from logitstore import open_store
from logitstore.moving.subset import subset
from tools import real_parts
from tools.demo.corpus import DOCUMENT_CHARS, Read, library_sources, rows_of, topics_of_language
from tools.demo.corpus import write_jsonl as write_texts
from tools.labels.parts import texts_of
from tools.labels.trim import trimmed
from tools.real.questions import Question, module_of, part_of, questions
from tools.real.settings import Scale, Setting

#: Of the modules, that each part is made of.
SHARES = {"before": 0.6, "rows": 0.25, "heldout": 0.15}
HELDOUT = "heldout"
#: Stores, by what they are captured from.
_SOURCES = {
    "text": "rows",
    "answers": "prompts-train",
    "heldout-text": "heldout",
    "heldout-answers": "prompts-heldout",
}
#: The foreign student's conversation: nothing but texts and an end.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
)


def prepare(folder: Path, scale: Scale) -> None:
    """Make everything but the healed students, unless it is there; fetch real parts if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    _texts(folder, scale)
    _questions(folder, scale)
    for name, source in _SOURCES.items():
        _capture(folder, name, source, scale)
    for name in ("text", "answers"):
        _half(folder, name)
    _answers(folder)
    for name, make in _tokenizers(folder, scale).items():
        _once(folder / "tokenizers" / name, lambda part, make=make: make().save_pretrained(part))


def teacher_of(folder: Path, scale: Scale) -> Path:
    """Return the folder of the teacher."""
    if scale.is_real:
        return real_parts.instruct_model()
    _once(folder / "teacher", lambda part: _made_up_teacher(folder, part))
    return folder / "teacher"


def store_path(folder: Path, name: str) -> Path:
    """Return the folder of a store."""
    return folder / "stores" / name


def before_file(folder: Path, student: str, number: int) -> Path:
    """Name the file of a healed student."""
    return folder / "before" / f"{student}-{number}.safetensors"


def start_of(folder: Path, setting: Setting, number: int) -> str:
    """Name the weights that students begin with: `new`, a digest, or nothing if there are none.

    Students are compared only with those of the same start.
    """
    if setting.student == "new":
        return "new"
    held = before_file(folder, setting.student, number)
    return hashlib.sha256(held.read_bytes()).hexdigest()[:12] if held.exists() else ""


def asked(folder: Path, part: str) -> list[Question]:
    """Read the questions of a part."""
    return [Question(**row) for row in read_jsonl(folder / f"questions-{part}.jsonl")]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a dataset."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- texts and questions ----


def _texts(folder: Path, scale: Scale) -> None:
    if all((folder / f"{name}.jsonl").exists() for name in SHARES):
        return
    halves = {name: size // 2 for name, size in scale.text_bytes.items()}
    prose = _split(topics_of_language(), halves)
    rest = {name: size - _size(prose[name]) for name, size in scale.text_bytes.items()}
    sources = _split(library_sources(), rest)
    for name in SHARES:
        rows = [row for text in (*prose[name], *sources[name]) for row in rows_of(text)]
        _once(folder / f"{name}.jsonl", lambda part, rows=rows: write_texts(part, rows))


def _split(documents: Iterable[tuple[str, Read]], sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Deal documents out by the hashes of their modules, until each part has so many bytes."""
    taken: dict[str, list[str]] = {name: [] for name in sizes}
    in_order = sorted(documents, key=lambda each: hashlib.sha256(each[0].encode()).digest())
    for name, read in in_order:
        is_prose = name.startswith("topics/")
        part = part_of(name if is_prose else module_of(name), SHARES)
        if _size(taken[part]) < sizes[part] and (text := read()).strip():
            taken[part].append(text[:DOCUMENT_CHARS])
    return taken


def _size(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _questions(folder: Path, scale: Scale) -> None:
    if (folder / "prompts-heldout.jsonl").exists():
        return
    by_part: dict[str, list[Question]] = {"train": [], HELDOUT: []}
    for each in questions(is_few=not scale.is_real):
        is_heldout = part_of(each.module, SHARES) == HELDOUT
        by_part[HELDOUT if is_heldout else "train"].append(each)
    for part, found in by_part.items():
        taken = found[: scale.prompts[part]]
        assert len(taken) == scale.prompts[part], f"{part}: {len(found):,} questions are too few"
        rows = [each._asdict() for each in taken]
        _once(folder / f"questions-{part}.jsonl", lambda to, rows=rows: _write(to, rows))
        prompts = [{"messages": [_said("user", each.prompt)]} for each in taken]
        _once(folder / f"prompts-{part}.jsonl", lambda to, rows=prompts: _write(to, rows))


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ---- stores ----


def _capture(folder: Path, name: str, source: str, scale: Scale) -> None:
    store = store_path(folder, name)
    if (store / "DONE").exists():
        return
    writes = {"generate": True, "max_new_tokens": scale.answer_tokens}
    logitstore.capture(
        teacher_of(folder, scale),
        str(folder / f"{source}.jsonl"),
        out=store,
        top_k=scale.top_k,
        logit_std=True,
        **(writes if source.startswith("prompts") else {}),
    )


def _half(folder: Path, name: str) -> None:
    half = store_path(folder, f"{name}-half")
    if (half / "DONE").exists():
        return
    rows = folder / f"{name}-half.txt"
    count = open_store(store_path(folder, name)).plan.rows
    rows.write_text("".join(f"{i}\n" for i in range(0, count, 2)))
    subset(store_path(folder, name), rows, half)


def _answers(folder: Path) -> None:
    """Keep the teacher's answers to the held-out questions as conversations, with the rules'."""
    store = open_store(store_path(folder, "heldout-answers"))
    found = []
    for row, question in enumerate(asked(folder, HELDOUT)):
        lines = [store.text(i) for i in store.row(row)]
        written = "".join(s.text for line in lines for s in line.segments if s.supervised).strip()
        if written:
            turns = [_said("user", question.prompt), _said("assistant", written)]
            found.append({"messages": turns, "rule": question.answer, "kind": question.kind})
    assert found, "the teacher answered nothing"
    _once(folder / "answers.jsonl", lambda part: _write(part, found))


# ---- tokenizers ----


def _tokenizers(folder: Path, scale: Scale) -> dict[str, Callable[[], Any]]:
    """Say how each tokenizer is made; the new student has the foreign one's."""
    from transformers import AutoTokenizer

    def whole() -> Any:
        return AutoTokenizer.from_pretrained(teacher_of(folder, scale))

    def pruned() -> Any:
        tokenizer = whole()
        return _trimmed(folder, teacher_of(folder, scale), tokenizer.chat_template, scale)

    def foreign() -> Any:
        source = real_parts.tokenizer("llama2") if scale.is_real else _made_up(folder)
        return _trimmed(folder, source, TEMPLATE, scale)

    return {"whole": whole, "pruned": pruned, "foreign": foreign}


def _trimmed(folder: Path, source: Path, template: str, scale: Scale) -> Any:
    """Load a tokenizer with a chat template; where sizes say so, cut down to what is used."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = template
    if scale.is_trimmed:
        used = trimmed(source, _used(folder, tokenizer))
        used.chat_template = template
        tokenizer = used
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _used(folder: Path, tokenizer: Any) -> list[str]:
    """List all texts that a student reads, conversations through its template."""
    texts = [text for name in SHARES for text in texts_of(folder, name)]
    for name in ("answers", "heldout-answers"):
        store = open_store(store_path(folder, name))
        for i in range(len(store)):
            segments = store.text(i).segments
            texts += [segment.text for segment in segments]
            texts.append("".join(segment.text for segment in segments))
    for row in [*read_jsonl(folder / "answers.jsonl"), *_conversations(folder)]:
        texts.append(tokenizer.apply_chat_template(row["messages"], tokenize=False))
    return texts


def _conversations(folder: Path) -> list[dict[str, Any]]:
    """Read what the student's template makes conversations of, with the teacher's answers."""
    store = open_store(store_path(folder, "answers"))
    prompts = read_jsonl(folder / "prompts-train.jsonl")
    found = []
    for row, each in enumerate(prompts):
        lines = [store.text(i) for i in store.row(row)]
        written = "".join(s.text for line in lines for s in line.segments if s.supervised)
        found.append({"messages": [*each["messages"], _said("assistant", written)]})
    return found


# ---- a smoke test's ----


def _made_up_teacher(folder: Path, made: Path) -> None:
    from logitstore.testing import tiny
    from tools.demo import models
    from tools.demo.settings import Shape

    texts = [*texts_of(folder, "before"), *tiny.corpus()]  # so that it has tokens to be cut away
    tokenizer = models.byte_bpe(texts, 700)
    # An untrained model with tied embeddings says again what it read last: here a word.
    tokenizer.chat_template = TEMPLATE.replace("\n\n", "\nIt is").replace("{{ bos_token }}", "")
    model = models.new_model(Shape(width=32, layers=3, vocabulary=600), tokenizer, 0)
    model.config.tie_word_embeddings = True
    model.tie_weights()  # type: ignore[no-untyped-call]
    models.save(made, model, tokenizer)


def _made_up(folder: Path) -> Path:
    from tools.demo import models

    made = folder / "foreign"
    tokenizer = models.byte_bpe(texts_of(folder, "rows"), 500)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(made)
    return made


def _once(made: Path, make: Callable[[Path], object]) -> None:
    """Make a file or folder under another name, then give it its own; not if it is there."""
    if made.exists():
        return
    made.parent.mkdir(parents=True, exist_ok=True)
    part = made.with_name(f"{made.name}.part")
    make(part)
    part.rename(made)
