"""Inspect a store: one sequence, the distribution of its numbers, or two stores side by side."""
