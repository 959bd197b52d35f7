"""The sequences that a teacher reads: rows rendered, tokenised and cut into windows."""
