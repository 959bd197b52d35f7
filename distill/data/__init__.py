"""A store as training batches: rows tokenised, aligned, packed and collated."""
