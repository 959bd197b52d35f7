"""Load and identify transformers models, and read their output embeddings: teacher and student."""
