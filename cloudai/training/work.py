"""What a user passes to ``train``, turned into files in the store that a worker anywhere can use."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cloudai.artifacts import trees
from cloudai.artifacts.pretrained import SHORTEST_WINDOW
from cloudai.artifacts.store import Store, content_key
from cloudai.capture.bundle import Bundle
from cloudai.capture.code import capture, locator
from cloudai.errors import DataError, SpecError
from cloudai.specs.confidential import refuse_secrets
from cloudai.specs.texts import TextTask
from cloudai.specs.training import OF_TEXTS, Loop, Work
from cloudai.training.data import TrainingData, parse_data
from cloudai.training.tables import Table
from cloudai.training.tasks.parsing import LOOPS, LORA_LOOP, asked_of, parse
from cloudai.training.texts import is_pretrained, parse_pretrained

__all__ = ["Prepared", "base_name", "dry_run", "loop_defaults", "prepare"]

_DRY_RUN_LIMIT = 20_000_000
"""A module of at most this many weights is tried on one row before the call returns; a larger one in the worker."""


@dataclass(frozen=True)
class Prepared:
    """Work that has been checked and captured, and not written anywhere yet.

    Attributes
    ----------
    work : Work
        What goes into the spec; its keys are known already, since they are digests.
    files : Mapping[str, bytes]
        What has to be in the store under these keys before a worker can start.
    """

    work: Work
    files: Mapping[str, bytes]

    def put(self, store: Store) -> None:
        """Write the files into the store; what is there already is not written again."""
        for key, data in self.files.items():
            store.put(key, data)


def _prepared(
    kind: str,
    *,
    bundle: Bundle | None = None,
    entry: str = "",
    module: bytes = b"",
    data: TrainingData | None,
    parameters: int = 0,
    pretrained: str = "",
    labels: tuple[str, ...] = (),
    text: TextTask = TextTask(),  # noqa: B008  frozen
) -> Prepared:
    files: dict[str, bytes] = {}

    def key(folder: str, content: bytes, suffix: str) -> str:
        name = content_key(folder, content, suffix)
        files[name] = content
        return name

    work = Work.of(
        kind=kind,
        entry=entry,
        code=key("code", bundle.to_zip(), ".zip") if bundle is not None else "",
        module=key("modules", module, ".safetensors") if module else "",
        data=key("data", trees.dump(dict(data.arrays)), ".safetensors") if data is not None and data.source is None else "",
        source=data.source if data is not None else None,
        rows=data.rows if data is not None else 0,
        parameters=parameters,
        features=data.features if data is not None else (),
        pretrained=pretrained,
        labels=labels,
        text=text,
    )
    return Prepared(work, files)


def prepare(work: Any, data: Any, loop: Loop, text: Mapping[str, Any] | None = None) -> Prepared:
    """Check and capture what is to be trained.

    Parameters
    ----------
    text : mapping, optional
        What is asked for of a pretrained model: the fields of `cloudai.specs.texts.TextTask`.

    Raises
    ------
    SpecError
        If `work` is neither a function, a module nor a pretrained model, or it does not fit the data.
    CaptureError
        If something that the code refers to cannot be carried to a worker.
    """
    if is_pretrained(work):
        return _prepare_texts(work, data, loop, asked_of(text or {}))
    if text:
        raise SpecError(f"{min(text)}= is for pretrained models of transformers", fix="leave it out, or pass such a model")
    for option in OF_TEXTS:
        if getattr(loop, option):
            raise SpecError(f"{option}= is for models of texts", fix="leave it out, or pass a pretrained model")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(work, torch.nn.Module):
        return _prepare_module(work, data, loop)
    if callable(work) and hasattr(work, "__code__"):
        _check_takes_context(work)
        bundle = capture([work])
        parsed = _in_memory(parse_data(data, integers=True), data) if data is not None else None
        return _prepared("function", bundle=bundle, entry=bundle.entries[work.__qualname__], data=parsed)
    raise SpecError(
        f"cannot train {type(work).__name__}",
        fix="give a function that takes a context, a torch.nn.Module with data=, a pretrained model of texts, or a plan",
    )


def loop_defaults(work: Any, text: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return the loop's options that are other by default for this work."""
    if not is_pretrained(work):
        return {}
    asked = asked_of(text or {})
    return {**LOOPS[asked.task], **(LORA_LOOP if asked.lora is not None else {})}


def _prepare_texts(work: Any, data: Any, loop: Loop, text: TextTask) -> Prepared:
    if loop.loss != "cross_entropy":
        raise SpecError(f"a model of texts cannot be trained with loss={loop.loss!r}", fix="leave loss= out")
    if text.task == "question-answering" and (loop.max_length or SHORTEST_WINDOW) < SHORTEST_WINDOW:
        fix = f"give max_length={SHORTEST_WINDOW} or more, 384 is usual"
        raise SpecError(f"a question and its context do not fit into {loop.max_length} tokens", fix=fix)
    if text.task == "embeddings" and loop.group_by_length:
        what = "pairs of texts cannot be grouped by length: of which others a text is told apart would follow from its length"
        raise SpecError(what, fix="leave group_by_length= out")
    first = parse_pretrained(work, text.task)
    if isinstance(data, Table):
        table = _text_table(data, text.task)
        return _prepared("text", module=first.archive, data=table, pretrained=first.source, text=text)
    rows = parse(text.task, data, first.labels)
    arrays = TrainingData(rows.arrays)
    return _prepared("text", module=first.archive, data=arrays, pretrained=first.source, labels=rows.labels, text=text)


def _text_table(table: Table, task: str) -> TrainingData:
    """Check a table of texts without reading it: the worker does that, and finds the classes."""
    if task == "causal-lm" and table.text and not table.target:
        return parse_data(table, texts=True)
    if task == "causal-lm":
        raise DataError("a model that continues texts needs a column of texts alone", fix="give Table(…, text=…)")
    if task != "text-classification":
        fix = "read it, and pass the data frame or Hugging Face dataset"
        raise DataError(f"a table has one column of texts, and task={task!r} needs more than one", fix=fix)
    if not table.text or not table.target:
        raise DataError("a model of texts needs a column of texts and one of labels", fix="give Table(…, text=…, target=…)")
    return _in_memory(parse_data(table, texts=True), table)


def _in_memory(parsed: TrainingData, data: Any) -> TrainingData:
    """Return data that is read into memory as a whole, whatever its size.

    Raises
    ------
    DataError
        If it was asked for as a stream.
    """
    if isinstance(data, Table) and data.stream:
        fix = "leave stream=True out, or train a torch.nn.Module on numbers"
        raise DataError("only modules that the built-in loop trains take a stream", fix=fix)
    if parsed.source is None:
        return parsed
    return replace(parsed, source=parsed.source.model_copy(update={"stream": False}))


def _check_takes_context(function: Any) -> None:
    try:
        inspect.signature(function).bind(object())
    except TypeError as error:
        fix = "take one argument, the context; what else it needs comes in config= and data="
        raise SpecError(f"{function.__name__} cannot be called with a context: {error}", fix=fix) from None


def base_name(work: Any) -> str:
    """Return a name for runs and models of this work, made of letters, digits and dashes."""
    if isinstance(work, tuple):
        return base_name(work[0]) if work else "work"
    raw = Path(work).name if isinstance(work, str | Path) else getattr(work, "__name__", None) or type(work).__name__
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", raw)
    return re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-")[:40] or "work"


def _prepare_module(module: Any, data: Any, loop: Loop) -> Prepared:
    import torch

    from cloudai.artifacts.architecture import parts_of
    from cloudai.artifacts.torch_models import describe_module, named

    if data is None:
        raise SpecError("a module needs data to train on", fix="pass data=(inputs, targets)")
    parsed = parse_data(data, integers=any(isinstance(m, torch.nn.Embedding) for m in module.modules()))
    if "targets" not in parsed.arrays and not (parsed.source and parsed.source.target):
        raise DataError("the built-in loop needs targets", fix="pass data=(inputs, targets), or a table with target=")
    for part in module.modules():
        refuse_secrets(vars(part), f"vars({type(part).__name__})")
    parameters = sum(p.numel() for p in module.parameters())
    if parameters <= _DRY_RUN_LIMIT and parsed.arrays:
        dry_run(module, parsed, loop)
    parts = parts_of(module)
    bundle = capture(parts) if parts else None
    # what is not the user's own lies in torch, where it is found without being asked for
    described = describe_module(module, locator(parts, bundle) if bundle is not None else named)
    return _prepared("module", bundle=bundle, module=described, data=parsed, parameters=parameters)


def dry_run(module: Any, data: TrainingData, loop: Loop) -> None:
    """Try the module on one row, so that a misfit is an error now and not in a worker later.

    Raises
    ------
    DataError
        If the module does not take the rows, or has too few outputs for the classes.
    """
    import torch

    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            output = module(torch.from_numpy(np.ascontiguousarray(data.arrays["inputs"][:1])))
    except Exception as error:
        shape, dtype = list(data.arrays["inputs"].shape[1:]), data.arrays["inputs"].dtype
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"the module does not take rows of shape {shape} and dtype {dtype}: {first}",
            fix="reshape the inputs, or mend the module",
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if loop.loss == "cross_entropy" and isinstance(output, torch.Tensor):
        _check_classes(output, data.arrays["targets"])


def _check_classes(output: Any, targets: np.ndarray) -> None:
    if targets.dtype.kind == "f":
        raise DataError("cross_entropy needs classes, the targets are floating point", fix="give integers, or pass loss='mse'")
    if output.ndim != 2:
        raise DataError(
            f"cross_entropy needs one score per class, the module gives {list(output.shape[1:])}", fix="return [n, classes]"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= output.shape[1]:
        raise DataError(
            f"the targets go from {low} to {high}, the module has scores for classes 0 to {output.shape[1] - 1}",
            fix="number the classes from 0, or give the module more outputs",
        )
