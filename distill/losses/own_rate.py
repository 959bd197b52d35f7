"""The learning rate of the weights that losses have of their own.

Written as literals, since :mod:`distill.losses.in_source` reads them.
"""

from distill.losses.loss import Option

#: Read by all losses that have some.
RATE = Option(
    "loss_learning_rate",
    0.001,
    "Learning rate of the weights that dskd and cot2align have of their own, in the same schedule "
    "as the student's.",
    expected="a number above 0",
    is_valid=lambda rate: 0 < rate < float("inf"),
)
