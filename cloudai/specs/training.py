"""What a user asks for when training."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cloudai.errors import SpecError
from cloudai.specs.limits import MaybeBudget, MaybeDeadline
from cloudai.specs.resources import Resources, ScalingPolicy
from cloudai.specs.texts import TextTask
from cloudai.specs.units import Seconds
from cloudai.specs.validation import Spec

__all__ = [
    "OF_TEXTS",
    "CheckpointPolicy",
    "FailurePolicy",
    "Loop",
    "Name",
    "Named",
    "Source",
    "SourceFile",
    "TrainSpec",
    "Work",
]


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value):
        raise SpecError(
            f"{value!r} is not a name", fix="use up to 63 lower-case letters, digits and dashes, such as 'digits-2'"
        )
    return value


Name = Annotated[str, BeforeValidator(_name)]
"""Names are DNS labels (RFC 1123), so that every backend can carry them unchanged."""


class Named(Spec):
    """What is asked for under a name alone."""

    name: Name


def _config(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"the config is a {type(value).__name__}", fix="give a dict, such as {'lr': 0.1}")
    return {_key(key): _plain(item, str(key)) for key, item in value.items()}


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise SpecError(f"{key!r} is no name for a value", fix="use texts as keys")
    return key


def _plain(value: Any, path: str) -> Any:
    """Return the value as it will be read back from JSON, or refuse what would come back as something else."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, f"{path}.{key}") for key, item in value.items()}
    what = repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
    raise SpecError(
        f"{path!r} is {what}, which cannot be written down", fix="give texts, finite numbers, lists and dicts of them"
    )


Config = Annotated[dict[str, Any], BeforeValidator(_config)]
"""What goes through JSON to the worker and comes back the same."""


class CheckpointPolicy(Spec):
    """When a checkpoint is written, and how many are kept."""

    every: Seconds | None = None
    """The longest time between two checkpoints of the built-in loop; None where it may be what costs least time.

    That is chosen from what a checkpoint costs and how often the run is interrupted (`cloudai.training.cadence`), and at least
    half a second."""
    mtbf: Seconds | None = Field(default=None, gt=0)
    """The mean time between failures, such as ``"1h"``, where you know it; else it is learnt from the run, beginning with a
    day, or with an hour on machines that may be taken away."""
    keep: int = Field(default=2, ge=1)
    """How many are kept; the one before the last is there for when the last is damaged."""


class FailurePolicy(Spec):
    """How often a run that was killed or lost comes back."""

    max_failures: int = Field(default=3, ge=0)
    """A machine that was taken away (a preemption) is no failure and does not count."""
    hang: Seconds | None = Field(default=None, gt=0)
    """After so long without a step a worker hangs: it is ended and comes back, which counts as a failure. None: chosen by the
    run's own pace, at least five minutes, and for a function never as long as it lives (`cloudai.training.hangs`)."""


class Loop(Spec):
    """The built-in supervised loop."""

    loss: Literal["cross_entropy", "mse", "l1", "bce_with_logits"] = "cross_entropy"
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes to zero at the end, or that it stays."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """The share of all steps in which the learning rate rises to `lr`."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longer gradients are shortened to this 2-norm over all weights."""
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Rows of one optimiser step, over all workers together."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Rows that go through the module at once, at most; gradients of several are added up. None for as many as fit."""
    group_by_length: bool = False
    """Of a model of texts: take rows of like length into one step, which is faster; steps are then less alike."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """What the module computes in; its weights stay float32. ``"auto"`` is bfloat16 where the hardware is made for it."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """The share of rows held back to measure the model; drawn with the seed."""
    max_length: int | None = Field(default=None, ge=1)
    """Of a model of texts: after so many tokens a text is cut off; by default what the model takes."""


OF_TEXTS = ("max_length", "group_by_length")
"""The options of the loop that only models of texts have."""


class SourceFile(Spec):
    """A file that data is read from, as it was when the run was asked for."""

    path: str
    """A full path or URL."""
    size: int
    version: str
    """What is another when the file is another: an ETag, or the time of the last change."""


class Source(Spec):
    """Files that a worker reads the data from, and what is taken from them."""

    format: Literal["csv", "jsonl", "parquet"]
    files: tuple[SourceFile, ...]
    """In the order in which their rows count."""
    target: str = ""
    inputs: tuple[str, ...]
    """The columns that become the inputs, in this order."""
    kinds: dict[str, Literal["bool", "int", "float", "text", "list", "int list"]]
    """What each column holds."""
    integers: bool = False
    """Whether integer inputs stay integers."""
    stream: bool = False
    """Whether the rows are read again and again while they are trained on, not once into memory."""

    @property
    def digest(self) -> str:
        """The SHA-256 of all this: of which files in which state, and what of them."""
        return hashlib.sha256(self.model_dump_json(exclude={"stream"}).encode()).hexdigest()

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


class Work(Spec):
    """What is trained: a function of a context, a module with data, or a pretrained model with texts.

    Every part lies in the store, but for sources and for pretrained models that are a folder or a name.
    """

    kind: Literal["function", "module", "text", "benchmark"]
    entry: str = ""
    """Of a function: ``module:name`` inside the bundle; of a benchmark: in cloudai."""
    code: str = ""
    """The store's key of the code bundle; empty where no code of the user's is needed."""
    module: str = ""
    """The store's key of the module's description and first weights, or of a pretrained model's files."""
    pretrained: str = ""
    """The folder of a pretrained model, or its name on the Hugging Face hub; empty where it lies in the store."""
    labels: tuple[str, ...] = ()
    """The names of the classes of texts, which the data has as numbers; empty where the worker finds them."""
    text: TextTask = TextTask()
    """What a pretrained model learns."""
    data: str = ""
    """The store's key of the data."""
    source: Source | None = None
    """Where a worker reads the data, where it is not in the store."""
    rows: int = 0
    """How many there are; 0 where that is not known before they are read."""
    parameters: int = 0
    """How many weights the module has."""
    features: tuple[str, ...] = ()
    """The names of the data's columns, where it has names."""

    @property
    def size(self) -> tuple[str, str, str, int, int]:
        """What must be equal for two runs to take as long: the code, the number of weights, and of rows or else of bytes."""
        rows = self.rows or (self.source.size if self.source is not None else 0)
        return self.kind, self.entry, self.code or self.pretrained, self.parameters, rows


class TrainSpec(Spec):
    """A training run as asked for."""

    model_name: Name
    name: Name
    work: Work
    on: str = "local"
    config: Config = Field(default_factory=dict)
    """Passed to the user's function as ``context.config``; recorded as parameters."""
    loop: Loop = Loop()
    seed: int = Field(default=0, ge=0, lt=2**32)
    resources: Resources = Resources()
    scaling: ScalingPolicy = ScalingPolicy()
    spot_policy: Literal["on-demand", "spot"] = "on-demand"
    """Whether the run goes to machines that may be taken away, at a lower price, or to those that stay."""
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    failure: FailurePolicy = FailurePolicy()
    budget: MaybeBudget = None
    """The most that it may cost."""
    deadline: MaybeDeadline = None
    """Until when it may go on."""
    lease: Seconds | None
    store: str
    tracking: str
