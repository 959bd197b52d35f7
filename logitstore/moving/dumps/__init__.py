"""Dumps of other tools: per token a list of (id, log-probability), as Parquet, JSONL or responses.

    files.py         rows of Parquet and JSONL files, in order and from any row on
    columns.py       rows of columns: axolotl's KD data, prepared and raw
    responses.py     rows that are responses of vLLM or of an OpenAI-compatible server
    keyed_lists.py   lists that are keyed by id, as vLLM has them
    token_names.py   tokens that are named by their text instead of their id
    lists.py         the lists themselves: checked, sorted, completed by what they leave over
    locate.py        a row as text and records
    importing.py     a first pass that checks and counts everything, a second that writes

**Which token a list describes** is where such data goes wrong. Here, list t of a row describes the
distribution that predicted token t (`--aligned-to token`): so do vLLM's `prompt_logprobs`, whose
first is therefore null, and the raw `logprobs` that axolotl reads. Its prepared columns
(`target_logprobs` beside `input_ids`) describe the token after (`--aligned-to next`), and are moved
by one when they are read. Older versions prepared them otherwise; so before anything is written,
the lists must fit their tokens better than they fit their neighbours.
"""
