"""What pairing asks of the tokenizers of teacher and student, made when it is asked for."""

from functools import cached_property

from distill.alignment.beginnings import Beginnings
from distill.alignment.cuts import Cuts
from distill.alignment.entries_at import Texts
from distill.alignment.ways import Endings
from distill.data.family import Family
from distill.data.sides import BothSides
from distill.student.text import StudentReader
from logitstore.format.spec import StoreSpec
from logitstore.text.tokenizer import ByteTokenizer


class BothTokenizers:
    """The tokenizers of a store's teacher and of a student.

    Args:
        teacher: The teacher's.
        reader: What the student reads the store with.
        spec: Of the store.
    """

    def __init__(self, teacher: ByteTokenizer, reader: StudentReader, spec: StoreSpec) -> None:
        self.teacher, self.reader, self.spec = teacher, reader, spec

    @property
    def student(self) -> ByteTokenizer:
        """The student's tokenizer."""
        return self.reader.tokenizer

    @cached_property
    def are_one(self) -> bool:
        """Whether teacher and student have one tokenizer, but for roles of tokens.

        However padded their heads are, and whatever few tokens were added behind the last.
        """
        return self.teacher.is_one_with(self.student)

    @cached_property
    def family(self) -> Family:
        """What differs between two that are one."""
        appends_eos = self.spec.rendering["kind"] not in ("conversation", "tokens")
        return Family(self.teacher, self.student, appends_eos=appends_eos)

    @cached_property
    def order(self) -> Beginnings:
        """The teacher's tokens in the order of what they write."""
        written = [each or b"" for each in self.teacher.token_bytes]
        return Beginnings(written, int(self.spec.vocab_size))

    @cached_property
    def endings(self) -> Endings:
        """What the teacher's tokens may go on with."""
        return Endings(self.teacher, self.order)

    @cached_property
    def cuts(self) -> Cuts:
        """Where the student cuts what the teacher's tokens write."""
        return Cuts(self.student, self.order.written)

    def texts(self, both: BothSides) -> Texts:
        """Gather what the text of a sequence shows of both tokenisations."""
        return Texts(both.teacher, both.student, self.order, self.cuts)
