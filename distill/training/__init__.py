"""Training a student from a store: settings, loss terms, the trainer, one run."""
