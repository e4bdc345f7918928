"""Low-rank adapters: only they and new layers are trained and kept in checkpoints; what comes out has them merged."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cloudai.artifacts.text_models import TextModel, quiet
from cloudai.errors import SpecError
from cloudai.specs.texts import Lora

__all__ = ["adapted", "adapter_files", "keep_only_trained", "merged"]


def adapted(model: TextModel, lora: Lora) -> TextModel:
    """Return the model with adapters, drawn by torch's generator; all else but its new layers is frozen.

    Raises
    ------
    SpecError
        If no layer has a name that is asked for.
    """
    import peft

    new = _new_layers(model)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # the paper has any number
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) if lora.targets is not None else "all-linear",
        exclude_modules=[*new, "pooler.dense"] if lora.targets is None else None,
        modules_to_save=new or None,
    )
    try:
        with _silent():
            inner = peft.get_peft_model(model.model, config)
    except ValueError:
        wanted = " or ".join(map(repr, lora.targets or ("any name",)))
        linear = {name.rpartition(".")[2] for name, part in model.model.named_modules() if isinstance(part, torch.nn.Linear)}
        there = ", ".join(sorted(linear)) or "none"
        raise SpecError(
            f"the model has no layer that ends with {wanted}, and could have an adapter",
            fix=f"leave targets= out, or name some of: {there}",
        ) from None
    return replace(model, model=inner)


def _new_layers(model: TextModel) -> list[str]:
    """Return the layers that begin with drawn weights: those behind the pretrained model, and what its files lacked."""
    base = getattr(model.model, model.model.base_model_prefix, model.model)
    tied = model.model.get_output_embeddings()
    behind = [
        name
        for name, part in model.model.named_children()
        if base is not model.model and part is not base and part is not tied and any(True for _ in part.parameters())
    ]
    lacked = {name.rpartition(".")[0] for name in model.drawn}
    return sorted({*behind, *(name for name in lacked if name.partition(".")[0] not in behind)})


def keep_only_trained(module: torch.nn.Module) -> None:
    """Let a module's state hold what is trained alone: the rest is loaded again from where it came from."""
    frozen = {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}

    def drop(_: torch.nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name in frozen:
            state.pop(prefix + name, None)

    def forgive(_: torch.nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [name for name in keys.missing_keys if name not in frozen]

    module.register_state_dict_post_hook(drop)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_post_hook(forgive)  # type: ignore[no-untyped-call]


def adapter_files(model: TextModel) -> dict[str, bytes]:
    """Return the adapters as peft writes them, which the merged model does not need."""
    with tempfile.TemporaryDirectory(prefix="cloudai-lora-") as name, _silent():
        model.model.save_pretrained(name)
        weights, config = (Path(name) / file for file in ("adapter_model.safetensors", "adapter_config.json"))
        facts = {
            key: sorted(value) if isinstance(value, list) else value for key, value in json.loads(config.read_bytes()).items()
        }
        facts["base_model_name_or_path"] = ""  # a folder that is gone
        # not by the names that transformers looks for: it would add them to the merged weights once more
        return {"lora.safetensors": weights.read_bytes(), "lora.json": json.dumps(facts, indent=2).encode()}


def merged(model: TextModel) -> TextModel:
    """Return the model with its adapters added to the weights; it needs no peft any more."""
    return replace(model, model=model.model.merge_and_unload())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep peft from telling what it works out by itself, such as how a layer lays out its weights."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
