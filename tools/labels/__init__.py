"""The experiment on labels, `tools.experiment_labels`, in parts.

settings     students, contenders and jobs: what is compared with what
trim         a real tokenizer, cut down to the tokens that given texts use
renumbered   the store as a teacher of the trimmed tokenizer would have written it
parts        texts, store, tokenizers and students trained before: made once, in one folder
students     one training run in this process; `tools.workers` runs many of them
"""
