"""Hold one sequence to look at: as HTML in a notebook, as text in a terminal."""

from logitstore.console.terminal import has_colour
from logitstore.text.sequence_facts import Sequences, sequence_facts
from logitstore.text.sequence_html import sequence_html
from logitstore.text.sequence_text import sequence_text


class ShownSequence:
    """What `store.show(i)` returns; a notebook or a Python prompt shows it.

    Attributes:
        facts: What is shown, as `logitstore show --json` prints it: the segments of the text, and
            of each token its id, its text, log-probability, entropy, tail and entries.
    """

    def __init__(self, store: Sequences, i: int) -> None:
        self.facts = sequence_facts(store, i)

    def __repr__(self) -> str:
        return sequence_text(self.facts, colour=has_colour())

    def _repr_html_(self) -> str:
        return sequence_html(self.facts)
