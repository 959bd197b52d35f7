"""The tokenizer that a caller's tokens are of, and what is known of the teacher itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from logitstore.errors import InputError
from logitstore.models.fingerprint import fingerprint_folder, has_weights
from logitstore.models.loading import load_tokenizer
from logitstore.moving.created.settings import CreateSettings
from logitstore.text.stored import files_to_store
from logitstore.text.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Ids that a padded head has beyond those of its tokenizer, at most: models round up to a multiple.
_PADDING, _PADDING_SHARE = 1024, 0.05


@dataclass(frozen=True)
class Teacher:
    """What is known of a teacher that is elsewhere.

    Attributes:
        name: Its name.
        fingerprint: Of its weights, or its name.
        loaded: Its tokenizer.
        tokenizer: The same, by bytes.
        files: The tokenizer's files, for the store.
    """

    name: str
    fingerprint: str
    loaded: "PreTrainedTokenizerBase"
    tokenizer: ByteTokenizer
    files: dict[str, bytes]

    @classmethod
    def of(cls, settings: CreateSettings) -> Self:
        """Load the tokenizer, and name the teacher.

        Raises:
            InputError: It cannot be loaded, or the teacher has no name.
        """
        loaded = settings.tokenizer
        if isinstance(loaded, str):
            loaded = load_tokenizer(
                loaded,
                named_by="tokenizer",
                advice="Give the teacher's tokenizer: a folder, a hub id that this machine can "
                "reach or has cached, or what AutoTokenizer.from_pretrained loaded.",
            )
        tokenizer = ByteTokenizer(loaded)
        name, fingerprint = _named(settings, tokenizer.name, loaded)
        return cls(name, fingerprint, loaded, tokenizer, files_to_store(loaded))

    def check_width(self, width: int, asked: int | None, where: str) -> None:
        """Check the width of full rows.

        Args:
            width: Of the rows.
            asked: What the caller says that it is, or what rows before had.
            where: Names the row in messages.

        Raises:
            InputError: They are of another vocabulary.
        """
        size = self.tokenizer.size
        if asked is not None and width != asked:
            raise InputError(
                f"{where}: its rows are {width:,} wide, expected {asked:,}: they are of another "
                "vocabulary than was said, or than rows before. Give logits of one teacher."
            )
        if width < size or (asked is None and width > size + max(_PADDING, size * _PADDING_SHARE)):
            raise InputError(
                f"{where}: its rows are {width:,} wide, but {self.tokenizer.name} has ids up to "
                f"{size - 1:,}: they are of another vocabulary. Give the teacher's tokenizer"
                + (f", or vocab_size={width} if this is it." if width > size else ".")
            )


def _named(
    settings: CreateSettings, tokenizer_name: str, loaded: "PreTrainedTokenizerBase"
) -> tuple[str, str]:
    """Return the teacher's name and fingerprint: of its weights if a folder has them, or a name."""
    name = settings.teacher
    if name is None:
        name = str(getattr(loaded, "name_or_path", ""))
        is_model = Path(name).is_dir() and has_weights(Path(name))
        if not name or (Path(name).exists() and not is_model):
            raise InputError(
                f"{tokenizer_name}: does not say which teacher the logits are of. Name it with "
                "teacher=… (its hub id, or its folder)."
            )
    if Path(name).is_dir():
        return name, fingerprint_folder(Path(name))
    return name, f"named:{name}"
