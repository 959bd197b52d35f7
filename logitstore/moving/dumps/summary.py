"""Print what an import counted, as aligned lines."""

from typing import Any

from logitstore.console.counts import counted


def summary_text(found: dict[str, Any]) -> str:
    """Format the counts of `first_pass.Survey.facts`; notes appear only where a count is not 0."""
    statuses = " · ".join(f"{n:,} {status}" for status, n in sorted(found["statuses"].items()))
    odd = (
        ("without_list", "supervised tokens without a list, which get no record"),
        ("not_in_their_list", "tokens that are not in their own list"),
        ("unsorted_lists", "lists that were not most probable first, sorted"),
        ("generated_left_out", "generated tokens left out: the lists are of the prompts"),
    )
    lines = {
        "layout": f"{found['layout']}, lists aligned to the {found['aligned_to']} token"
        if found["aligned_to"] == "next"
        else f"{found['layout']}, lists aligned to their token",
        "rows": f"{found['rows']:,} ({statuses}) in {counted(found['shards'], 'shard')}",
        "records": f"{found['records']:,} of {found['supervised_tokens']:,} supervised tokens, "
        f"{found['entries'] / max(found['records'], 1):.1f} entries each, at most "
        f"{found['top_k']:,}",
        "tail": f"{found['tail_mean']:.4f} of the probability on average",
    }
    text = [f"{name:<10}{value}" for name, value in lines.items()]
    text += [f"{'note':<10}{found[name]:,} {note}" for name, note in odd if found[name]]
    if found["missing"]:
        text.append(f"{'missing':<10}{', '.join(found['missing'])}")
    return "\n".join(text)
