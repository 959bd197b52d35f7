"""From text to tokens and their bytes: tokenizers, chat templates, conversations."""
