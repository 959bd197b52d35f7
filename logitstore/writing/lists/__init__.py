"""Lists of (id, log-probability), one for each token, as servers and other tools give them.

lists.py     checks and sorts lists, and computes their tails
keyed.py     reads lists that are keyed by id, as vLLM writes them
sglang.py    reads lists of [log-probability, id, text], as SGLang writes them
"""
