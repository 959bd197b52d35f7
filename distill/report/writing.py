"""What `distill evaluate --samples` kept, prompt by prompt, one student below the other."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from distill.report.figures import colour
from distill.report.metrics import shown_name
from logitstore.console.counts import counted
from logitstore.console.html_document import clipped_text

#: Of the page's < 2 MB; of one text; and of how many prompts.
_ROOM_BYTES, _CHARACTERS, _PROMPTS = 600_000, 1200, 12

#: Row, prompt, and what the dataset has there.
_Asked = tuple[int, str, str]


def samples_html(contenders: Sequence[Mapping[str, Any]]) -> str:
    """Make a card for each prompt, with the answers of the contenders.

    Of one with several seeds, the first that was asked.
    """
    asked: dict[_Asked, dict[int, str]] = {}
    for i, contender in enumerate(contenders):
        for run in contender["runs"]:
            for key, answer in _samples(run):
                asked.setdefault(key, {}).setdefault(i, answer)
    cards, room = [], _ROOM_BYTES
    for key in sorted(asked)[:_PROMPTS]:
        made = _card(contenders, key, asked[key])
        room -= len(made.encode())
        if room < 0:
            break
        cards.append(made)
    if not asked:
        return (
            '<p class="none">Nothing was kept: <code>distill evaluate FOLDER DATA --samples 4'
            "</code> adds what a student writes after four prompts of a dataset.</p>"
        )
    more = len(asked) - len(cards)
    said = counted(more, "prompt")
    return "".join(cards) + (f'<p class="none">{said} more</p>' if more else "")


def _samples(run: Mapping[str, Any]) -> Iterator[tuple[_Asked, str]]:
    """Read the samples of a run, without those that are not of the expected shape."""
    kept = run.get("samples")
    texts = kept.get("texts") if isinstance(kept, Mapping) else None
    for each in texts if isinstance(texts, list) else ():
        if not isinstance(each, Mapping) or not isinstance(each.get("row"), int):
            continue
        prompt, reference, answer = (each.get(n) for n in ("prompt", "reference", "answer"))
        if isinstance(prompt, str) and isinstance(reference, str) and isinstance(answer, str):
            yield (each["row"], prompt, reference), answer


def _card(
    contenders: Sequence[Mapping[str, Any]], asked: _Asked, answers: Mapping[int, str]
) -> str:
    row, prompt, reference = asked
    lines = [("", "the dataset", reference)]
    lines += [
        (f"name {colour(i)}", shown_name(contenders[i]["name"]), answer)
        for i, answer in sorted(answers.items())
    ]
    items = (
        f'<dt class="{kind}">{escape(name)}</dt><dd class="text">{_text(text)}</dd>'
        for kind, name, text in lines
    )
    return (
        f'<div class="card sample"><h3>Row {row:,}</h3><div class="text dim">{_text(prompt)}</div>'
        f"<dl>{''.join(items)}</dl></div>"
    )


def _text(text: str) -> str:
    return escape(clipped_text(text.strip(), _CHARACTERS)) or "(nothing)"
