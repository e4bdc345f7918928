"""Where models on texts come from: a folder, the Hugging Face hub, or objects in memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from cloudai import texts as packing
from cloudai.artifacts import pretrained
from cloudai.artifacts.bringing import Brought
from cloudai.artifacts.inputs import text_array
from cloudai.artifacts.store import sha256
from cloudai.artifacts.text_classifiers import Classifier, check_classifies
from cloudai.artifacts.text_files import KINDS, load_folder, pack
from cloudai.artifacts.text_models import TextModel, quiet
from cloudai.display import nearest
from cloudai.errors import NotFoundError, SpecError

__all__ = ["brought", "folder_of", "in_folder"]

_EXAMPLE = ("An example.", "Another one, which is somewhat longer than the first.")


_FACTS: Mapping[str, Mapping[str, Any]] = {
    "text-classification": {},
    "causal-lm": {"max_new_tokens": 64},  # as `cloudai.train` takes where nothing else is said
    "embeddings": {},
}
"""The tasks whose models can be brought, and what such a model has to know beside its weights."""


def brought(source: Any, example: Any, task: str = "text-classification") -> Brought:
    """Check a model on texts, try it, and return its files.

    Raises
    ------
    CloudAIError
        As `cloudai.Model.from_transformers`.
    """
    if task not in _FACTS:
        raise SpecError(f"a model for the task {task!r} cannot be brought", fix=nearest(task, list(_FACTS)))
    if isinstance(source, tuple):
        model, origin = _from_objects(*_pair(source), task), "objects of transformers"
    else:
        folder = folder_of(source)
        model, origin = load_folder(folder, KINDS[task], facts=_FACTS[task]), _origin(source, folder)
    if isinstance(model, Classifier):
        check_classifies(model.model)
    rows = _EXAMPLE if example is None else text_array(example, "the example").tolist()
    files, signature = pack(model, {"text": packing.object_array(rows)})
    lineage = {"code": "", "module": sha256(files["config.json"]), "data": "", "source": origin}
    return Brought("transformers", files, signature, lineage, model.labels)


def folder_of(source: str | Path) -> Path:
    """Return the folder of a pretrained model: itself, or that of a name in the hub's cache.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(source, str) and pretrained.is_name(source):
        return _downloaded(source)
    raise NotFoundError(f"there is no folder {str(source)!r}", fix="give a folder that save_pretrained wrote, or a name")


def _origin(source: str | Path, folder: Path) -> str:
    """Return a name with its commit, as the cache's folder says; of a folder only the last part."""
    return folder.name if Path(source).expanduser().is_dir() else f"{source} at {folder.name}"


def _pair(source: Sequence[Any]) -> tuple[Any, Any]:
    if len(source) != 2 or not isinstance(source[1], transformers.PreTrainedTokenizerBase):
        raise SpecError("the model comes without its tokenizer", fix="give both: (model, tokenizer)")
    return source[0], source[1]


def _from_objects(model: Any, tokenizer: Any, task: str) -> TextModel:
    """Load a copy of what the user holds, which stays as it is."""
    if task == Classifier.task:
        check_classifies(model)
    if not isinstance(model, transformers.PreTrainedModel):
        raise SpecError(f"a {type(model).__name__} is no model of transformers", fix=f"use {KINDS[task].auto}")
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name:
        in_folder(Path(name), model, tokenizer)
        return load_folder(Path(name), KINDS[task], facts=_FACTS[task])


def in_folder(folder: Path, *parts: Any) -> None:
    """Write models, configs and tokenizers into a folder, the weights in one file."""
    with quiet():
        for part in parts:
            options = {"max_shard_size": "1000GB"} if isinstance(part, transformers.PreTrainedModel) else {}
            part.save_pretrained(folder, **options)


def _downloaded(name: str) -> Path:
    """Return the folder of a model on the Hugging Face hub, from the cache or fetched into it.

    Raises
    ------
    NotFoundError
        If it is not in the cache and the hub does not have it, or is not reachable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(snapshot_download(name, allow_patterns=list(pretrained.TAKEN), local_files_only=True))
        return Path(snapshot_download(name, allow_patterns=list(pretrained.TAKEN)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        gone = getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404)
        why = "the Hugging Face hub has none of that name for you" if gone else "the hub is not reachable"
        raise NotFoundError(
            f"the model {name!r} is not in the cache, and {why}",
            fix="check the name" if gone else "give a folder that save_pretrained wrote, or go online once",
        ) from None
