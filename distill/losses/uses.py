"""The names under which a loss is used, where a run learns from several stores.

A run of one store has the arrays of a loss under the loss's own name. One of several has them once
for each store, `uld@0`, `uld@1`: what is aligned, asked of the student and compared is of that
store alone, and the values are added up at the end (:mod:`distill.training.loss_terms`).
"""

_MARK = "@"  # in no loss's name, which is a word of Python


def use(loss: str, store: int) -> str:
    """Name the use of a loss with a store, by the store's number."""
    return f"{loss}{_MARK}{store}"


def loss_of(used: str) -> str:
    """Tell which loss is used under a name."""
    return used.partition(_MARK)[0]


def store_of(used: str) -> int:
    """Tell with which store; 0 where there is one alone."""
    return int(used.partition(_MARK)[2] or 0)
