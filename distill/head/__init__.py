"""What losses see of a student: its distribution, chunk by chunk, without a matrix of logits."""
