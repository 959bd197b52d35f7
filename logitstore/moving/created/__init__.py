"""Write a store from arrays that a caller has: `logitstore.create`.

    create.py      the function, with what its settings mean; settings.py checks them
    row_writer.py  takes rows in any order, checks them, seals the store
    shards.py      keeps rows until their shard is full, and commits it
    texts.py       finds the tokens of a row, and their places in its text
    teacher.py     the tokenizer, and what is known of the teacher
    given.py       the arrays that are given for a row
    form.py        what all rows have in common, and the spec
    encoded.py     makes records of the arrays: of full rows (full_rows.py, which logits.py
                   summarises in numpy), or of entries (entries.py)
    fits.py        notices, over many rows, arrays of other tokens and renormalised entries
    arrays.py      copies arrays of any library to numpy

Nothing here needs torch. Entries go through the same checks as an import (`moving/dumps`), and the
shards are those of `StoreWriter`.
"""
