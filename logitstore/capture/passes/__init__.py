"""Run batches through the teacher: forward passes and completions."""
