"""Import dumps of other tools: for each token a list of (id, log-probability).

    files.py         reads the rows of Parquet and JSONL files, in order, from any row
    columns.py       reads rows of columns: axolotl's KD data, prepared and raw
    responses.py     reads rows that are responses of vLLM, SGLang or a server like OpenAI's
    trl.py           reads rows of what TRL's client of a server returns
    distillkit.py    reads rows that DistillKit packed
    token_names.py   finds the id of a token that is named by its text
    locate.py        finds the text of a row and the records in it
    records.py       encodes them
    importing.py     checks and counts everything in a first pass, writes in a second

The lists themselves are read, checked and sorted in `writing/lists`.

**Which token a list describes** is where such data goes wrong. Here, list t of a row describes the
distribution that predicted token t (`--aligned-to token`). vLLM's `prompt_logprobs`, whose first
list is therefore null, and the raw `logprobs` that axolotl reads are aligned this way. axolotl's
prepared columns (`target_logprobs` beside `input_ids`) describe the token after (`--aligned-to
next`) and are shifted by one when they are read. Older versions of axolotl prepared them otherwise;
so before anything is written, the lists must fit their own tokens better than the tokens beside
them.
"""
