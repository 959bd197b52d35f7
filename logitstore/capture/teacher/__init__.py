"""The teacher: loading it, and what its logits become."""
