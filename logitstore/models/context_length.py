"""Find how many tokens a model can read at once."""

from typing import Any


def context_length(config: Any) -> int | None:
    """Look up the most tokens that a model can read at once.

    Args:
        config: Its `transformers` configuration; for a model of text and images, the part for text
            counts.

    Returns:
        Tokens; None where the configuration names no limit (T5, Mamba, Bloom).
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(positions) if positions else None
