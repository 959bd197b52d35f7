"""What a coverage report looks at: the options of `distill coverage`.

Imports neither torch nor transformers: the command line reads this to describe itself.
"""

from dataclasses import dataclass

from distill.losses.advice import AUTO
from distill.losses.in_source import loss_flags
from distill.losses.names import check_loss
from logitstore.console.settings import setting
from logitstore.errors import InputError

# Headings of `distill coverage --help`.
_LOSS = "Loss, as for `distill train`"
_READING = "Reading"
#: In the order of the help.
PANELS = (_LOSS, _READING)


@dataclass(frozen=True, kw_only=True)
class CoverageSettings:
    """How the student would be trained, and how much of the store is looked at.

    Those of a run are called as `distill train` calls them, and mean the same.
    """

    loss: str = setting(
        AUTO,
        _LOSS,
        "Loss to look at, with or without a weight; of several, the first that has a map. auto: "
        "the one that is recommended.",
        metavar="NAME[:WEIGHT],...",
    )
    map: str | None = setting(
        None,
        _LOSS,
        "Map of the vocabularies to look at.",
        metavar="KIND",
        unset="the recommended one",
    )
    between: str | None = setting(
        None,
        _LOSS,
        "Whether labels that begin inside one of the teacher's tokens are compared, too.",
        metavar="off|on",
        unset="off",
    )
    sequences: int | None = setting(
        None,
        _READING,
        "Look at N sequences, evenly spread over the store.",
        metavar="N",
        unset="all of them",
    )
    max_length: int | None = setting(
        None,
        _READING,
        "Student tokens of a row at most.",
        metavar="N",
        unset="as many as the student reads",
    )
    tokenizer_name_or_path: str | None = setting(
        None,
        _READING,
        "Tokenizer of the student, where its own folder has none.",
        metavar="PATH",
    )
    chat_template_path: str | None = setting(
        None,
        _READING,
        "Chat template of the student: a Jinja file, or the folder of a tokenizer.",
        metavar="PATH",
        unset="the student's own",
    )
    chat_template_kwargs: str | None = setting(
        None, _READING, "Variables of the chat template for every row, as JSON.", metavar="JSON"
    )
    allow_partial: bool = setting(False, _READING, "Also read a store that is not finished.")

    def check(self) -> None:
        """Check the names and the numbers.

        Raises:
            InputError: One is not known, or too small; names its flag.
        """
        if self.loss != AUTO:
            check_loss(self.loss)
        for flag in loss_flags():
            value = getattr(self, flag.name, None)
            if value is not None and flag.choices and value not in flag.choices:
                known = ", ".join(flag.choices)
                raise InputError(f"--{flag.name} {value}: not known. Known: {known}. Name one.")
        if self.sequences is not None and self.sequences < 1:
            raise InputError(f"--sequences {self.sequences}: expected at least 1.")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"--max-length {self.max_length}: expected at least 2 tokens.")
