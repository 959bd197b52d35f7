"""The flags of losses that send the teacher's tokens to the student's, and what they choose.

Written as literals, since :mod:`distill.losses.in_source` reads them.
"""

from distill.losses.loss import Option, Options, Pairing

MAP = Option(
    "map",
    default="events",
    help="mapped_kl: how the teacher's tokens become the student's. events: both in groups "
    "of tokens that either can express. counted: as often as the student writes each where "
    "the teacher writes that, in the store's text. canonical: the student's own first "
    "token of the same bytes. prefix: its longest. strict: the token of equal bytes, where "
    "both sides end together. exact: as strict, where the teacher's most probable token is "
    "also one of the student's (exact token alignment, DSKDv2). p_kl, p_kl_weighted: the "
    "student's tokens become the teacher's. mined: the token of the least edit distance.",
    choices=(
        "events",
        "counted",
        "canonical",
        "prefix",
        "strict",
        "exact",
        "p_kl",
        "p_kl_weighted",
        "mined",
    ),
)
BETWEEN = Option(
    "between",
    default="off",
    help="mapped_kl: whether labels that begin inside one of the teacher's tokens are "
    "compared too, by what can follow there.",
    choices=("off", "on"),
)

#: Maps that ask what the text shows; the others are as they were published.
OURS, PUBLISHED = MAP.choices[:3], MAP.choices[3:]


def by_map(options: Options) -> Pairing:
    """Pair what begins together, and send the teacher's tokens to the student's as the run asks."""
    kind = options["map"]
    is_strict = kind in ("strict", "exact")
    return Pairing(
        "strict" if is_strict else "starts",
        "strict" if is_strict else kind,
        has_between=options["between"] == "on" and not is_strict,
        has_labels=kind in OURS,
        has_known_choice=kind == "exact",
    )
