"""Show what was not used, and why: one table for every command, and the same facts as JSON.

not used    3 of 40 rows gave nothing to learn from

   rows   share  first row
      2    5.0%          7  no_supervised_text: nothing in it is supervised
                            Check the roles of its messages, and --supervise.
      1    2.5%         39  empty: it has no text
                            Nothing is lost with it.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from logitstore.console.terminal import printable

#: The largest share of rows that may be lost without an error.
DEFAULT_MAX_LOST = 0.05
_INDENT, _WIDTH = 32, 100


@dataclass(frozen=True)
class LeftOut:
    """Rows that were left out for one reason.

    Attributes:
        reason: The reason's short name, the same in every version.
        count: How many.
        of: Out of how many.
        first_row: The first of them, by its number in the dataset; None: not looked up.
        why: What happened, in a clause.
        step: What to do about it, in a sentence.
        is_lost: Whether something was lost that a student could have learnt from.
    """

    reason: str
    count: int
    of: int
    first_row: int | None
    why: str
    step: str
    is_lost: bool = True

    @property
    def share(self) -> float:
        """The part of all, 0 to 1."""
        return self.count / max(self.of, 1)

    def facts(self) -> dict[str, Any]:
        """Describe it as JSON."""
        return {
            "reason": self.reason,
            "count": self.count,
            "of": self.of,
            "share": self.share,
            "first_row": self.first_row,
            "is_lost": self.is_lost,
            "why": self.why,
            "step": self.step,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Read what `facts` wrote."""
        return cls(**{each.name: facts[each.name] for each in fields(cls)})


def lost(left_out: Iterable[LeftOut]) -> int:
    """Count what was lost; a row that had nothing to lose is not."""
    return sum(each.count for each in left_out if each.is_lost)


def is_surely_more(count: int, seen: int, of: int, most: float) -> bool:
    """Tell whether more than a share `most` of all is lost, judged by a part of them.

    Where not all were seen, the share of the part must be so much larger that chance explains it
    once in a hundred times.

    Args:
        count: Lost ones.
        seen: How many were looked at.
        of: How many there are.
        most: The largest share that is fine, 0 to 1.
    """
    if not seen:
        return False
    share = count / seen
    by_chance = 0.0 if seen >= of else 2.33 * (most * (1 - most) / seen) ** 0.5
    return share > most + by_chance


def left_out_text(
    left_out: Sequence[LeftOut], unit: str = "rows", seen: str = "", head: str = "not used"
) -> str:
    """Write the table as text, without a line break at its end; empty if nothing was left out.

    Args:
        left_out: The reasons.
        unit: What is counted.
        seen: What the counts are about, where that is not everything.
        head: What they are all, in a word or two.
    """
    if not left_out:
        return ""
    total = sum(each.count for each in left_out)
    lines = [f"{head:<12}{total:,} of {left_out[0].of:,} {unit}{seen}"]
    lines.append(f"{unit:>12}{'share':>8}{'first row':>11}")
    for each in sorted(left_out, key=lambda each: (-each.count, each.reason)):
        first = "-" if each.first_row is None else f"{each.first_row:,}"
        said = f"{printable(each.reason)}: {printable(each.why)}"
        lines += _wrapped(said, f"{each.count:>12,}{each.share:>8.1%}{first:>11} ")
        lines += _wrapped(printable(each.step))
    return "\n".join(lines)


def _wrapped(text: str, first: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first.ljust(_INDENT),
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
