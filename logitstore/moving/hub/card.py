"""The card of a store on the Hugging Face Hub: its `README.md`.

What it says comes from the store, which may be anybody's: names are written so that neither
Markdown nor YAML reads them as more than text, and a path of some machine is cut to its last part.
"""

import json
import re
from pathlib import PurePath
from typing import Any

from logitstore.console.terminal import printable
from logitstore.info import facts, info_lines
from logitstore.store import LogitStore

CARD_FILE = "README.md"
#: What tells a card of ours from one that somebody wrote.
MARK = "<!-- logitstore: card -->"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_SAID = ("rows", "kept", "records", "size", "tail", "rounding", "ULD", "hidden", "lm head")
_LONGEST = 200
_ABOUT = (
    "What the teacher {} predicts for each token of {}: its most probable tokens with their "
    "probabilities, the mass of all others, and the text. Students of any tokenizer train from it, "
    "without the teacher."
)


def card(store: LogitStore, address: str, licence: str | None) -> str:
    """Write the card of a store.

    Args:
        store: The store.
        address: Where it will be, such as ``hf://datasets/owner/name``.
        licence: The hub's name of a licence; None: it is not known.
    """
    about = facts(store)
    said = info_lines(about)
    teacher, dataset = (_name(about[part]["name"]) for part in ("teacher", "dataset"))
    front: dict[str, Any] = {
        "license": licence or "unknown",
        "tags": ["logitstore", "knowledge-distillation", "logits"],
        "size_categories": [next((n for most, n in _SIZES if len(store) < most), "n>1M")],
        "viewer": False,
    }
    rows = {"teacher": teacher, "dataset": dataset}
    rows |= {name: said[name] for name in _SAID if name in said}
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
            "---",
            MARK,
            f"# {_plain(address.rsplit('/', 1)[-1])}",
            "",
            _ABOUT.format(_plain(teacher), _plain(dataset)),
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {_plain(value)} |" for name, value in rows.items()),
            "",
            "The licences of the teacher and of the text apply.",
            "",
            "## Read it",
            "",
            "```python",
            "import logitstore",
            "",
            f'store = logitstore.open_store("{address}")',
            "records, text, example = store[0], store.text(0), store.example(0)",
            "```",
            "",
            "## Train a student from it",
            "",
            "```bash",
            f"distill train --model_name_or_path STUDENT --store {address} --output_dir trained",
            "```",
            "",
        ]
    )


def _name(name: Any) -> str:
    """Shorten a path to its last part; keep a hub id."""
    text = str(name or "unknown")
    is_path = text[:1] in ("/", "~", ".") or text.count("/") > 1
    return PurePath(text).name if is_path else text


def _plain(value: object) -> str:
    """Write a text as itself: one line, bounded, every mark of Markdown or HTML an entity."""
    text = printable(str(value))[:_LONGEST]
    return re.sub(r"[\\`*{}\[\]()#+!|~$<>&@_:]", lambda found: f"&#{ord(found[0])};", text)
