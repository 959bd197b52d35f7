"""Whatever is wrong with a request: one exact message, status 2, and nothing written.

The table is what users read, so it is pinned word by word, libraries' words included. Adding a way
to be wrong is adding a row. What is wrong in each path lies in `wrong_places.py`.
"""

import errno
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer

from distill import cli as distill_cli
from distill.training import config
from logitstore import store as store_module
from logitstore.capture.teacher.teacher import chosen_device
from logitstore.cli import app as logitstore_cli
from logitstore.errors import InputError
from tests.kit import wrong_places

TRAIN = "distill train --model_name_or_path student --store store --output_dir out --use_cpu"
Break = Callable[[Path, pytest.MonkeyPatch], None]


class Wrong(NamedTuple):
    """A way to be wrong.

    Attributes:
        name: What is wrong.
        command: What was typed, in the folder of `wrong_places`.
        says: The whole message, with `<here>` for that folder and `<digest>` for digests.
        breaks: What else is wrong with the machine.
    """

    name: str
    command: str
    says: str
    breaks: Break | None = None


def denied(path: object) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def may_not_write(folder: str) -> Break:
    """Tests may run as root, who may do anything: so `os.access` is asked to say no."""

    def breaks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        access = os.access
        locked = here / folder

        def says(path: Any, mode: int, **more: Any) -> bool:
            return Path(path).absolute() != locked and access(path, mode, **more)

        monkeypatch.setattr(os, "access", says)

    return breaks


def may_not_read(name: str) -> Break:
    """Files of this name cannot be opened."""

    def breaks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opens = Path.open

        def refuses(path: Path, *args: Any, **more: Any) -> Any:
            if path.name == name:
                raise denied(path)
            return opens(path, *args, **more)

        monkeypatch.setattr(Path, "open", refuses)

    return breaks


def may_not_read_header(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, most: int) -> bytes:
        raise denied(path)

    monkeypatch.setattr("logitstore.format.spec.read_file", refuses)


def may_not_list_shards(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path) -> list[str]:
        raise denied(path)

    monkeypatch.setattr(store_module.os, "listdir", refuses)


def bad_ranks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")


def only_tensorboard(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "get_available_reporting_integrations", lambda: ["tensorboard"])


def no_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", fails)


WRONG = (
    # ---- the command line ----
    Wrong(
        "a command that is not there",
        "logitstore nonsense",
        "No such command 'nonsense'. See `logitstore --help`.",
    ),
    Wrong(
        "an argument left out",
        "logitstore capture",
        "Missing argument 'teacher'. See `logitstore capture --help`.",
    ),
    Wrong(
        "a store for nothing",
        "logitstore capture teacher rows.jsonl",
        "Missing option '--out'. See `logitstore capture --help`.",
    ),
    Wrong(
        "a flag misspelt",
        "logitstore capture teacher rows.jsonl --out s --topk 3",
        "No such option: --topk (Possible options: --stop, --top-k, --top-p). See `logitstore "
        "capture --help`.",
    ),
    Wrong(
        "a word for a number",
        "logitstore capture teacher rows.jsonl --out s --top-k many",
        "Invalid value for '--top-k': Input should be a valid integer, unable to parse string as "
        "an integer. See `logitstore capture --help`.",
    ),
    Wrong(
        "no entries",
        "logitstore capture teacher rows.jsonl --out s --top-k 0",
        "--top-k is 0, so no entries would be kept, and no draws are asked for. Add --draws 50 to "
        "draw from the whole distribution, or keep entries with --top-k 64.",
    ),
    Wrong(
        "more entries than tokens",
        "logitstore capture teacher rows.jsonl --out s --top-k 301",
        "--top-k is 301, but teacher has a vocabulary of 300. Use --top-k 300 or less.",
    ),
    Wrong(
        "draws without ids",
        "logitstore capture teacher rows.jsonl --out s --draws 9 --no-ids",
        "--draws is 9, but draws are token ids, and --no-ids keeps none. Leave one of the two out.",
    ),
    Wrong(
        "a seed for nothing",
        "logitstore capture teacher rows.jsonl --out s --seed 9",
        "--seed is 9, but nothing is drawn at random. Leave it out, or ask for --draws, or "
        "--generate with --generate-temperature.",
    ),
    Wrong(
        "completions of texts",
        "logitstore capture teacher rows.jsonl --out s --generate",
        "rows.jsonl: --generate writes completions for prompts; expected a column `prompt` (text "
        "or messages) or `messages`, found text. Name a column of prompts with --text-column, or "
        "leave out --generate.",
    ),
    Wrong(
        "completions that are there",
        "logitstore capture chatty talk.jsonl --out s --generate",
        "talk.jsonl: row 0: has a completion already, and --generate writes completions. Leave out "
        "--generate to capture what is there, or drop the completions.",
    ),
    Wrong(
        "sampling without a temperature",
        "logitstore capture teacher rows.jsonl --out s --generate --top-p 0.9",
        "--top-p is 0.9, but without a temperature the most probable token is always taken. Give "
        "--generate-temperature 1, or leave it out.",
    ),
    Wrong(
        "a stop string for what is not written",
        "logitstore capture teacher rows.jsonl --out s --stop X",
        "--stop is X, but nothing is written without --generate. Leave it out, or add --generate.",
    ),
    Wrong(
        "a probability above one",
        "logitstore capture teacher rows.jsonl --out s --max-tail 1.5",
        "--max-tail is 1.5, expected a probability between 0 and 1, such as 0.01.",
    ),
    Wrong(
        "the temperature that is always there",
        "logitstore capture teacher rows.jsonl --out s --temperature 1",
        "--temperature is 1.0, expected a positive number other than 1 (1 is always kept).",
    ),
    Wrong(
        "a temperature twice",
        "logitstore capture teacher rows.jsonl --out s --temperature 2 --temperature 2",
        "--temperature is given twice for one of [2.0, 2.0]. Give each once.",
    ),
    Wrong(
        "a batch of nothing",
        "logitstore capture teacher rows.jsonl --out s --tokens-per-batch 0",
        "--tokens-per-batch is 0, expected 1 or more.",
    ),
    Wrong(
        "a batch of some",
        "logitstore capture teacher rows.jsonl --out s --tokens-per-batch some",
        "--tokens-per-batch is some, expected a number or auto.",
    ),
    Wrong(
        "another word for rows that are not finite",
        "logitstore capture teacher rows.jsonl --out s --on-nan ignore",
        "--on-nan is ignore, expected stop or skip.",
    ),
    Wrong(
        "a quantisation that is not known",
        "logitstore capture teacher rows.jsonl --out s --quantization int4",
        "--quantization is int4, expected bitsandbytes-4bit, bitsandbytes-8bit, or a "
        """quantization_config of transformers as JSON, such as '{"quant_method": "hqq", """
        """"nbits": 4}'.""",
    ),
    Wrong(
        "an attention that is not known",
        "logitstore capture teacher rows.jsonl --out s --attn-implementation fast",
        "--attn-implementation fast: teacher cannot run with it here (ValueError: Specified "
        '`attn_implementation="fast"` is not supported). Use eager or sdpa, or leave it out; or '
        "install what it needs.",
    ),
    Wrong(
        "a device map that is none",
        "logitstore capture teacher rows.jsonl --out s --device-map everywhere",
        "--device-map is everywhere, expected auto, balanced, balanced_low_0, sequential, or "
        """modules and their devices as JSON, such as '{"": 0}'.""",
    ),
    Wrong(
        "a device and a map of them",
        "logitstore capture teacher rows.jsonl --out s --device cpu --device-map auto",
        "--device cpu and --device-map auto: each says where the teacher runs. Leave one of the "
        "two out.",
    ),
    Wrong(
        "a dataset that has changed since",
        "logitstore capture teacher talk-as-text.jsonl --out begun --top-k 8 --shard-text-bytes 30",
        "begun: the store was begun with other settings: the dataset is another, or has "
        "changed (plan.dataset_sha256 is <digest>… in the store, <digest>… now; 3 rows in the "
        "store, 1 now). Run with the store's settings to resume it, or choose another --out.",
    ),
    Wrong(
        "windows of one token",
        "logitstore capture teacher rows.jsonl --out s --max-length 1",
        "--max-length is 1; a record needs a token before it. Use --max-length 2 or more.",
    ),
    Wrong(
        "windows longer than the teacher reads",
        "logitstore capture teacher rows.jsonl --out s --max-length 10000",
        "--max-length is 10000, but teacher reads 512 tokens at most. Use --max-length 512 or "
        "less.",
    ),
    Wrong(
        "an overflow that is not known",
        "logitstore capture teacher rows.jsonl --out s --overflow wrap",
        "--overflow is wrap, expected split, truncate, skip.",
    ),
    Wrong(
        "nothing but context",
        "logitstore capture teacher rows.jsonl --out s --stride 300",
        "--stride is 300, expected 0 to 256: at most half of a window of 512 tokens may be "
        "context.",
    ),
    Wrong(
        "a stride without windows",
        "logitstore capture teacher rows.jsonl --out s --stride 3 --overflow skip",
        "--stride is 3, but with --overflow skip no row is cut into windows. Leave one of the "
        "two out.",
    ),
    Wrong(
        "a type that is not known",
        "logitstore capture teacher rows.jsonl --out s --dtype int4",
        "--dtype is int4, expected auto, float32, bfloat16, float16.",
    ),
    Wrong(
        "a device that is not there",
        "logitstore capture teacher rows.jsonl --out s --device cuda:7",
        "--device cuda:7: this machine has no such device; found cpu. Name one of these, or "
        "leave --device out to take the accelerator if there is one.",
    ),
    Wrong(
        "a device that does not exist",
        "logitstore capture teacher rows.jsonl --out s --device nonsense",
        "--device nonsense: this machine has no such device; found cpu. Name one of these, or "
        "leave --device out to take the accelerator if there is one.",
    ),
    Wrong(
        "a flag without effect",
        "logitstore capture teacher rows.jsonl --out s --supervise last",
        "rows.jsonl: its rows are no conversations (columns text), so --supervise last would "
        "have no effect. Leave it out.",
    ),
    Wrong(
        "a log in a folder that is not there",
        "logitstore capture teacher rows.jsonl --out s --log-json nowhere/log",
        "--log-json nowhere/log: cannot be written (No such file or directory). Give a file in a "
        "folder that exists and that you may write to.",
    ),
    Wrong(
        "a launcher's variables that are no numbers",
        "logitstore capture teacher rows.jsonl --out s",
        "RANK=one WORLD_SIZE=2 LOCAL_RANK=0: expected numbers, 0 <= RANK < WORLD_SIZE. Start "
        "through torchrun, accelerate launch or srun, or unset these variables to run one "
        "process.",
        bad_ranks,
    ),
    # ---- --out ----
    Wrong(
        "a store below a file",
        "logitstore capture teacher rows.jsonl --out rows.jsonl/s",
        "<here>/rows.jsonl: is a file, not a folder. Choose another --out.",
    ),
    Wrong(
        "a store in place of a file",
        "logitstore capture teacher rows.jsonl --out rows.jsonl",
        "rows.jsonl: is a file, not a folder. Choose another --out.",
    ),
    Wrong(
        "a store among other things",
        "logitstore capture teacher rows.jsonl --out occupied",
        "occupied: the folder holds something else (thesis.tex) and no store. Choose another "
        "--out, or empty the folder.",
    ),
    Wrong(
        "a store in a folder of others",
        "logitstore capture teacher rows.jsonl --out s",
        "<here>: no permission to write here. Nothing half-written is visible, and every shard "
        "committed before is good. Mend the folder's permissions, then run the same command "
        "again: it resumes.",
        may_not_write("."),
    ),
    Wrong(
        "another store's folder",
        "logitstore capture teacher rows.jsonl --out blind --top-k 8",
        "blind: the store was begun with other settings: capture.ids is false in the store, true "
        "now. Run with the store's settings to resume it, or choose another --out.",
    ),
    # ---- the teacher ----
    Wrong(
        "a teacher that is not there",
        "logitstore capture /nowhere/teacher rows.jsonl --out s",
        "/nowhere/teacher: cannot load a teacher from here (there is no such folder). Give a "
        "folder with config.json, weights and a fast tokenizer, or a hub id that this machine "
        "can reach or has cached.",
    ),
    Wrong(
        "a teacher that no hub has",
        "logitstore capture nobody/teacher rows.jsonl --out s",
        "nobody/teacher: cannot load a teacher from here (OSError: We couldn't connect to "
        "'https://huggingface.co' to load the files, and couldn't find them in the cached "
        "files). Give a folder with config.json, weights and a fast tokenizer, or a hub id that "
        "this machine can reach or has cached.",
    ),
    Wrong(
        "a file for a teacher",
        "logitstore capture rows.jsonl rows.jsonl --out s",
        "rows.jsonl: cannot load a teacher from here (it is a file, not a folder). Give a folder "
        "with config.json, weights and a fast tokenizer, or a hub id that this machine can reach "
        "or has cached.",
    ),
    Wrong(
        "a vocabulary that is too small",
        "logitstore capture small rows.jsonl --out s",
        "small: the teacher predicts 280 ids, but its tokenizer makes 300. Use the tokenizer "
        "that belongs to this model, or resize its embeddings.",
    ),
    Wrong(
        "a teacher without configuration",
        "logitstore capture no-config rows.jsonl --out s",
        "no-config: cannot load a teacher from here (ValueError: Unrecognized model in "
        "no-config. Should have a `model_type` key in its config.json). Give a folder with "
        "config.json, weights and a fast tokenizer, or a hub id that this machine can reach or "
        "has cached.",
    ),
    Wrong(
        "a configuration cut off",
        "logitstore capture bad-config rows.jsonl --out s",
        "bad-config: cannot load a teacher from here (config.json is damaged: JSONDecodeError: "
        "Expecting property name enclosed in double quotes: line 1 column 24 (char 23)). Give a "
        "folder with config.json, weights and a fast tokenizer, or a hub id that this machine "
        "can reach or has cached.",
    ),
    Wrong(
        "no causal model",
        "logitstore capture translator rows.jsonl --out s",
        "translator: AutoModelForCausalLM cannot load the teacher (ValueError: Unrecognized "
        "configuration class <class 'transformers.models.t5.configuration_t5.T5Config'> for this "
        "kind of AutoModel: AutoModelForCausalLM). Give a causal model, or download this one "
        "again.",
    ),
    Wrong(
        "a teacher without weights",
        "logitstore capture no-weights rows.jsonl --out s",
        "no-weights: no model weights here (*.safetensors or *.bin), found config.json, "
        "generation_config.json, tokenizer.json, tokenizer_config.json. Give the folder that "
        "`save_pretrained` wrote, or a hub id.",
    ),
    Wrong(
        "weights cut off",
        "logitstore capture cut-weights rows.jsonl --out s",
        "cut-weights: AutoModelForCausalLM cannot load the teacher (model.safetensors is "
        "damaged: SafetensorError: Error while deserializing header: incomplete metadata, file "
        "not fully covered). Give a causal model, or download this one again.",
    ),
    Wrong(
        "weights cut off, seen by a dry run",
        "logitstore capture cut-weights rows.jsonl --out s --dry-run",
        "cut-weights: AutoModelForCausalLM cannot load the teacher (model.safetensors is "
        "damaged: SafetensorError: Error while deserializing header: incomplete metadata, file "
        "not fully covered). Give a causal model, or download this one again.",
    ),
    Wrong(
        "a weight that is missing",
        "logitstore capture headless rows.jsonl --out s",
        "headless: 1 of the teacher's weights are missing, first lm_head.weight. Download the "
        "model again, or save all of it with model.save_pretrained(FOLDER).",
    ),
    Wrong(
        "weights that may not be read",
        "logitstore capture teacher rows.jsonl --out s",
        "teacher/model.safetensors: cannot be read (Permission denied). Fix its permissions, or "
        "copy the model to where you may read it.",
        may_not_read("model.safetensors"),
    ),
    Wrong(
        "a tokenizer cut off",
        "logitstore capture bad-tokenizer rows.jsonl --out s",
        "bad-tokenizer: AutoTokenizer cannot load it (tokenizer.json is damaged: "
        "JSONDecodeError: Expecting value: line 1 column 11 (char 10)). Give a folder with "
        "config.json, weights and a fast tokenizer, or a hub id that this machine can reach or "
        "has cached.",
    ),
    Wrong(
        "a teacher without tokenizer",
        "logitstore capture no-tokenizer rows.jsonl --out s",
        "no-tokenizer: AutoTokenizer cannot load it (ValueError: Couldn't instantiate the "
        "backend tokenizer from one of: (1) a `tokenizers` library serialization file,). Give a "
        "folder with config.json, weights and a fast tokenizer, or a hub id that this machine "
        "can reach or has cached.",
    ),
    # ---- the dataset ----
    Wrong(
        "a dataset that is not there",
        "logitstore capture teacher nowhere.jsonl --out s",
        "nowhere.jsonl: no such file or folder. Give its path, or the id of a dataset.",
    ),
    Wrong(
        "a dataset that no hub has",
        "logitstore capture teacher nobody/data --out s",
        "nobody/data: neither a file or folder here nor a dataset that the hub gives "
        "(ConnectionError: Couldn't reach 'nobody/data' on the Hub (OfflineModeIsEnabled)). "
        "Check the name, --config-name and --split, or give a path.",
    ),
    Wrong(
        "a folder without data",
        "logitstore capture teacher occupied --out s",
        "occupied: `datasets` cannot read it (DataFilesNotFoundError: No (supported) data files "
        "found in occupied). Check that its files are whole and hold the same columns; "
        "load_dataset('occupied') in Python says more.",
    ),
    Wrong(
        "a dataset that may not be read",
        "logitstore capture teacher rows.jsonl --out s",
        "rows.jsonl: cannot be read (Permission denied). Mend its permissions, or copy it to "
        "where you may read it.",
        may_not_read("rows.jsonl"),
    ),
    Wrong(
        "a split that is not there",
        "logitstore capture teacher rows.jsonl --out s --split test",
        "rows.jsonl: no split 'test' (ValueError: Unknown split \"test\". Should be one of "
        "['train']); found train. Choose with --split NAME, or a slice of one such as "
        "'NAME[:1000]'.",
    ),
    Wrong(
        "a configuration of a file",
        "logitstore capture teacher rows.jsonl --out s --config-name de",
        "rows.jsonl (a file) has no config name: leave out --config-name de.",
    ),
    Wrong(
        "a column that is not there",
        "logitstore capture teacher rows.jsonl --out s --text-column body",
        "rows.jsonl: no column 'body'; found text. Name one of these.",
    ),
    Wrong(
        "columns that are not known",
        "logitstore capture teacher columns.jsonl --out s",
        "columns.jsonl: no known columns; expected `text`, `messages`, `prompt` and "
        "`completion`, or `input_ids`, found question, reply. Name the column to train on with "
        "--text-column.",
    ),
    Wrong(
        "conversations of another shape",
        "logitstore capture teacher sharegpt.jsonl --out s",
        "sharegpt.jsonl: no known columns; expected `text`, `messages`, `prompt` and "
        "`completion`, or `input_ids`, found conversations. Rename 'conversations' to "
        "'messages', with a role and a content in each: dataset.rename_column('conversations', "
        "'messages').",
    ),
    Wrong(
        "numbers for text",
        "logitstore capture teacher numbers.jsonl --out s",
        "numbers.jsonl: column 'text' holds int64, expected text. Name a column of strings with "
        "--text-column.",
    ),
    Wrong(
        "a prompt of text, a completion of messages",
        "logitstore capture teacher half.jsonl --out s",
        "half.jsonl: column 'prompt' holds string, expected lists of messages. `prompt` and "
        '`completion` are both text, or both messages. Write each message as {"role": …, '
        '"content": …}.',
    ),
    Wrong(
        "a message without role",
        "logitstore capture chatty no-role.jsonl --out s",
        "no-role.jsonl: row 0: message 0 is no message; expected a dict with a role and a "
        'content, found [\'content\', \'from\']. A row reads {"messages": [{"role": "user", '
        '"content": "…"}, …]}.',
    ),
    Wrong(
        "an image",
        "logitstore capture chatty image.jsonl --out s",
        "image.jsonl: row 0: message 0: has a part of type image, but only text is read. Leave "
        "images and sounds out, or drop the row.",
    ),
    Wrong(
        "tokens of another vocabulary",
        "logitstore capture teacher far.jsonl --out s",
        "far.jsonl: row 0: token ids reach from 5 to 300, but the teacher's tokenizer has 0 to "
        "299. Tokenise the dataset with it, or give text.",
    ),
    Wrong(
        "labels that are shifted",
        "logitstore capture teacher shifted.jsonl --out s",
        "shifted.jsonl: row 0: label 0 is 6, expected the token itself (5) or -100. Labels lie "
        "on their own tokens here, as Trainer has them: do not shift them.",
    ),
    Wrong(
        "a mask that is too short",
        "logitstore capture teacher short.jsonl --out s",
        "short.jsonl: row 0: completion_mask has 2 values, but there are 3 input_ids. Give one a "
        "token, or leave the column out.",
    ),
    Wrong(
        "a line cut off",
        "logitstore capture teacher cut.jsonl --out s",
        "cut.jsonl: line 2 is not JSON (Invalid control character at at column 14). Each line "
        'must be one object, such as {"text": "…"}.',
    ),
    Wrong(
        "half a surrogate pair",
        "logitstore capture teacher surrogate.jsonl --out s",
        "surrogate.jsonl: line 2 holds half of a surrogate pair (\\ud800 to \\udfff alone), "
        "which no UTF-8 text can hold. Repair or drop the row.",
    ),
    Wrong(
        "text that is not UTF-8",
        "logitstore capture teacher latin.txt --out s",
        "latin.txt: line 1 is not UTF-8 (byte 0xF6). Convert the file: iconv -f ENCODING -t "
        "UTF-8 latin.txt.",
    ),
    Wrong(
        "an empty file",
        "logitstore capture teacher empty.jsonl --out s",
        "empty.jsonl: 0 rows, the file is empty. Give one with text.",
    ),
    Wrong(
        "a kind of file that is not known",
        "logitstore capture teacher rows.csv --out s",
        "rows.csv: unknown kind of file; expected .jsonl, .json, .parquet, .txt, found '.csv'. "
        "Convert it, or load it with `datasets` and save_to_disk.",
    ),
    Wrong(
        "a Parquet file cut off",
        "logitstore capture teacher bad.parquet --out s",
        "bad.parquet: `datasets` cannot read it (ArrowInvalid: Parquet magic bytes not found in "
        "footer. Either the file is corrupted or this is not a parquet file). Check that its "
        "files are whole and hold the same columns; load_dataset('bad.parquet') in Python says "
        "more.",
    ),
    # ---- chat templates ----
    Wrong(
        "conversations for a teacher without template",
        "logitstore capture teacher talk.jsonl --out s",
        "teacher: the rows are conversations, but its tokenizer has no chat template to write "
        "them with. Give one with --chat-template-path FILE.jinja.",
    ),
    Wrong(
        "a role that the template refuses",
        "logitstore capture chatty system.jsonl --out s",
        "system.jsonl: row 0: the chat template refuses this conversation: System role not "
        "supported. Change the row, or give another template with --chat-template-path.",
    ),
    Wrong(
        "a template that is not there",
        "logitstore capture chatty talk.jsonl --out s --chat-template-path nowhere.jinja",
        "--chat-template-path nowhere.jinja: cannot be read (FileNotFoundError: [Errno 2] No "
        "such file or directory: 'nowhere.jinja'). Give a Jinja file, or the folder of a "
        "tokenizer that has a chat template.",
    ),
    Wrong(
        "a tokenizer without template",
        "logitstore capture chatty talk.jsonl --out s --chat-template-path teacher",
        "--chat-template-path teacher: the tokenizer there has no chat template. Give a Jinja "
        "file, or the folder of a tokenizer that has a chat template.",
    ),
    Wrong(
        "a template's tokenizer cut off",
        "logitstore capture chatty talk.jsonl --out s --chat-template-path bad-tokenizer",
        "--chat-template-path bad-tokenizer: AutoTokenizer cannot load it (tokenizer.json is "
        "damaged: JSONDecodeError: Expecting value: line 1 column 11 (char 10)). Give a Jinja "
        "file, or the folder of a tokenizer that has a chat template.",
    ),
    Wrong(
        "a template cut off",
        "logitstore capture chatty talk.jsonl --out s --chat-template-path bad.jinja",
        "talk.jsonl: row 0: the chat template refuses this conversation: Unexpected end of "
        "template. Jinja was looking for the following tags: 'endfor' or 'else'. The innermost "
        "block that needs to be closed is 'for'. Change the row, or give another template with "
        "--chat-template-path.",
    ),
    Wrong(
        "a template that fails",
        "logitstore capture chatty talk.jsonl --out s --chat-template-path zero.jinja",
        "talk.jsonl: row 0: the chat template refuses this conversation: ZeroDivisionError: "
        "division by zero. Change the row, or give another template with --chat-template-path.",
    ),
    Wrong(
        "variables that are no JSON",
        "logitstore capture chatty talk.jsonl --out s --chat-template-kwargs '{\"a\"'",
        "--chat-template-kwargs {\"a\": is not JSON (Expecting ':' delimiter at column 5). Give "
        "an object such as '{\"enable_thinking\": false}'.",
    ),
    Wrong(
        "variables that are a list",
        "logitstore capture chatty talk.jsonl --out s --chat-template-kwargs '[1]'",
        "--chat-template-kwargs [1]: expected a JSON object, found list. Give one such as "
        "'{\"enable_thinking\": false}'.",
    ),
    Wrong(
        "turns that are not known",
        "logitstore capture chatty talk.jsonl --out s --supervise some",
        "--supervise is some, expected all or last.",
    ),
    # ---- stores ----
    Wrong(
        "no store",
        "logitstore info occupied",
        "occupied: no store.json of a logit store here, so this is not a store. Make one with "
        "`logitstore capture TEACHER DATASET --out STORE`, or check the path.",
    ),
    Wrong(
        "a file for a store",
        "logitstore info rows.jsonl",
        "rows.jsonl: no store.json of a logit store here, so this is not a store. Make one with "
        "`logitstore capture TEACHER DATASET --out STORE`, or check the path.",
    ),
    Wrong(
        "a store of a newer version",
        "logitstore info newer",
        "newer: the store is of format version 9, this reader knows version 1. Upgrade with `pip "
        "install --upgrade logitstore`.",
    ),
    Wrong(
        "a store that is not finished",
        "logitstore info begun",
        "begun: holds 3 of 3 rows; the capture has not finished. Run the same `logitstore "
        "capture …` again to resume it, or use what is there with --allow-partial.",
    ),
    Wrong(
        "a header that may not be read",
        "logitstore info store",
        "store/store.json: cannot be read (Permission denied). Mend that first.",
        may_not_read_header,
    ),
    Wrong(
        "a header cut off",
        "logitstore info bad-header",
        "bad-header/store.json: it is not the JSON of a store (Expecting property name enclosed "
        "in double quotes: line 1 column 2 (char 1)). Restore the file from a copy; the shards "
        "beside it are still good.",
    ),
    Wrong(
        "a shard that is lost",
        "logitstore info lost-shard",
        "lost-shard/shards/00001.zarr.zip: the file is missing, with rows 2 to 2 (1 of 2 shards "
        "are). Restore it from a copy, or run `logitstore repair lost-shard` to redo it.",
    ),
    Wrong(
        "an index cut off",
        "logitstore info bad-index",
        "bad-index/index.parquet: it is not the file that was sealed (SHA-256 <digest>…, not "
        "<digest>…). Every shard may still be good: `logitstore repair bad-index` checks them, "
        "and rebuilds index and seal.",
    ),
    Wrong(
        "a store without shards",
        "logitstore info no-shards",
        "no-shards: has a store.json but no shards/ folder. Copy the whole store, or run the "
        "same `logitstore capture …` again.",
    ),
    Wrong(
        "shards that may not be listed",
        "logitstore info store",
        "store/shards: cannot be read (Permission denied). Mend that first.",
        may_not_list_shards,
    ),
    Wrong(
        "a sequence that is not there",
        "logitstore show store 99",
        "store: there is no sequence 99; it holds 0 to 2. Give one of these, or --worst 10 for "
        "where to look.",
    ),
    Wrong(
        "a word for a sequence",
        "logitstore show store first",
        "Invalid value for 'sequence': Input should be a valid integer, unable to parse string "
        "as an integer. See `logitstore show --help`.",
    ),
    Wrong(
        "a shard cut off",
        "logitstore show cut-shard 0",
        "cut-shard/shards/00000.zarr.zip: rows 0 to 1: the end record is not where and what it "
        "must be: cut off?. Nothing was returned in its place. See `logitstore verify "
        "cut-shard`; then restore the file from a copy, or run `logitstore repair cut-shard` to "
        "redo just this shard.",
    ),
    Wrong(
        "nothing to verify",
        "logitstore verify nowhere",
        "nowhere: no store.json of a logit store here, so this is not a store. Make one with "
        "`logitstore capture TEACHER DATASET --out STORE`, or check the path.",
    ),
    Wrong(
        "verifying before the end",
        "logitstore verify begun",
        "begun: holds 3 of 3 rows; the capture has not finished. Run the same `logitstore "
        "capture …` again to resume it, or check what is there with --allow-partial.",
    ),
    Wrong(
        "nothing to repair",
        "logitstore repair occupied",
        "occupied: no store.json of a logit store here, so this is not a store. Make one with "
        "`logitstore capture TEACHER DATASET --out STORE`, or check the path.",
    ),
    Wrong(
        "nothing left to repair",
        "logitstore repair bad-header",
        "bad-header/store.json: it is not the JSON of a store (Expecting property name enclosed "
        "in double quotes: line 1 column 2 (char 1)). Restore the file from a copy; the shards "
        "beside it are still good.",
    ),
    # ---- training ----
    Wrong(
        "a student for nobody",
        "distill train --store store --output_dir out",
        "--model_name_or_path is required: the student, a hub id or a folder. Or "
        "--student_config, for a new one.",
    ),
    Wrong(
        "training from nothing",
        "distill train --output_dir out --model_name_or_path student",
        "--store is required: the store written by `logitstore capture`.",
    ),
    Wrong(
        "training from no store",
        f"{TRAIN} --store nowhere",
        "nowhere: no store.json of a logit store here, so this is not a store. Make one with "
        "`logitstore capture TEACHER DATASET --out STORE`, or check the path.",
    ),
    Wrong(
        "training from a store that is not finished",
        f"{TRAIN} --store begun",
        "begun: holds 3 of 3 rows; the capture has not finished. Run the same `logitstore "
        "capture …` again to resume it, or use what is there with --allow-partial.",
    ),
    Wrong(
        "a student that is not there",
        f"{TRAIN} --model_name_or_path /nowhere/student",
        "/nowhere/student: AutoTokenizer cannot load it (there is no "
        "such folder). Give the folder of a language model with its tokenizer, or a hub id that "
        "this machine can reach or has cached.",
    ),
    Wrong(
        "packed texts for an encoder-decoder",
        f"{TRAIN} --model_name_or_path two-sided --packing",
        "--packing: two-sided is an encoder-decoder, whose decoder would read the prompts of all "
        "texts in a row. Leave --packing out; --train_sampling_strategy group_by_length also "
        "saves padding.",
    ),
    Wrong(
        "packed texts for a model that sees its neighbours",
        f"{TRAIN} --model_name_or_path alibi --packing",
        "--packing: alibi reads a text otherwise when another lies in front of it in its row: "
        "BloomForCausalLM with eager attention does not keep to position_ids that start again (a "
        "recurrent state, positions of its own, or an attention without a mask). Leave --packing "
        "out; --train_sampling_strategy group_by_length also saves padding.",
    ),
    Wrong(
        "an order that needs lengths",
        f"{TRAIN} --train_sampling_strategy batch_rebalance",
        "argument --train_sampling_strategy/--train-sampling-strategy: invalid choice: "
        "'batch_rebalance' (choose from 'random', 'group_by_length', 'sequential'). See `distill "
        "train --help`.",
    ),
    Wrong(
        "a student's weights cut off",
        f"{TRAIN} --model_name_or_path cut-weights",
        "cut-weights: AutoModelForCausalLM or AutoModelForSeq2SeqLM cannot load it "
        "(model.safetensors "
        "is damaged: SafetensorError: Error while deserializing header: incomplete metadata, "
        "file not fully covered). Give the folder of a language model with its tokenizer, or a hub "
        "id that this machine can reach or has cached.",
    ),
    Wrong(
        "a student's tokenizer cut off",
        f"{TRAIN} --model_name_or_path bad-tokenizer",
        "bad-tokenizer: AutoTokenizer cannot load it (tokenizer.json is "
        "damaged: JSONDecodeError: Expecting value: line 1 column 11 (char 10)). Give the folder "
        "of a language model with its tokenizer, or a hub id that this machine can reach or has "
        "cached.",
    ),
    Wrong(
        "a student with too few embeddings",
        f"{TRAIN} --model_name_or_path small",
        "small: its tokenizer has ids up to 299, but the model only 280 embeddings. Save it once "
        "with model.resize_token_embeddings(300).",
    ),
    Wrong(
        "an output folder that holds something",
        f"{TRAIN} --output_dir occupied",
        "--output_dir occupied: expected a new or empty folder, found 1 entries (thesis.tex). "
        "Name another folder, or delete it.",
    ),
    Wrong(
        "an output folder below a file",
        f"{TRAIN} --output_dir rows.jsonl/out",
        "rows.jsonl/out: <here>/rows.jsonl is a file, not a folder. Use another folder.",
    ),
    Wrong(
        "an output folder among others' things",
        TRAIN,
        "out: no permission to write to <here>. Mend its permissions, or use another folder.",
        may_not_write("."),
    ),
    Wrong(
        "an output folder of an earlier run",
        f"{TRAIN} --output_dir other-run",
        "--output_dir other-run: holds checkpoints of an earlier run. Go on from the last one "
        "with --resume_from_checkpoint true, or name another folder.",
    ),
    Wrong(
        "a flag of Trainer misspelt",
        f"{TRAIN} --lerning_rate 1",
        "no flag is called --lerning_rate. Did you mean learning_rate? See `distill train --help`.",
    ),
    Wrong(
        "a stray word",
        f"{TRAIN} --seed 1 stray",
        "'stray' is neither a flag nor the value of one. See `distill train --help`.",
    ),
    Wrong(
        "a word for a seed",
        f"{TRAIN} --seed many",
        "argument --seed: invalid int value: 'many'. See `distill train --help`.",
    ),
    Wrong(
        "a loss that is not known",
        f"{TRAIN} --loss kl",
        "--loss kl: no loss is called 'kl'. Known: ce, mapped_kl, tail_kl, sampled_kl, uld, "
        "multilevel_ot, alm. Name one of these. Cross-entropy is added to the others by "
        "--ce_weight.",
    ),
    Wrong(
        "a weight of nothing",
        f"{TRAIN} --loss uld:0",
        "--loss uld:0: the weight '0' is not a number above 0. Write NAME:WEIGHT, such as uld:1.5.",
    ),
    Wrong(
        "ids compared across tokenizers",
        f"{TRAIN} --loss tail_kl",
        "store: made with tokenizer <digest>… (<here>/teacher), but the student uses <digest>… "
        "(student). tail_kl compares tokens by id, so they must be the same. Use --loss "
        "mapped_kl, or a student with the teacher's tokenizer.",
    ),
    Wrong(
        "ids that were not stored",
        f"{TRAIN} --store blind",
        "blind: captured with --no-ids, but mapped_kl must know which tokens the probabilities "
        "belong to. Use --loss uld, or run `logitstore capture …` again without --no-ids.",
    ),
    Wrong(
        "a temperature that was not stored",
        f"{TRAIN} --model_name_or_path teacher --loss tail_kl --temperature 3",
        "store: holds temperature 1, but --temperature is 3: what lies outside the entries is "
        "not known at another one. Run `logitstore capture …` again with --temperature 3, or "
        "train with one that the store holds.",
    ),
    Wrong(
        "a temperature without effect",
        f"{TRAIN} --temperature 3",
        "--temperature 3.0 would have no effect: --loss mapped_kl is without tail_kl. Leave "
        "--temperature out, or add tail_kl.",
    ),
    Wrong(
        "a negative learning rate",
        f"{TRAIN} --learning_rate -1",
        "--learning_rate is -1.0, expected a number >= 0.",
    ),
    Wrong(
        "a student's batch of nothing",
        f"{TRAIN} --per_device_train_batch_size 0",
        "--per_device_train_batch_size is 0, expected a number >= 1.",
    ),
    Wrong(
        "an evaluation of nothing",
        f"{TRAIN} --eval_strategy steps",
        "--eval_strategy steps: there is no text to evaluate on. Add --eval_store.",
    ),
    Wrong(
        "a flag of Trainer that would do nothing",
        f"{TRAIN} --label_smoothing_factor 0.1",
        "--label_smoothing_factor 0.1 would have no effect: the cross-entropy is not Trainer's; "
        "a soft target is what --loss is. Leave --label_smoothing_factor out.",
    ),
    Wrong(
        "a logger that is not known",
        f"{TRAIN} --report_to nonsense",
        "--report_to nonsense: no logger that is known; found tensorboard. Use one of these, or "
        "--report_to none.",
        only_tensorboard,
    ),
    Wrong(
        "a logger that is not installed",
        f"{TRAIN} --report_to wandb",
        "--report_to wandb: the package wandb is not installed. Run `pip install wandb`, or use "
        "--report_to none.",
        only_tensorboard,
    ),
    Wrong(
        "a student's template without conversations",
        f"{TRAIN} --chat_template_path bad.jinja",
        "store: its rows are no conversations, so --chat_template_path bad.jinja would have no "
        "effect. Leave it out.",
    ),
    Wrong(
        "going on from nothing",
        f"{TRAIN} --resume_from_checkpoint true",
        "out: holds no checkpoint to resume from. Leave --resume_from_checkpoint out to start "
        "anew, or name a checkpoint-N folder.",
    ),
    Wrong(
        "going on from a model",
        f"{TRAIN} --resume_from_checkpoint teacher",
        "teacher: not a checkpoint of `distill train`, distill.json is missing. To start anew "
        "from its weights: --model_name_or_path teacher.",
    ),
    Wrong(
        "going on with other data",
        f"{TRAIN} --output_dir other-run --resume_from_checkpoint true",
        "other-run/checkpoint-2: trained on store 0 with 3 sequences, but store is <digest> with "
        "3: the rest of the epoch would be other data. Give the same --store, or start anew from "
        "its weights: --model_name_or_path other-run/checkpoint-2.",
    ),
    Wrong(
        "a checkpoint's origin cut off",
        f"{TRAIN} --output_dir resumed --resume_from_checkpoint true",
        "resumed/checkpoint-2/distill.json: this file of the checkpoint is damaged "
        "(JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)). Name an earlier checkpoint-N folder with --resume_from_checkpoint, or start "
        "anew in another --output_dir.",
    ),
    Wrong(
        "a checkpoint's weights cut off",
        f"{TRAIN} --output_dir cut-run --resume_from_checkpoint true",
        "cut-run/checkpoint-2/model.safetensors: this file of the checkpoint is damaged "
        "(SafetensorError: Error while deserializing header: incomplete metadata, file not fully "
        "covered). Name an earlier checkpoint-N folder with --resume_from_checkpoint, or start "
        "anew in another --output_dir.",
    ),
    Wrong(
        "a checkpoint's optimizer cut off",
        f"{TRAIN} --output_dir cut-state --resume_from_checkpoint true",
        "cut-state/checkpoint-2/optimizer.pt: this file of the checkpoint is damaged "
        "(BadZipFile: File is not a zip file). Name an earlier checkpoint-N folder with "
        "--resume_from_checkpoint, or start anew in another --output_dir.",
    ),
    Wrong(
        "a run that is not there",
        "distill train --config nowhere.yaml",
        "--config nowhere.yaml: cannot be read as YAML ([Errno 2] No such file or directory: "
        "'nowhere.yaml'). Give a file of lines such as `learning_rate: 1e-4`.",
    ),
    Wrong(
        "a key misspelt",
        "distill train --config typo.yaml",
        "--config typo.yaml: no key is called learning_rte. Did you mean learning_rate? See "
        "`distill train --help`.",
    ),
    Wrong(
        "a run that is a list",
        "distill train --config list.yaml",
        "--config list.yaml: expected `key: value` lines, found list. Give lines such as "
        "`learning_rate: 1e-4`.",
    ),
    # ---- evaluation and coverage ----
    Wrong(
        "a metric that is not known",
        "distill evaluate student rows.jsonl --metrics accuracy",
        "--metrics accuracy: not known. Known: bits_per_byte, agreement, uld, calibration, "
        "token_f1, exact_match, rouge. Name one.",
    ),
    Wrong(
        "a store where a dataset is expected",
        "distill evaluate student store",
        "store: is a store, and where a dataset is expected. Give it as --store store, with "
        "--metrics agreement,uld,calibration, or name the dataset of held-out text.",
    ),
    Wrong(
        "samples of no dataset",
        "distill evaluate student --samples 2",
        "--samples 2: written after prompts of a dataset, but none is given. Name it behind the "
        "model: `distill evaluate MODEL DATA`.",
    ),
    Wrong(
        "a model that is no folder, and no hub to ask",
        "distill evaluate nowhere rows.jsonl",
        "nowhere: AutoTokenizer cannot load it (there is no such folder here, and huggingface.co "
        "cannot be reached: no network). Give the folder of a language model with its tokenizer, "
        "or a hub id that this machine can reach or has cached.",
        no_network,
    ),
    Wrong(
        "a type to evaluate in that is not known",
        "distill evaluate student rows.jsonl --dtype int4",
        "--dtype int4: expected one of float32, bfloat16, float16, auto.",
    ),
    Wrong(
        "windows of one token to evaluate",
        "distill evaluate student rows.jsonl --max-length 1",
        "--max-length 1: expected at least 2 tokens.",
    ),
    Wrong(
        "a model that is not there",
        "distill evaluate /nowhere/student rows.jsonl",
        "/nowhere/student: AutoTokenizer cannot load it (there is no "
        "such folder). Give the folder of a language model with its tokenizer, or a hub id that "
        "this machine can reach or has cached.",
    ),
    Wrong(
        "a model's weights cut off",
        "distill evaluate cut-weights rows.jsonl",
        "cut-weights: AutoModelForCausalLM or AutoModelForSeq2SeqLM cannot load it "
        "(model.safetensors "
        "is damaged: SafetensorError: Error while deserializing header: incomplete metadata, "
        "file not fully covered). Give the folder of a language model with its tokenizer, or a hub "
        "id that this machine can reach or has cached.",
    ),
    Wrong(
        "a model with too few embeddings",
        "distill evaluate small rows.jsonl",
        "small: its tokenizer has ids up to 299, but the model only 280 embeddings. Save it once "
        "with model.resize_token_embeddings(300).",
    ),
    Wrong(
        "nothing to evaluate on",
        "distill evaluate student nowhere.jsonl",
        "nowhere.jsonl: no such file or folder. Give its path, or the id of a dataset.",
    ),
    Wrong(
        "tokens to evaluate on",
        "distill evaluate student far.jsonl",
        "far.jsonl: its rows are token ids of one tokenizer, but bits per byte are for comparing "
        "models of any. Name a column of strings with --text-column.",
    ),
    Wrong(
        "nothing to predict",
        "distill evaluate student nothing.jsonl",
        "nothing.jsonl: none of the 1 rows has a byte that this model can predict. Check --split "
        "and --text-column.",
    ),
    Wrong(
        "conversations for a model without template",
        "distill evaluate student talk.jsonl",
        "student: the rows are conversations, but its tokenizer has no chat template to write "
        "them with. Give one with --chat-template-path FILE.jinja.",
    ),
    Wrong(
        "results cut off",
        "distill evaluate bad-results rows.jsonl",
        "bad-results/results.json: the run object of this student cannot be read "
        "(JSONDecodeError: Unterminated string starting at: line 1 column 10 (char 9)). Restore "
        "it from a copy, or delete it to evaluate without it.",
    ),
    Wrong(
        "results that may not be written",
        "distill evaluate good-results rows.jsonl",
        "good-results: no permission to write to good-results. Mend its permissions, or use "
        "another folder.",
        may_not_write("good-results"),
    ),
    Wrong(
        "coverage of no store",
        "distill coverage nowhere student",
        "nowhere: no store.json of a logit store here, so this is not a store. Make one with "
        "`logitstore capture TEACHER DATASET --out STORE`, or check the path.",
    ),
    Wrong(
        "coverage by nobody",
        "distill coverage store /nowhere/student",
        "/nowhere/student: AutoTokenizer cannot load it (there is no such folder). Give the "
        "folder of a language model with its tokenizer, or a hub id that this machine can reach "
        "or has cached.",
    ),
    Wrong(
        "coverage by a tokenizer cut off",
        "distill coverage store bad-tokenizer",
        "bad-tokenizer: AutoTokenizer cannot load it (tokenizer.json is damaged: "
        "JSONDecodeError: Expecting value: line 1 column 11 (char 10)). Give the folder of a "
        "language model with its tokenizer, or a hub id that this machine can reach or has "
        "cached.",
    ),
    Wrong(
        "coverage of nothing",
        "distill coverage store student --sequences 0",
        "--sequences 0: expected at least 1.",
    ),
    Wrong(
        "coverage of a shard cut off",
        "distill coverage cut-shard student",
        "cut-shard/shards/00000.zarr.zip: rows 0 to 1: the end record is not where and what it "
        "must be: cut off?. Nothing was returned in its place. See `logitstore verify "
        "cut-shard`; then restore the file from a copy, or run `logitstore repair cut-shard` to "
        "redo just this shard.",
    ),
    Wrong(
        "another command that is not there",
        "distill nonsense",
        "No such command 'nonsense'. See `distill --help`.",
    ),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wrong_places.make(tmp_path_factory.mktemp("here"))


@pytest.fixture(autouse=True)
def one_plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine this is: the message lists its devices."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.parametrize("wrong", WRONG, ids=[wrong.name for wrong in WRONG])
def test_a_wrong_input_is_one_exact_message_status_2_and_nothing_written(
    wrong: Wrong,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    before = everything(here)
    monkeypatch.setattr(sys, "argv", shlex.split(wrong.command))
    main = distill_cli.main if wrong.command.startswith("distill") else logitstore_cli.main
    with monkeypatch.context() as broken:
        if wrong.breaks is not None:
            wrong.breaks(here, broken)
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "Traceback" not in err
    assert re.findall(r"^error: (.*)\Z", as_pinned(err, here), re.DOTALL | re.MULTILINE) == [
        wrong.says + "\n"
    ]
    assert everything(here) == before


def as_pinned(text: str, here: Path) -> str:
    """Without what differs from machine to machine."""
    return re.sub(r"\b[0-9a-f]{8,64}\b", "<digest>", text.replace(str(here), "<here>"))


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files and folders below, by relative name."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


# ---- what every message has ----

#: How a sentence that says what to do begins.
STEPS = re.compile(
    r"(?:^|[.;,:?] |, or |then )"
    r"(?:Add|Change|Check|Choose|Convert|Copy|Download|Drop|Each line must|Give|Go on|Leave|leave"
    r"|Make|Mend|Name|Rename|Repair|Restore|Run|Save|See|Start|Tokenise|To start|Upgrade|Use|Write"
    r"|do not shift|run|use|A row reads|`logitstore repair)\b"
    r"|^--.* (?:expected .*|is required: .*)\.$"
)


def flags_of(program: str, command: str) -> set[str]:
    """Every spelling of every flag that a command has, and the names of its arguments."""
    if (program, command) == ("distill", "train"):
        return {flag for action in config._Parser()._actions for flag in action.option_strings}
    app = logitstore_cli.app if program == "logitstore" else distill_cli.app
    found: Any = typer.main.get_command(app)
    params = found.commands[command].params if command else found.params
    return {"--help", *(flag for param in params for flag in param.opts)}


def commands_of(program: str) -> set[str]:
    app = logitstore_cli.app if program == "logitstore" else distill_cli.app
    found: Any = typer.main.get_command(app)
    return set(found.commands)


def named_commands(says: str) -> list[tuple[str, str]]:
    """(program, command) of everything in backticks that one could run."""
    found = re.findall(r"`(logitstore|distill)(?: (\w+))?[^`]*`", says)
    return [(program, command) for program, command in found]


@pytest.mark.parametrize("wrong", WRONG, ids=[wrong.name for wrong in WRONG])
def test_a_message_says_where_and_what_and_a_next_step_that_exists(wrong: Wrong) -> None:
    program, *typed = shlex.split(wrong.command)
    command = typed[0] if typed and typed[0] in commands_of(program) else ""
    assert "\n" not in wrong.says
    assert len(wrong.says) <= 420, "a few lines at most"
    first = re.split(r"[.;] ", wrong.says)[0]
    own = flags_of(program, command)
    # where: what was typed, the folder it was typed in, or a flag or argument of the command
    places = {word.lstrip("-") for word in typed} | own | {"<here>", "WORLD_SIZE"}
    assert any(
        re.search(rf"(?<!\w){re.escape(place)}(?!\w)", first) for place in places if place[1:]
    )
    # what: more than the place
    assert len(first.split()) >= 3
    # next: one sentence tells what to do, with commands and flags that are there
    assert STEPS.search(wrong.says), wrong.says
    known = set(own)
    for other_program, other in named_commands(wrong.says):
        assert not other or other in commands_of(other_program), other
        known |= flags_of(other_program, other)
    assert set(flags_in(wrong.says)) - known - set(flags_in(wrong.command)) == set()


def flags_in(text: str) -> list[str]:
    """Flags that a text names, but for those of other programs."""
    ours = re.sub(r"`pip [^`]*`", "", text)
    return re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", ours)


def test_names_and_commands_are_there_once() -> None:
    assert len(WRONG) >= 45
    assert len({wrong.name for wrong in WRONG}) == len(WRONG)
    assert len({(wrong.command, wrong.breaks) for wrong in WRONG}) == len(WRONG)


def test_a_device_is_one_of_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [str(chosen_device(d)) for d in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    for name in ("cuda:2", "cuda:-1", "xpu", "meta", ""):
        with pytest.raises(InputError, match=r"no such device; found cpu, cuda:0, cuda:1\. Name"):
            chosen_device(name)
