"""Read a row of a dump, in whichever layout it is, and return its records."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logitstore.errors import InputError
from logitstore.models.fingerprint import fingerprint_folder
from logitstore.models.loading import load_tokenizer
from logitstore.moving.dumps import columns, distillkit, records, responses, trl
from logitstore.moving.dumps.files import Row
from logitstore.moving.dumps.locate import Placed, Placer
from logitstore.moving.dumps.row import Dumped, plain
from logitstore.moving.dumps.settings import ImportSettings
from logitstore.moving.dumps.token_names import TokenNames
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.stored import files_to_store
from logitstore.text.token_ids import check_spelling
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.writing.lists.lists import SUM_TOLERANCE, check_own, checked

PREPARED, RAW, RESPONSE = "prepared", "raw", "response"
TRL, DISTILLKIT = "trl", "distillkit"
#: The token that a list describes, unless the user says otherwise.
ALIGNED_BY_LAYOUT = {
    PREPARED: "next",
    RAW: "token",
    RESPONSE: "token",
    TRL: "token",
    DISTILLKIT: "next",
}
#: How much a curve through log-probabilities may add to their sum.
_ROUNDED = 0.05


@dataclass(frozen=True)
class Reader:
    """A reader of the rows of one dump.

    Attributes:
        settings: The settings, as the user gave them.
        layout: `prepared`, `raw`, `response`, `trl` or `distillkit`.
        aligned_to: `token` or `next`.
        tokenizer: The teacher's tokenizer.
        files: The tokenizer's files, for the store.
        names: Finds the ids of tokens that are named by text.
        placer: Finds the records of a row in its text.
        teacher: The name of the teacher.
        fingerprint: The teacher's fingerprint, or `named:` and its name.
        vocab_size: The width of the teacher's logits.
        packing: How rows of DistillKit are packed; None: they are not.
    """

    settings: ImportSettings
    layout: str
    aligned_to: str
    tokenizer: ByteTokenizer
    files: dict[str, bytes]
    names: TokenNames
    placer: Placer
    teacher: str
    fingerprint: str
    vocab_size: int
    packing: distillkit.Packing | None = None

    @classmethod
    def make(cls, settings: ImportSettings, row: Row, where: str, folder: Path) -> "Reader":
        """Make a reader for a dump in `folder` that begins with this row.

        Raises:
            InputError: The columns are not known, or a setting cannot be used.
        """
        settings.check()
        layout = layout_of(row, settings, where)
        teacher, fingerprint = _teacher(settings, row, where)
        loaded = load_tokenizer(
            settings.tokenizer,
            named_by="--tokenizer",
            advice="Give the folder of the teacher's tokenizer, or a hub id that this machine can "
            "reach or has cached.",
        )
        tokenizer = ByteTokenizer(loaded)
        vocab_size = settings.vocab_size or tokenizer.size
        if vocab_size < tokenizer.size:
            raise InputError(
                f"--vocab-size is {vocab_size}, but {settings.tokenizer} has ids up to "
                f"{tokenizer.size - 1}. Give the width of the teacher's logits."
            )
        aligned_to = settings.aligned_to or ALIGNED_BY_LAYOUT[layout]
        template, kwargs = None, None
        if _is_conversation(row, layout, settings):
            kwargs = parse_kwargs(settings.chat_template_kwargs, "--chat-template-kwargs")
            path = settings.chat_template_path
            template = ChatTemplate.of(loaded, tokenizer, path=path, kwargs=kwargs)
            tokenizer = tokenizer.with_ends(template.end_ids)
        else:
            _reject_idle(settings, where)
            check_spelling(tokenizer)
        placer = Placer(
            tokenizer,
            template,
            "last" if settings.supervise == "last" else "all",
            kwargs,
            aligned_to == "next",
        )
        return cls(
            settings,
            layout,
            aligned_to,
            tokenizer,
            files_to_store(loaded),
            TokenNames(tokenizer),
            placer,
            teacher,
            fingerprint,
            vocab_size,
            _packing(settings, layout, row, folder),
        )

    def read(self, row: Row, number: int, where: str) -> tuple[list[Placed], int, int]:
        """Read row `number`.

        Returns:
            The documents of the row; how many of its lists were not sorted; how many generated
            tokens were left out.

        Raises:
            InputError: The row is wrong; names the row and the token.
        """
        if layout_of(row, self.settings, where) != self.layout:
            raise InputError(
                f"{where}: is not a {self.layout} row, as the first one is. Import the two kinds "
                "of rows into two stores."
            )
        dumped = self._dumped(row, where)
        tolerance = _ROUNDED if dumped.is_rounded else SUM_TOLERANCE
        lists, unsorted = checked(dumped.lists, self.vocab_size, where, tolerance)
        check_own(dumped.token_logprobs, where)
        placed = self.placer.place(replace(dumped, lists=lists), number, where)
        # Those of responses are objects, in no order; a curve may rise a little.
        is_ordered = self.layout != RESPONSE and not dumped.is_rounded
        finished = [records.finished(each, self.vocab_size, where) for each in placed]
        return finished, unsorted * is_ordered, dumped.left_out

    def _dumped(self, row: Row, where: str) -> Dumped:
        if self.layout == PREPARED:
            return columns.read_prepared(row, where)
        if self.layout == RESPONSE:
            return responses.read_choice(row, self.names, where)
        if self.layout == TRL:
            return trl.read_sequence(row, where)
        if self.layout == DISTILLKIT:
            return distillkit.read_row(row, self.packing, where)
        return columns.read_raw(
            row,
            self.names,
            where,
            logprobs=self.settings.logprobs_column,
            messages=self.settings.messages_column,
        )


def layout_of(row: Mapping[str, Any], settings: ImportSettings, where: str) -> str:
    """Return the layout of a row.

    Raises:
        InputError: It has no known layout.
    """
    if responses.looks_like(row):
        return RESPONSE
    if row.get(trl.IDS) is not None:
        return TRL
    if distillkit.looks_like(row, where):
        return DISTILLKIT
    if all(row.get(name) is not None for name in columns.PREPARED):
        return PREPARED
    if settings.logprobs_column in row:
        return RAW
    raise InputError(
        f"{where}: no known columns; expected `{settings.logprobs_column}`, `target_logprobs` with "
        "`target_token_ids` and `input_ids`, or a response with `choices`, found "
        f"{', '.join(sorted(row)) or 'none'}. Name the column of lists with --logprobs-column; "
        "`logitstore import --help` has all that is read."
    )


def _packing(
    settings: ImportSettings, layout: str, row: Row, folder: Path
) -> distillkit.Packing | None:
    """Read how rows are packed, if they are."""
    if layout == DISTILLKIT and distillkit.is_packed(row):
        return distillkit.Packing.read(
            Path(settings.compression_config or folder / distillkit.CONFIG)
        )
    if settings.compression_config is not None:
        raise InputError(
            f"--compression-config {settings.compression_config}: the rows are not packed by "
            "DistillKit, so it would have no effect. Leave it out."
        )
    return None


def _is_conversation(row: Row, layout: str, settings: ImportSettings) -> bool:
    if layout == RAW:
        return row.get("input_ids") is None and row.get(settings.messages_column) is not None
    return layout == RESPONSE and row.get("messages") is not None


def _reject_idle(settings: ImportSettings, where: str) -> None:
    for flag, value in (
        ("--supervise", settings.supervise),
        ("--chat-template-path", settings.chat_template_path),
        ("--chat-template-kwargs", settings.chat_template_kwargs),
    ):
        if value is not None:
            raise InputError(
                f"{where}: the rows are not conversations, so {flag} {value} would have no effect. "
                "Leave it out."
            )


def _teacher(settings: ImportSettings, row: Row, where: str) -> tuple[str, str]:
    """Return the teacher's name and fingerprint: of its weights if a folder has them, or a name."""
    name = settings.teacher or plain(row.get("model"), f"{where}: model")
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{where}: does not say which teacher it is of. Name it with --teacher (its hub id, or "
            "its folder)."
        )
    if settings.teacher and Path(name).is_dir():
        return name, fingerprint_folder(Path(name))
    return name, f"named:{name}"
