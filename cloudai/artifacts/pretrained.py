"""Folders of pretrained models, as ``save_pretrained`` writes them: looked at without loading anything, nor transformers."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloudai.errors import IntegrityError, NotFoundError, SpecError

__all__ = ["SHORTEST_WINDOW", "TAKEN", "check_config", "check_folder", "is_name", "is_taken", "taken_files", "weights_in"]

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
TAKEN = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "model.safetensors.index.json",
    "*.safetensors",
    *_VOCABULARIES,
)
"""What is read of such a folder; code and pickled weights are not."""

_HEADS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "text-classification": (("ForSequenceClassification",), "classify texts", "distilbert, bert, roberta"),
    "token-classification": (("ForTokenClassification",), "classify tokens", "distilbert, bert, roberta"),
    "question-answering": (("ForQuestionAnswering",), "answer questions", "distilbert, bert, roberta"),
    "causal-lm": (("ForCausalLM", "LMHeadModel"), "continue texts", "gpt2, llama, qwen2"),
    "embeddings": (("Model",), "embed texts", "distilbert, bert, mpnet"),
}
"""For each task what the names of classes that can do it end with, what that is, and what to take where there is none."""
SHORTEST_WINDOW = 16
"""Tokens that a question and a piece of its context need at least."""
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_MOST_JSON = 64 * 2**20


def is_name(text: str) -> bool:
    """Whether a text can be the name of a model on the Hugging Face hub, and is no path.

    Examples
    --------
    >>> is_name("distilbert/distilbert-base-uncased"), is_name("./folder"), is_name("a/b/c")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None and not text.startswith((".", "/", "~")) and ".." not in text


def check_folder(
    folder: Path, *, weights: bool = True, tokenizer: bool = True, task: str = "text-classification"
) -> dict[str, Any]:
    """Check what a folder holds and return its config.

    Parameters
    ----------
    weights, tokenizer : bool
        Whether it must hold them.
    task : str
        What the model is to do.

    Raises
    ------
    NotFoundError
        If there is no such folder, or it lacks a part.
    IntegrityError
        If its weights are pickled, or it wants its own code to be run.
    SpecError
        If its architecture cannot do that, or is unknown to the installed transformers.
    """
    if not (folder / "config.json").is_file():
        raise NotFoundError(f"there is no pretrained model in {folder}", fix="give the folder that save_pretrained wrote")
    config = _json(folder / "config.json")
    check_config(config, task)
    if (folder / "tokenizer_config.json").is_file():
        _refuse_code(_json(folder / "tokenizer_config.json"), "tokenizer_config.json")
    if weights:
        weights_in(folder)
    if tokenizer and not any((folder / name).is_file() for name in _VOCABULARIES):
        raise NotFoundError(f"there is no tokenizer in {folder}", fix="save it there: tokenizer.save_pretrained(folder)")
    return config


def check_config(config: Mapping[str, Any], task: str = "text-classification") -> None:
    """Check that a config names an architecture of transformers itself that can do a task.

    Raises
    ------
    IntegrityError
        If it wants its own code to be run.
    SpecError
        If the architecture cannot do the task, or is unknown.
    """
    _refuse_code(config, "config.json")
    kind = config.get("model_type")
    spec = importlib.util.find_spec("transformers")
    if not isinstance(kind, str) or not re.fullmatch(r"[\w-]{1,64}", kind):
        raise SpecError("config.json names no model_type", fix="give a folder that save_pretrained wrote")
    if spec is None or spec.origin is None:
        return  # whoever loads it will say that transformers is missing
    home = Path(spec.origin).parent / "models" / kind.replace("-", "_")
    sources = [path.read_text(encoding="utf-8") for path in home.glob("modeling_*.py")]
    classes, able, instead = _HEADS[task]
    if sources and not any(f"{name}(" in source for name in classes for source in sources):
        raise SpecError(f"models of the type {kind!r} cannot {able}", fix=f"take {instead}, …")


def weights_in(folder: Path) -> list[Path]:
    """Return the files with the weights, all of them safetensors.

    Raises
    ------
    IntegrityError
        If they are pickled, or an index names files elsewhere.
    NotFoundError
        If there are none.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        return _shards(folder, _json(index))
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise IntegrityError(
            f"the weights in {folder} are pickled ({pickled[0]}), and a pickle can run anything",
            fix="write them as safetensors where you trust them: model.save_pretrained(folder)",
        )
    raise NotFoundError(f"there are no weights in {folder}", fix="save them there: model.save_pretrained(folder)")


def _shards(folder: Path, index: Mapping[str, Any]) -> list[Path]:
    entries = index.get("weight_map")
    names = sorted({str(name) for name in entries.values()}) if isinstance(entries, dict) else []
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise IntegrityError(f"the index of weights in {folder} names {name!r}", fix="save the model again")
    if not names:
        raise IntegrityError(f"the index of weights in {folder} is empty", fix="save the model again")
    return [folder / name for name in names]


def is_taken(name: str) -> bool:
    """Whether a file of a model is one of those that are read of such a folder."""
    others = ("example.safetensors", "lora.safetensors")
    return name not in others and "/" not in name and any(Path(name).match(pattern) for pattern in TAKEN)


def taken_files(folder: Path) -> list[Path]:
    """Return the files that are read of a checked folder."""
    return sorted({path for pattern in TAKEN for path in folder.glob(pattern) if path.is_file()})


def _refuse_code(config: Mapping[str, Any], file: str) -> None:
    if "auto_map" in config:
        raise IntegrityError(
            f"{file} wants code from beside the model to be run (auto_map)",
            fix="take a model whose architecture is in transformers itself; trust_remote_code is never on",
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes()) if path.stat().st_size <= _MOST_JSON else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is no JSON object", fix="save the model again")
    return value
