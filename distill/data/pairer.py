"""Choose the pairs of a loss in a sequence: by position, by alignment, by warping, in between.

Shape legend: P = pairs.
"""

from collections.abc import Mapping

import numpy as np

from distill.alignment.align import Alignment
from distill.alignment.event_map import EventMap
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.warping import warped
from distill.alignment.ways import Known, with_answers
from distill.data.both_tokenizers import BothTokenizers
from distill.data.judging import turn_starts
from distill.data.sides import BothSides
from distill.data.targets import (
    Ints,
    Pairs,
    aligned_pairs,
    asks_at_boundaries,
    by_position,
    is_by_position,
    is_of_all,
    plain_pairs,
    with_all,
    with_answers_at_labels,
    with_labels_between,
)
from distill.losses.loss import Pairing
from logitstore.records import TokenRecords


class Pairer:
    """Says which records of a sequence a loss compares with which labels, and by which map.

    Args:
        tokenizers: Of both sides.
        pairings: How each loss pairs, by its name.
        mappings: The map of each, or None; it is read whenever pairs are asked for.
    """

    def __init__(
        self,
        tokenizers: BothTokenizers,
        pairings: Mapping[str, Pairing],
        mappings: Mapping[str, VocabularyMap | None],
    ) -> None:
        self._both, self._pairings, self._mappings = tokenizers, pairings, mappings
        self._with_ends: dict[tuple[int, int], VocabularyMap] = {}

    def needs_alignment(self) -> bool:
        """Tell whether any loss asks where both sides' tokens meet."""
        pairings = self._pairings.values()
        return not all(is_by_position(each) or is_of_all(each) for each in pairings)

    def pairs(
        self, name: str, both: BothSides, alignment: Alignment | None
    ) -> tuple[Pairs, VocabularyMap | None]:
        """List a loss's pairs of a sequence, and find the map of its row.

        Args:
            name: Of the loss.
            both: The sequence.
            alignment: How both sides' places meet; None if no loss needs it.
        """
        pairing, mapping = self._pairings[name], self._mappings[name]
        pairs = self._by_kind(pairing, both, alignment, mapping)
        if mapping is None:
            return pairs, None
        if self._both.are_one:
            pairs, is_itself = self._of_family(pairs, both)
            if is_itself:
                return pairs, mapping
        pairs = _without_other_ends(pairs, both)
        mapping = self.ending(mapping, both.ends)
        if pairing.has_known_choice:
            pairs = pairs.chosen(mapping.knows_choice(both.records, pairs.places.record))
        return pairs, mapping

    def has_labels(self, name: str) -> bool:
        """Tell whether a loss asks what the text shows of both tokenisations."""
        return self._pairings[name].has_labels and not self._both.are_one

    def ending(self, mapping: VocabularyMap, ends: Ints) -> VocabularyMap:
        """Send the teacher's end tokens to the token that ends this row's turns.

        A chat template may end a turn with another token than the student's EOS, to which maps of
        two tokenizers already send them.
        """
        eos = self._both.student.eos_token_id
        end = int(ends[-1]) if len(ends) else eos
        if end is None or (end == eos and not self._both.are_one):
            return mapping
        key = id(mapping), end
        if key not in self._with_ends:
            self._with_ends[key] = mapping.with_ends(list(self._both.spec.eos_ids), end)
        return self._with_ends[key]

    def _of_family(self, pairs: Pairs, both: BothSides) -> tuple[Pairs, bool]:
        """Leave out what one side alone has a token for; tell whether ends are themselves, too."""
        sides, ids = (both.teacher, both.student), both.label_ids
        kept = self._both.family.known(pairs, sides, ids)
        if not kept.all():
            pairs = pairs.chosen(kept)
        record_ids = both.records.token_ids.astype(np.int64)
        return pairs, self._both.family.have_one_end(pairs, sides, (record_ids, ids))

    def _by_kind(
        self,
        pairing: Pairing,
        both: BothSides,
        alignment: Alignment | None,
        mapping: VocabularyMap | None,
    ) -> Pairs:
        teacher, student = both.teacher, both.student
        if is_of_all(pairing):
            return plain_pairs(with_all(teacher, student))
        if is_by_position(pairing):
            return plain_pairs(
                by_position(
                    teacher,
                    student,
                    both.text,
                    teacher_prefix=self._both.teacher.prefix_length,
                    student_prefix=self._both.student.prefix_length,
                )
            )
        assert alignment is not None
        if pairing.kind == "strings":
            return self._warped(both, alignment)
        pairs = aligned_pairs(pairing, alignment, teacher, student)
        if self._both.are_one or mapping is None:
            return pairs
        made = mapping.made
        if both.answers is not None and asks_at_boundaries(pairing):
            known = self._known(both, both.answers, made)
            return with_answers_at_labels(pairs, known, turn_starts(both.text))
        if not pairing.has_between:
            return pairs
        return with_labels_between(pairs, teacher, student, both.records, made, self._both.order)

    def _warped(self, both: BothSides, alignment: Alignment) -> Pairs:
        """Pair labels by warping; an import that knows no entropy is unsure everywhere."""
        ids, sides = both.records.token_ids.astype(np.int64), self._both
        written = sides.teacher.written(ids), sides.student.written(both.label_ids)
        unsure = both.records.entropy / np.log(max(2, sides.spec.vocab_size))
        weight = np.clip(np.nan_to_num(unsure, nan=1.0), 0, 1).astype(np.float64)
        t, s = warped(both.teacher, both.student, alignment, written, weight).T
        is_text = both.student.is_verbatim[s]
        return plain_pairs(np.stack([t, t + 1, s, s + 1], 1)[is_text])

    def _known(self, both: BothSides, answers: TokenRecords, made: EventMap) -> Known:
        """Gather what is known of a sequence at the student's boundaries."""
        answer = np.full(len(both.student.starts), -1, np.int64)
        number, label = both.answered().T
        answer[label] = number + len(both.records)
        return Known(
            both.teacher,
            both.student,
            with_answers(both.records, answers),
            answer,
            made,
            self._both.order,
            self._both.endings,
        )


def _without_other_ends(pairs: Pairs, both: BothSides) -> Pairs:
    """Leave out labels that end a turn with another token than the row's last one.

    The map sends all of the teacher's ends to one token, which would not be that label.
    """
    ends = both.ends
    if not len(ends) or (ends == ends[-1]).all():
        return pairs
    is_other = both.student.is_eos.copy()
    is_other[both.student.is_eos] = ends != ends[-1]
    return pairs.chosen(~is_other[pairs.table[:, 2]])
