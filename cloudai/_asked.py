"""What a verb was asked for, above all `cloudai.train`: checked, all of it and at once, before anything is written."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
from typing import Any, Literal, TypedDict

from cloudai import settings
from cloudai.artifacts.filesystems import is_local
from cloudai.display import nearest
from cloudai.drivers import registry
from cloudai.errors import MissingExtraError, SpecError, StoreError
from cloudai.specs.confidential import refuse_secrets
from cloudai.specs.limits import Budget
from cloudai.specs.resources import Resources, ScalingPolicy
from cloudai.specs.search import Search
from cloudai.specs.texts import Lora, Task, TextTask
from cloudai.specs.training import CheckpointPolicy, FailurePolicy, Loop, TrainSpec, Work
from cloudai.tracking import check_address, parse_address
from cloudai.training.search.trials import trial_specs
from cloudai.training.tables import check_reach
from cloudai.training.work import Prepared, base_name, loop_defaults, prepare

__all__ = ["TrainOptions", "made_up_name", "refuse_unknown", "require", "train_spec"]


class TrainOptions(TypedDict, total=False):
    """How a run is made; everything but the work and its data.

    The loop's options (``loss``, ``optimizer``, ``lr``, ``epochs``, ``batch_size`` and so on) are those of
    `cloudai.specs.training.Loop` and do not hold for functions.
    """

    on: str
    name: str | None
    model_name: str | None
    config: Mapping[str, Any]
    seed: int
    num_workers: int | tuple[int, int]
    scaling: ScalingPolicy
    resources: Resources
    spot_policy: Literal["on-demand", "spot"]
    checkpoint: CheckpointPolicy
    max_failures: int
    hang: str | float | None
    budget: Budget | None
    deadline: str | float | datetime | None
    lease: str | float | None
    loss: Literal["cross_entropy", "mse", "l1", "bce_with_logits"]
    optimizer: Literal["adamw", "adam", "sgd"]
    lr: float
    lr_schedule: Literal["constant", "linear", "cosine"]
    warmup: float
    weight_decay: float
    max_grad_norm: float
    epochs: int
    batch_size: int
    micro_batch: int
    precision: Literal["float32", "bfloat16", "auto"]
    validation: float
    max_length: int
    group_by_length: bool
    task: Task
    lora: Lora
    gradient_checkpointing: bool
    max_new_tokens: int


def train_spec(work: Any, data: Any, options: TrainOptions, search: Search | None = None) -> tuple[Prepared, TrainSpec]:
    """Check everything, and write nothing."""
    now = settings.current()
    loop_options = {key: value for key, value in options.items() if key in Loop.model_fields}
    refuse_unknown("train", options, TrainOptions)
    text_options = {key: value for key, value in options.items() if key in TextTask.model_fields}
    loop = Loop.of(**{**loop_defaults(work, text_options), **loop_options})
    tracking, scaling = parse_address(now.tracking), _scaling(options)
    if registry.train_driver(options.get("on", "local")).capabilities.here:
        require("training", "train", "torch")
        check_address(tracking)
        if loop_defaults(work):
            require("training on texts", "text", "transformers", *(["peft"] if text_options.get("lora") else []))
        if scaling.largest != 1:
            require("training with several workers", "ray", "ray")
    base = options.get("model_name") or base_name(work)
    spec = TrainSpec.of(
        name=made_up_name(base) if (name := options.get("name")) is None else name,
        work=Work(kind="function"),
        on=options.get("on", "local"),
        model_name=base,
        config=options.get("config", {}),
        loop=loop,
        seed=options.get("seed", 0),
        resources=options.get("resources", Resources()),
        scaling=scaling,
        checkpoint=options.get("checkpoint", CheckpointPolicy()),
        spot_policy=options.get("spot_policy", "on-demand"),
        failure=FailurePolicy.of(max_failures=options.get("max_failures", 3), hang=options.get("hang")),
        budget=options.get("budget"),
        deadline=options.get("deadline"),
        lease=options.get("lease", now.run_lease),
        store=now.store,
        tracking=tracking,
    )
    refuse_secrets(spec.config, "config")
    _refuse_spot(spec)
    _refuse_here_only(spec, now)
    prepared = prepare(work, data, loop, text_options)
    _refuse_scaling(spec.scaling, loop, prepared.work)
    if prepared.work.source is not None and not registry.train_driver(spec.on).capabilities.here:
        check_reach(prepared.work.source, spec.on)
    if prepared.work.kind == "function" and loop_options:
        raise SpecError(
            f"{min(loop_options)}= is an option of the built-in loop, and you pass a function", fix="pass it in config="
        )
    spec = spec.model_copy(update={"work": prepared.work})
    if search is not None:
        _refuse_search(search, spec, options)
    return prepared, spec


def _refuse_search(search: Any, spec: TrainSpec, options: Mapping[str, Any]) -> None:
    """Raise `SpecError` for a search that cannot be."""
    if not isinstance(search, Search):
        raise SpecError(
            f"search= is a {type(search).__name__}", fix="give cloudai.Search({'lr': cloudai.log_uniform(1e-4, 1e-1)})"
        )
    twice = next((key for key in search.space if key in options), None)
    if twice:
        raise SpecError(f"{twice}= is searched, and given too", fix="leave one of the two out")
    trial_specs(spec, search)


def made_up_name(base: str) -> str:
    """Return a name that is free in all likelihood, and as long as a name may be at most."""
    return f"{str(base)[:58].rstrip('-')}-{secrets.token_hex(2)}"


def _scaling(options: TrainOptions) -> ScalingPolicy:
    """Return over how many workers the run is spread, from either way of saying it."""
    if "scaling" in options and "num_workers" in options:
        raise SpecError("num_workers= and scaling= both say how many workers", fix="give scaling=ScalingPolicy(num_workers=…)")
    scaling = options.get("scaling") or ScalingPolicy.of(num_workers=options.get("num_workers", 1))
    if not isinstance(scaling, ScalingPolicy):
        raise SpecError(f"scaling= is a {type(scaling).__name__}", fix="give a cloudai.ScalingPolicy, or num_workers=")
    return scaling


def _refuse_scaling(scaling: ScalingPolicy, loop: Loop, work: Work) -> None:
    """Raise `SpecError` where a batch cannot be shared equally, or a model cannot be put together again."""
    if work.kind != "function" and not scaling.sizes(loop.batch_size):
        fix = "choose a batch_size that all workers can share equally"
        raise SpecError(f"batch_size={loop.batch_size} cannot be split over {scaling.num_workers} workers", fix=fix)
    if scaling.strategy == "fsdp" and work.kind != "module":
        raise SpecError("strategy='fsdp' holds for modules that the built-in loop trains", fix="pass a module, or use 'ddp'")


def _refuse_here_only(spec: TrainSpec, now: settings.Settings) -> None:
    """Raise where no cluster is set, and `StoreError` where a worker could not reach the store, a folder of this machine."""
    refuse_unset(spec.on, now)
    if registry.train_driver(spec.on).capabilities.elsewhere and is_local(spec.store):
        fix = "set the store to one that both can reach, such as s3://bucket/cloudai (CLOUDAI_STORE)"
        raise StoreError(f"workers on {spec.on!r} run on other machines and cannot reach the store {spec.store}", fix=fix)


def refuse_unset(on: str, now: settings.Settings) -> None:
    """Raise `SpecError` where a driver is asked for that has not been told where its cluster is."""
    if on == "ray" and not now.ray_address:
        fix = "set ray_address to its dashboard, such as http://127.0.0.1:8265 (CLOUDAI_RAY_ADDRESS)"
        raise SpecError("no Ray cluster is set", fix=fix)


def _refuse_spot(spec: TrainSpec) -> None:
    """Raise `SpecError` where spot machines are asked for and the driver has none."""
    if spec.spot_policy == "spot" and not registry.get(spec.on).capabilities.spot:
        raise SpecError(f"spot_policy='spot': the driver {spec.on!r} has no spot machines", fix="leave spot_policy out")


def require(act: str, extra: str, *packages: str) -> None:
    """Raise `MissingExtraError` unless the packages are installed."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(f"{act} needs {package}, which is not installed", fix=f'pip install "cloudai[{extra}]"')


def refuse_unknown(verb: str, options: Mapping[str, Any], known: type) -> None:
    """Raise `SpecError` for an option that the verb does not have."""
    names = list(known.__annotations__)
    for name in options:
        if name not in names:
            raise SpecError(f"{verb}() has no option {name!r}", fix=nearest(name, names))
