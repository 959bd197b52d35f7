"""Take rows in any order, check them, and seal the store when all are there.

Nothing is on disk before the first shard is full, so what is wrong with the first rows leaves
nothing behind. What the spec says of all records (the arrays that are given, the width of the
logits) is that of the first row; every other must be alike.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from logitstore.console.counts import counted
from logitstore.console.progress import progress
from logitstore.errors import IncompleteStoreError, InputError, MismatchError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import SPEC_FILE, Plan, StoreHeader, StoreSpec
from logitstore.moving.created.encoded import encoded
from logitstore.moving.created.fits import Fits
from logitstore.moving.created.form import CREATED, Form, form_of, spec_of
from logitstore.moving.created.given import Given
from logitstore.moving.created.logits import Kept
from logitstore.moving.created.settings import CreateSettings
from logitstore.moving.created.shards import Shards, digest_of
from logitstore.moving.created.teacher import Teacher
from logitstore.moving.created.texts import KINDS, Row, Texts, Tokens
from logitstore.moving.dumps.locate import NO_LISTS
from logitstore.records import Segment, SequenceText
from logitstore.storage.paths import StorePath
from logitstore.store import open_store
from logitstore.writing.some_records import check_shards
from logitstore.writing.writer import StoreWriter

log = logging.getLogger(__name__)


class RowWriter:
    """Writes a store row by row; see `logitstore.create`. Not for several threads at once."""

    def __init__(self, place: StorePath, settings: CreateSettings) -> None:
        self.path, self._settings = place, settings
        self._teacher = Teacher.of(settings)
        self._kept = Kept(
            settings.top_k, settings.max_tail, settings.temperatures, settings.logit_std
        )
        self._fits, self._at_end, self._is_open = Fits(), ExitStack(), True
        self._texts: Texts | None = None
        self._form: Form | None = None
        self._spec: StoreSpec | None = None
        self._shards = self._resumed() if (place / SPEC_FILE).exists() else self._new()
        self._shown = self._at_end.enter_context(progress(settings.rows, "create", "rows"))
        self._shown.update(self._shards.rows_before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._at_end:
            self._is_open = False
            if kind is None:
                self.close()

    def missing(self) -> Iterator[int]:
        """Yield the rows that are neither in the store nor added, in order."""
        return self._shards.missing_rows()

    def add(
        self,
        row: int,
        text: str | None = None,
        *,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        input_ids: Any = None,
        labels: Any = None,
        logits: Any = None,
        ids: Any = None,
        logprobs: Any = None,
        tail: Any = None,
        entropy: Any = None,
        token_logprob: Any = None,
    ) -> bool:
        """Add a row: its text, and what the teacher said of each of its tokens.

        The text is one of `text` (with a `prompt` before it that is not trained on), `messages`,
        or `input_ids`. The probabilities are full rows or entries. Arrays are numpy's, or of any
        library with `__dlpack__`; T is the tokens of the whole row, V the teacher's vocabulary.

        Args:
            row: Its number, from 0.
            text: Text that is trained on; the tokenizer's own BOS comes before it.
            prompt: Context before the text.
            messages: A conversation, which the chat template renders.
            input_ids: (T,) tokens of the teacher, all of them trained on but for `labels`. Beside
                a text or messages: compared with what these become.
            labels: (T,) -100 for tokens of `input_ids` that are context.
            logits: (T, V) before softmax, at temperature 1.
            ids: (T, k) ids of the most probable tokens; a list of arrays where k differs.
            logprobs: (T, k) their log-probabilities over the full vocabulary, in nats; -inf is
                padding. Without ids: (T, V).
            tail: (T,) log of the probability beyond the entries; None: what they leave to one.
            entropy: (T,) entropy of the full distribution, in nats.
            token_logprob: (T,) log-probability of the token itself, where entries may lack it.

        Returns:
            False if the row was in the store before this program began; then nothing changed.

        Raises:
            InputError: Something is wrong with the row; nothing of it is kept, and it may be added
                again.
            MismatchError: The store has another text for this row.
            StorageError: The shard that it completes cannot be written.
        """
        where = self._check_row(row)
        given = Given(logits, ids, logprobs, tail, entropy, token_logprob)
        source = Row(text, prompt, messages, input_ids, labels)
        tokens = self._texts_of(source, where).read(row, source, where)
        if self._shards.is_committed(row):
            self._shards.compare(row, tokens.line, where)
            return False
        made = self._encoded(given, tokens, where) if len(tokens.places) else None
        self._keep(row, tokens.line, made)
        return True

    def skip(self, row: int, text: str = "") -> bool:
        """Add a row without records, so that it is counted as left out.

        Args:
            row: Its number, from 0.
            text: What it says, for whoever looks it up.

        Returns:
            False if the row was in the store before this program began; then nothing changed.

        Raises:
            InputError: The row was added before, or there is no such row.
            StorageError: The shard that it completes cannot be written.
        """
        self._check_row(row)
        if self._shards.is_committed(row):
            return False
        segments = (Segment(text, True),) if text else ()
        self._keep(row, SequenceText(row, 0, NO_LISTS, segments), None)
        return True

    def close(self) -> None:
        """Seal the store, if every row is there; the end of the `with` block does this.

        Raises:
            IncompleteStoreError: Rows are missing; what is committed stays. Not with
                `allow_partial`.
            InputError: No row has a record.
            StorageError: The file system failed; what is committed stays.
        """
        self._is_open = False
        if self._form is None and next(self._shards.missing_rows(), None) is None:
            raise InputError(
                f"{self.path}: none of its {counted(self._settings.rows, 'row')} has a record, so "
                "nothing was written. Check the texts, labels and messages that were added.",
                kind="lost-rows",
            )
        if missing := self._shards.missing():
            self._say_missing(missing)
            return
        writer = self._shards.writer
        assert writer is not None
        if not writer.is_sealed:
            writer.seal(check_shards(self.path))

    def _check_row(self, row: int) -> str:
        where = f"{self.path}: row {row:,}"
        if not self._is_open:
            raise InputError(f"{where}: the store is closed. Add rows inside the with block.")
        if not 0 <= row < self._settings.rows:
            raise InputError(
                f"{where}: expected 0 to {self._settings.rows - 1:,}, since rows is "
                f"{self._settings.rows:,}. Number the rows from 0."
            )
        if self._shards.is_added(row):
            raise InputError(f"{where}: was added before. Add each row once.")
        return where

    def _texts_of(self, source: Row, where: str) -> Texts:
        """Return what reads rows of this kind: that of the first."""
        kind = source.kind(where)
        if self._texts is None:
            self._texts = self._make_texts(kind)
        if self._texts.kind != kind:
            raise InputError(
                f"{where}: is of the kind {kind}, but rows before it are {self._texts.kind}. Write "
                "the two kinds of rows into two stores."
            )
        return self._texts

    def _make_texts(self, kind: str) -> Texts:
        settings = self._settings
        return Texts(
            self._teacher.loaded,
            self._teacher.tokenizer,
            kind,
            add_eos=settings.add_eos,
            supervise=settings.supervise,
            template_path=settings.chat_template_path,
            template_kwargs=settings.chat_template_kwargs,
            moves_on=settings.aligned_to == "next",
        )

    def _encoded(self, given: Given, tokens: Tokens, where: str) -> EncodedRecords | None:
        given = given.plain(where)
        given.check(where)
        form = form_of(given, self._form, self._settings, self._teacher, where)
        spec = self._spec_of(form)
        made = encoded(given, tokens, spec, self._kept, self._fits, where)
        self._form, self._spec = form, spec
        return made

    def _spec_of(self, form: Form) -> StoreSpec:
        """Describe the content; once, since it has digests of the tokenizer."""
        assert self._texts is not None
        if self._spec is not None and form == self._form:
            return self._spec
        return spec_of(form, self._settings, self._teacher, self._texts)

    def _keep(self, row: int, line: SequenceText, made: EncodedRecords | None) -> None:
        """Keep a row, and commit the shards that are full."""
        self._shards.keep(row, line, made)
        self._shown.update(1, tokens=0 if made is None else len(made))
        full = self._shards.full()
        if not full or self._form is None:  # rows without records alone do not make a spec
            return
        self._fits.check(str(self.path), moves_on=self._settings.aligned_to == "next")
        for index in full:
            self._shards.commit(index)

    def _new(self) -> Shards:
        settings = self._settings
        digest = digest_of(settings.dataset or self.path.name, settings.rows)
        return Shards(settings.plan(digest), self._begin, None)

    def _resumed(self) -> Shards:
        """Open what an earlier run, or another process, has begun.

        Raises:
            MismatchError: It is another store.
        """
        settings, found = self._settings, StoreHeader.read(self.path)
        said, kind = found.spec.rendering.get(CREATED), found.spec.rendering.get("kind")
        names = said.get("given") if isinstance(said, dict) else None
        if kind not in KINDS or not isinstance(names, list):
            raise MismatchError(
                f"{self.path}: holds a store that was not written row by row, so no rows can be "
                "added to it. Choose another place."
            )
        digest = found.plan.dataset_sha256  # unless named: the store may have another name by now
        if settings.dataset is not None:
            digest = digest_of(settings.dataset, settings.rows)
        self._texts = self._make_texts(str(kind))
        width = settings.vocab_size or found.spec.vocab_size
        self._form = Form(tuple(str(name) for name in names), width)
        plan = settings.plan(digest)
        writer = self._begin(plan)
        shards = Shards(plan, self._begin, open_store(self.path, allow_partial=True))
        shards.writer = writer
        return shards

    def _begin(self, plan: Plan | None = None) -> StoreWriter:
        """Begin the store, or open it."""
        assert self._form is not None
        provenance = {
            "teacher": self._teacher.name,
            "dataset": self._settings.dataset or "rows that a program gave",
            "settings": None,
            CREATED: {"rows": self._settings.rows},
        }
        spec = self._spec_of(self._form)
        return StoreWriter(
            self.path, spec, plan or self._shards.plan, self._teacher.files, provenance
        )

    def _say_missing(self, missing: list[int]) -> None:
        """Say which rows are not there, as an error unless other processes are to add them."""
        plan, rows = self._shards.plan, self._settings.rows
        there = rows - sum(b - a for a, b in map(plan.shard_rows, missing))
        first = self._shards.first_not_added(missing)
        text = (
            f"{self.path}: closed with {there:,} of {counted(rows, 'row')} in the store"
            + ("" if first is None else f"; the first that was not added is row {first:,}")
            + ". What is there stays. Run the same program again for the others, which missing() "
            "names."
        )
        if not self._settings.allow_partial:
            raise IncompleteStoreError(text)
        log.info("%s", text)
