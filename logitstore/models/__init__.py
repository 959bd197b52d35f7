"""What teacher and student share of transformers models: loading, identity, output embedding."""
