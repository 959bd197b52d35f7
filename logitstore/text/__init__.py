"""Turn text into tokens and their bytes: tokenizers, chat templates, conversations."""
