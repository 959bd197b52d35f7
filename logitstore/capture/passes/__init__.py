"""Batches through the teacher: forward passes, completions, and running out of memory."""
