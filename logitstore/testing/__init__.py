"""Build small stores, tiny models and a faulty bucket for tests of code that uses this package.

A test of code that reads a store needs one, and no teacher:

    import logitstore
    from logitstore.testing import stores

    def test_my_reader(tmp_path):
        stores.write(tmp_path / "store", stores.spec(top_k=4))
        assert my_reader(logitstore.open_store(tmp_path / "store")) == ...

A test that captures or trains takes a teacher and a student that are built in milliseconds, without
a download:

    from logitstore.testing import tiny

    tokenizer = tiny.byte_bpe()
    tiny.save(tmp_path / "teacher", tiny.llama(len(tokenizer)), tokenizer)

What each module holds, and the extra that it needs (`pip install 'logitstore[…]'`):

| module       | what it makes                                                       | extra     |
|--------------|---------------------------------------------------------------------|-----------|
| `stores`     | stores of random records, the same bytes every time                 | none      |
| `tiny`       | tokenizers of four kinds, a Llama of width 32, 48 documents         | `train`   |
| `unigram`    | the pieces of a Unigram tokenizer, the same in every process        | `train`   |
| `fake_store` | a store in memory with what a given teacher predicts                | `train`   |
| `buckets`    | an S3 server on this machine, whose requests fail when told to      | `testing` |
| `fixtures`   | pytest fixtures: `bucket`, an empty bucket of that server           | `testing` |

Nothing else in the package imports this one, and importing it imports none of its modules. A module
whose extra is not installed raises `MissingLibraryError`, which is an `ImportError`, so
`pytest.importorskip("logitstore.testing.tiny", exc_type=ImportError)` skips a test that needs it.
"""
