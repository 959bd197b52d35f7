"""Find the tokens that a model itself lists as ends of what it writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def listed_ends(name: str, config: Any, revision: str | None = None) -> tuple[int, ...]:
    """List the `eos_token_id` of a model's `generation_config`, which may be one or several.

    Args:
        name: Folder or hub id of the model.
        config: Its configuration, which has the ids where there is no `generation_config.json`.
        revision: Revision of the hub model.
    """
    from transformers import GenerationConfig

    try:
        found: Any = GenerationConfig.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError, TypeError):  # as the model is loaded without one, too
        found = GenerationConfig.from_model_config(config)
    return ends_listed(found)


def ends_listed(generation_config: Any) -> tuple[int, ...]:
    """Read the `eos_token_id` of a `generation_config`: none, one, or several."""
    listed = getattr(generation_config, "eos_token_id", None)
    several = listed if isinstance(listed, Iterable) else [] if listed is None else [listed]
    return tuple(int(i) for i in several)
