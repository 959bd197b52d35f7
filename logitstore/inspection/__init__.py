"""Looking into a store: one sequence, the distribution of its numbers, two stores side by side."""
