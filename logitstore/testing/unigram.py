"""Learn Unigram pieces that are the same in every process.

`tokenizers.trainers.UnigramTrainer` sums float expectations in the order of a hash map that has a
fresh random state in each process, so scores, their order and ties differ from run to run; sorted
input, one thread or a fixed hash seed do not help. Here the expectations are integer counts of the
best segmentations, which no order can change. On 870 kB of this demo's text the pieces write it in
slightly fewer tokens than the trainer's.
"""

import math
from collections import Counter
from collections.abc import Mapping

from logitstore.testing._extras import needed_by

with needed_by(__name__, extra="train"):
    from tokenizers import models


def unigram_pieces(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """Learn `size` pieces and their log-probabilities from counts of words.

    Viterbi training with integer counts: start from frequent substrings, count how often each is
    used in the best segmentations, drop the fifth whose loss costs the corpus least, repeat.

    Args:
        words: Word (as the pre-tokenizer cuts them) -> how often it occurs.
        size: Pieces to keep. Characters that occur twice or more are always among them, even
            unused: without them, text that has them could not be written.
    """
    counts = _frequent_substrings(words, 20 * size)
    while True:
        counts, scores = _recount(words, counts)
        if len(counts) <= size:
            return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        learned = [piece for piece in counts if len(piece) > 1]
        learned.sort(key=lambda p: (-counts[p] * (scores[p] - _best_split(p, scores)), p))
        room = max(size - (len(counts) - len(learned)), 0)
        kept = set(learned[: max(room, len(learned) * 4 // 5)])
        counts = {piece: n for piece, n in counts.items() if len(piece) == 1 or piece in kept}


def _frequent_substrings(words: Mapping[str, int], limit: int) -> dict[str, int]:
    """Characters that occur twice or more, and substrings (2 to 8) that cover the most text."""
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for start in range(len(word)):
            for stop in range(start + 1, min(start + 8, len(word)) + 1):
                counts[word[start:stop]] += n
    often = {piece: n for piece, n in counts.items() if n > 1}
    ranked = sorted(often, key=lambda p: (len(p) > 1, -often[p] * len(p), p))
    return {piece: often[piece] for piece in ranked[:limit]}


def _recount(
    words: Mapping[str, int], counts: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, float]]:
    """How often the best segmentation of `words` uses each piece, and log-probabilities of that."""
    total = sum(counts.values())
    scores = {piece: math.log(n / total) for piece, n in counts.items()}
    model = models.Unigram([("<unk>", 0.0), *sorted(scores.items())], unk_id=0)
    used: Counter[str] = Counter()
    for word, n in words.items():
        for token in model.tokenize(word):
            used[token.value] += n
    kept = {piece: max(used[piece], 1) for piece in counts}
    total = sum(kept.values())
    return kept, {piece: math.log(n / total) for piece, n in kept.items()}


def _best_split(piece: str, scores: Mapping[str, float]) -> float:
    """Log-probability of the best way to write `piece` with shorter ones."""
    best = [0.0, *[-math.inf] * len(piece)]
    for stop in range(1, len(piece) + 1):
        for start in range(stop):
            if (start, stop) != (0, len(piece)) and piece[start:stop] in scores:
                best[stop] = max(best[stop], best[start] + scores[piece[start:stop]])
    return best[-1]
