"""Parts of `tools.bench_scale`: stores that are large on paper, what they cost, and arithmetic."""
