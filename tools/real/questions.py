"""Extractive questions over documentation paragraphs of the standard library, made by rules.

A paragraph is what `help()` shows of a function or class: its head, then the beginning of its
docstring. Every question asks for something that stands in it, word for word:

    version    "Changed in version 3.4: …", also of the language's topics     the number
    raises     "Raises ValueError if …"                         the exception's name
    default    `timeout` of `def wait(self, timeout=None)`      the signature's default value
    base       `class Pool(Executor)`                           the class that it derives from
    returns    "Return the absolute path of …"                  the sentence's phrase
    argument   `def move(src, dst)`                             the first argument's name

The sources are parsed and never imported. A paragraph has two questions at most, of the rarest
kinds that it allows. Defaults that are not None come before those that are, or a model could learn
to answer `None`. Which are taken depends on hashes alone, so that the same Python gives the same
set. Questions are split by module: those of a held-out module are in no other set.
"""

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple

from tools.demo.corpus import library_sources, topics_of_language

#: Of a docstring, in a paragraph: at most these first lines, and characters with the head.
_DOC_LINES, _PARAGRAPH_CHARS = 8, 480
#: Of an answer that is a phrase.
_ANSWER_WORDS, _ANSWER_CHARS = 12, 80
#: Of one module, so that no single one decides.
_OF_MODULE = 100
#: Of one paragraph.
_OF_PARAGRAPH = 2
_FEW = (
    "bisect.py",
    "calendar.py",
    "queue.py",
    "shutil.py",
    "socket.py",
    "textwrap.py",
    "zipapp.py",
)
#: The rarest first.
_KINDS = ("version", "raises", "default", "base", "returns", "argument")

_VERSION = re.compile(r"\b(?:New|Added|Changed|Deprecated) (?:in|since) version (\d+\.\d+)")
_CHANGED = re.compile(
    r"\s*(?P<verb>Added|Changed|Deprecated) in version (?P<version>\d+\.\d+): "
    r"(?P<what>[^.]{10,120})\."
)
_DIRECTIVE = re.compile(r"\.\. (?:versionadded|versionchanged|deprecated):: (\d+\.\d+)")
_EXCEPTION = r"([A-Z]\w*(?:Error|Exception|Exit|Interrupt|Iteration))\b"
_RAISES = re.compile(r"\b[Rr]ais(?:es?|ing)(?: an?)? (?:exception )?`*" + _EXCEPTION)
_RETURNS = re.compile(r"^Returns? (?:an? |the )?(\S[^.:;(\n]{4,})", re.MULTILINE)


class Question(NamedTuple):
    """A question, with the paragraph that answers it.

    Attributes:
        module: The top-level module that it is about.
        kind: The rule that made it.
        paragraph: The text that it is asked over.
        question: The question.
        answer: The rule's answer; it stands in the paragraph.
    """

    module: str
    kind: str
    paragraph: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What a model is asked."""
        return f"{self.paragraph}\n\n{self.question} Answer with a name or a few words of the text."


class _Subject(NamedTuple):
    """A function or class with its paragraph."""

    name: str
    node: "ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef"
    head: str
    doc: str

    @property
    def paragraph(self) -> str:
        return f"{self.head}\n{self.doc}"


def questions(*, is_few: bool = False) -> list[Question]:
    """Make all questions, in the order of their hashes, at most so many of a module.

    Args:
        is_few: Take a few modules alone, for a smoke test: to parse the library takes seconds.
    """
    found: dict[str, list[Question]] = {}
    for name, read in topics_of_language():
        found[name] = list(_of_topic(name, read()))
    for name, read in library_sources():
        module = module_of(name)
        if is_few and name not in _FEW:
            continue
        for each in _of_source(module, read()):
            found.setdefault(module, []).append(each)
    taken = [q for of_module in found.values() for q in sorted(of_module, key=_hash)[:_OF_MODULE]]
    return sorted(taken, key=_hash)


def module_of(name: str) -> str:
    """Name the top-level module or package of a source file, as a path below the library."""
    return name.split("/")[0].removesuffix(".py")


def part_of(module: str, shares: dict[str, float]) -> str:
    """Put a module into one of some parts, by its hash.

    Args:
        module: Its name.
        shares: Of each part; together 1.
    """
    place = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4]) / 2**32
    for part, share in shares.items():
        if place < share:
            return part
        place -= share
    return list(shares)[-1]


def _hash(question: Question) -> bytes:
    return hashlib.sha256("\0".join(question).encode()).digest()


def _of_source(module: str, source: str) -> Iterator[Question]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for subject in _subjects(tree.body, module):
        made = ((kind, _RULES[kind](subject)) for kind in _KINDS)
        fair = ((kind, asked) for kind, asked in made if asked and _is_fair(asked[1], subject))
        for kind, asked in islice(fair, _OF_PARAGRAPH):
            yield Question(module, kind, subject.paragraph, *asked)


def _of_topic(name: str, text: str) -> Iterator[Question]:
    """Ask when things changed, over the paragraph that says so and the one before it."""
    paragraphs = [p.strip("\n") for p in text.split("\n\n")]
    for before, here in pairwise(paragraphs):
        found = _CHANGED.match(here)
        paragraph = f"{before}\n\n{here}"
        if found is not None and len(paragraph) <= _PARAGRAPH_CHARS:
            what = " ".join(found.group("what").split())
            asked = f"In which version was this {found.group('verb').lower()}: {what}?"
            yield Question(name, "version", paragraph, asked, found.group("version"))


def _is_fair(answer: str, subject: _Subject) -> bool:
    """Tell whether an answer is short, and stands in the paragraph."""
    return (
        0 < len(answer) <= _ANSWER_CHARS
        and "\n" not in answer
        and len(answer.split()) <= _ANSWER_WORDS
        and answer in subject.paragraph
    )


def _subjects(body: Iterable[ast.stmt], prefix: str) -> Iterator[_Subject]:
    """Yield all public functions, methods and classes that have a docstring."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        doc = ast.get_docstring(node)
        head = _head(node)
        if doc is not None and len(doc) >= 20:
            lines = "\n".join(f"    {line}".rstrip() for line in doc.splitlines()[:_DOC_LINES])
            room = _PARAGRAPH_CHARS - len(head)
            if room > 60:
                yield _Subject(name, node, head, _whole_lines(lines, room))
        if isinstance(node, ast.ClassDef):
            yield from _subjects(node.body, name)


def _whole_lines(text: str, room: int) -> str:
    """Cut a text at the end of a line so that it fits; a longer first line anywhere."""
    if len(text) <= room:
        return text
    end = text.rfind("\n", 0, room)
    return text[: end if end > 0 else room]


def _head(node: Any) -> str:
    """Write the line that begins a function or class, without its decorators."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    return f"def {node.name}({ast.unparse(node.args)})"


# ---- rules ----

Asked = tuple[str, str]


def _version(subject: _Subject) -> Asked | None:
    found = _VERSION.search(subject.doc) or _DIRECTIVE.search(subject.doc)
    if found is None:
        return None
    what = found.group(0).lower()
    verb = next((verb for verb in ("changed", "deprecated") if verb in what), "added")
    return f"In which version was {subject.node.name} {verb}?", found.group(1)


def _raises(subject: _Subject) -> Asked | None:
    found = {*_RAISES.findall(subject.doc)}
    if len(found) != 1:  # of several, none is the answer
        return None
    return f"Which exception does {subject.node.name} raise?", found.pop()


def _default(subject: _Subject) -> Asked | None:
    if isinstance(subject.node, ast.ClassDef):
        return None
    arguments = subject.node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(positional[::-1], arguments.defaults[::-1], strict=False)]
    pairs += [
        (a, d)
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if d is not None
    ]
    pairs = [each for each in pairs if not _is_none(each[1])] or pairs
    if not pairs:
        return None
    which = int.from_bytes(hashlib.sha256(subject.name.encode()).digest()[:4]) % len(pairs)
    argument, default = pairs[which]
    return f"What is the default of {argument.arg}?", ast.unparse(default)


def _is_none(default: ast.expr) -> bool:
    return isinstance(default, ast.Constant) and default.value is None


def _base(subject: _Subject) -> Asked | None:
    if not isinstance(subject.node, ast.ClassDef) or len(subject.node.bases) != 1:
        return None
    return f"Which class does {subject.node.name} derive from?", ast.unparse(subject.node.bases[0])


def _returns(subject: _Subject) -> Asked | None:
    found = _RETURNS.search("\n".join(line.strip() for line in subject.doc.splitlines()))
    if found is None:
        return None
    phrase = found.group(1).strip().rstrip(",")
    return f"What does {subject.node.name} return?", phrase


def _argument(subject: _Subject) -> Asked | None:
    if isinstance(subject.node, ast.ClassDef):
        return None
    names = [a.arg for a in [*subject.node.args.posonlyargs, *subject.node.args.args]]
    names = [name for name in names if name not in ("self", "cls")]
    if not names:
        return None
    return f"What is the first argument of {subject.node.name} called?", names[0]


_RULES: dict[str, Callable[[_Subject], Asked | None]] = {
    "version": _version,
    "raises": _raises,
    "default": _default,
    "base": _base,
    "returns": _returns,
    "argument": _argument,
}
