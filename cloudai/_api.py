"""The verbs: parse, plan, act. No logic of their own; each returns a handle at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal, TypedDict, Unpack, overload

from cloudai import settings
from cloudai._asked import TrainOptions, made_up_name, refuse_unknown, refuse_unset, require, train_spec
from cloudai.artifacts.known import find_model
from cloudai.artifacts.model import Model
from cloudai.artifacts.runtimes import check_runtime
from cloudai.artifacts.store import Store
from cloudai.benchmarking.benchmark import Benchmark, prepare_benchmark
from cloudai.drivers import registry
from cloudai.drivers.protocols import Driver, Needs, Offer
from cloudai.errors import DriverError, NotReadyError, SpecError
from cloudai.inventory import Cleanup, Inventory, Ledgered
from cloudai.monitoring.monitor import Monitor
from cloudai.monitoring.monitor import advance as advance_monitor
from cloudai.monitoring.monitor import due as monitor_due
from cloudai.planning import catalog
from cloudai.planning.estimate import estimate_seconds
from cloudai.planning.plan import Plan, choose, place
from cloudai.planning.spending import Spending
from cloudai.planning.trials import at_once, estimate_trials
from cloudai.serving.advance import advance as advance_deployment
from cloudai.serving.advance import due as deployment_due
from cloudai.serving.advance import needs_of as deployment_needs
from cloudai.serving.deployment import Deployment, check_reach, deployment_spending, model_entry, revision_id
from cloudai.serving.exposure import check_exposure
from cloudai.serving.scaling import check_autoscaling
from cloudai.serving.split import Split
from cloudai.specs.monitoring import DecisionPolicy, DriftPolicy, MonitorSpec
from cloudai.specs.resources import Resources
from cloudai.specs.schedule import ScheduleSpec
from cloudai.specs.search import Search
from cloudai.specs.serving import AutoscalingPolicy, DeploySpec, Runtime, ServerLimits
from cloudai.specs.tls import Tls
from cloudai.specs.training import TrainSpec
from cloudai.state.leader import ensure_supervisor
from cloudai.state.ledger import Ledger, Record, open_ledger
from cloudai.tracking import check_address
from cloudai.training.advance import advance as advance_run
from cloudai.training.advance import due as run_due
from cloudai.training.advance import needs_of as run_needs
from cloudai.training.limits import Limits
from cloudai.training.run import Run, run_spending
from cloudai.training.schedule import Schedule, schedule_spec
from cloudai.training.schedule import advance as advance_schedule
from cloudai.training.schedule import due as schedule_due
from cloudai.training.search.advance import advance as advance_search
from cloudai.training.search.run import SearchRun, search_spending
from cloudai.training.search.trials import is_search, parent_of, trial_specs
from cloudai.training.work import Prepared

__all__ = [
    "advance",
    "attach",
    "benchmark",
    "cleanup",
    "costs",
    "deploy",
    "due",
    "load_model",
    "monitor",
    "plan",
    "ps",
    "train",
]


class DeployOptions(TypedDict, total=False):
    """How a deployment is made."""

    on: str
    name: str | None
    port: int
    grpc_port: int | None
    host: str
    tls: Tls | None
    resources: Resources
    limits: ServerLimits
    autoscaling: AutoscalingPolicy
    runtime: Runtime
    access_log: str
    payload_log: str
    lease: str | float | None


_PASSED_ON = tuple(key for key in DeployOptions.__annotations__ if key not in ("name", "lease"))


def plan(work: Any, data: Any = None, *, search: Search | None = None, **options: Unpack[TrainOptions]) -> Plan[Run]:
    """Say where a run would go, how long it would take and what it would cost, without doing anything.

    Takes what `train` takes; ``plan(…).apply()`` trains.

    Raises
    ------
    SpecError
        As `train`.
    """
    if "schedule" in options:
        raise SpecError("a plan is of one run", fix="leave schedule= out: each run of the schedule costs that")
    prepared, spec = train_spec(work, data, options, search)
    history = open_ledger().records("run")
    trials = trial_specs(spec, search) if search else []
    estimate = estimate_trials(trials, search, history) if search else estimate_seconds(spec, history)
    offers, needs, spot = tuple(_offers(run_needs(spec), spec.on)), run_needs(spec), spec.spot_policy == "spot"
    offer = choose(offers, spec.on, spot=spot)
    limits = Limits.of(spec.budget, spec.deadline, open_ledger().clock.now())
    if offer is not None:
        limits.refuse_uncounted(offer)
    start, width = partial(_start_run, prepared, spec, search), at_once(trials, search) if search else 1
    enough = limits.forecast(estimate, offer and replace(offer, price_per_hour=width * offer.price_per_hour))
    return Plan(f"train {spec.name}", needs, offer, offers, estimate, start, spot, enough, width)


@overload
def train(
    work: Any,
    data: Any = None,
    *,
    schedule: str,
    timezone: str | None = None,
    search: Search | None = None,
    **options: Unpack[TrainOptions],
) -> Schedule: ...
@overload
def train(work: Any, data: Any = None, *, search: Search, **options: Unpack[TrainOptions]) -> SearchRun: ...
@overload
def train(work: Any, data: Any = None, **options: Unpack[TrainOptions]) -> Run: ...
def train(
    work: Any,
    data: Any = None,
    *,
    search: Search | None = None,
    schedule: str | None = None,
    timezone: str | None = None,
    **options: Unpack[TrainOptions],
) -> Run | Schedule:
    """Start a training run and return its handle at once.

    Parameters
    ----------
    work : callable, torch.nn.Module, pretrained model or Plan
        A function of a `cloudai.Context` that returns the trained module, a module to be trained by the built-in loop, a
        model of transformers to be trained on texts (a name on the Hugging Face hub, a folder, or
        ``(model or config, tokenizer)``), or what `plan` returned.
    data : optional
        ``(inputs, targets)`` as arrays, tensors or data frames, a torch dataset of such pairs, or a Hugging Face dataset. It
        is copied into the store, so later changes do not matter. Or a `Table`: files that the worker reads where they lie.
    search : Search, optional
        Makes the run a search: its children are trials with drawn options, and its model is that of the best.
    schedule : str, optional
        Five fields as in a crontab, such as ``"0 3 * * *"``: the training is done again at each such time, on the files of a
        `Table` as they are then, or what a function loads.
    timezone : str, optional
        Of the schedule, such as ``"Europe/Berlin"``; by default UTC.
    **options
        ``name`` (of the run; by default one is made up), ``model_name``, ``on`` (the driver, ``"local"``), ``config`` (for
        your function), ``seed``, ``num_workers`` (or ``(min, max)``), ``scaling`` (a `ScalingPolicy`, for more than the
        number), ``resources``, ``spot_policy`` (``"spot"`` for machines that may be taken
        away, at a lower price), ``checkpoint``, ``max_failures`` (how often a killed worker comes back), ``hang`` (after how
        long without a step it is ended, to come back), ``budget`` (a `Budget`) and ``deadline`` (``"2h"`` from now, or a
        datetime with its time zone), at which it stops with a checkpoint, ``lease`` (how long it goes on when no live
        handle renews it; ``None`` for ever, which is what the runs of a schedule take by default). For a module also ``loss``,
        ``optimizer``, ``lr``, ``lr_schedule``, ``warmup``, ``weight_decay``, ``max_grad_norm``,
        ``epochs``, ``batch_size``, ``micro_batch``, ``precision``,
        ``validation``; for a pretrained model also ``max_length``, ``group_by_length``, ``task`` (``"text-classification"``,
        ``"token-classification"``, ``"question-answering"``, ``"causal-lm"``, ``"embeddings"``), ``lora`` (a `Lora`),
        ``gradient_checkpointing``, and for ``"causal-lm"`` ``max_new_tokens``.

    Returns
    -------
    Run, SearchRun or Schedule
        It goes on when this process ends; ``run.wait()`` waits for a run.

    Raises
    ------
    SpecError
        If an option is wrong, or the data does not fit the module (`DataError`), or your code refers to something that
        cannot be carried to a worker (`CaptureError`). Nothing is left behind then.
    StoreError
        If the store, or the place of the data, cannot be reached or does not let you in.
    NotFoundError
        If there is no such driver.
    """
    if isinstance(work, Plan):
        mine = {"search": search, "schedule": schedule, "timezone": timezone}
        _refuse_options("a plan", data, {**options, **{name: value for name, value in mine.items() if value is not None}})
        started: Run = work.apply()
        return started
    if schedule is not None:
        options = {"lease": None, **options}  # nobody holds a run at night
    prepared, spec = train_spec(work, data, options, search)
    if schedule is not None:
        return _start_schedule(prepared, schedule_spec(schedule, timezone or "UTC", data, spec, search))
    if timezone is not None:
        raise SpecError("timezone= is of a schedule, and there is none", fix="give schedule= too, or leave it out")
    return _start_run(prepared, spec, search)


def deploy(model: Model | Run | str, **options: Unpack[DeployOptions]) -> Deployment:
    """Put a model into service and return the deployment's handle at once.

    Parameters
    ----------
    model : Model, Run or str
        A model; a run, whose model is deployed as soon as there is one; or a model's name as for `load_model`.
    **options
        ``name`` (by default the model's), ``on`` (the driver), ``port``, ``grpc_port`` (0 takes a free one; without it gRPC is
        not spoken), ``host`` (the address to listen on, by default this machine only), ``tls`` (a `Tls`), ``resources`` (of one
        replica), ``limits``, ``autoscaling`` (how many replicas; one by default), ``runtime`` (``"onnx"`` or ``"torch"`` for
        torch models, by default the first where it answers the same), ``access_log`` (a file), ``payload_log`` (a file or an
        address for CloudEvents) and ``lease`` (how long it stays up when no live handle renews it; ``None`` for ever).

    Raises
    ------
    SpecError
        If an option is wrong, the port is taken, the files of TLS cannot be used, or there is a deployment of that name.
    StoreError
        If the model lies on this machine and would be served on others.
    IntegrityError
        If the model was tampered with.
    """
    refuse_unknown("deploy", options, DeployOptions)
    ledger = open_ledger()
    model = load_model(model) if isinstance(model, str) else model
    revision, entry = _revision(model)
    name = options.get("name") or (model.spec.model_name if isinstance(model, Run) else model.name)
    lease = options.get("lease", settings.current().deployment_lease)
    values = {key: value for key, value in options.items() if key in _PASSED_ON and value is not None}
    spec = DeploySpec.of(name=name, lease=lease, **values)
    driver = registry.serve_driver(spec.on)
    refuse_unset(spec.on, settings.current())
    check_reach(spec.on, model.spec.store if isinstance(model, Run) and not model.ended else entry["uri"])
    check_autoscaling(spec.autoscaling, driver)
    offer = _offer_at_once(driver, deployment_needs(spec))
    if driver.capabilities.here:
        require("serving", "serve", "torch", "uvicorn", "aiohttp", "prometheus_client")
        if spec.grpc_port is not None:
            require("gRPC", "serve", "grpc", "google.protobuf")
    check_exposure(spec, driver)
    if isinstance(model, Model):
        check_runtime(model.kind, spec.runtime)
    desired = {"revisions": {revision: entry}, "rollout": Split(revision).to_json(), "offer": offer}
    record = ledger.replace("deployment", spec.name, spec.model_dump(mode="json"), desired)  # its token is in this home
    ensure_supervisor(ledger.home)
    return Deployment(ledger, record)


def monitor(
    deployment: Deployment | str,
    *,
    every: str | float = "5m",
    drift: DriftPolicy | None = None,
    decision: DecisionPolicy | None = None,
    name: str | None = None,
) -> Monitor:
    """Watch a deployment and return the monitor's handle at once.

    Parameters
    ----------
    deployment : Deployment or str
        The deployment, or its name.
    every : str or float
        The length of a window.
    drift : DriftPolicy, optional
        The false-alarm rate, and how large a drift must be to matter.
    decision : DecisionPolicy, optional
        What is to be done about which finding.

    Raises
    ------
    SpecError
        If an option is wrong, or there is a monitor of that name.
    NotFoundError
        If there is no such deployment.
    """
    ledger = open_ledger()
    target = deployment if isinstance(deployment, str) else deployment.name
    watched = ledger.get("deployment", target)
    spec = MonitorSpec.of(every=every, drift=drift or DriftPolicy(), decision=decision or DecisionPolicy())
    wanted = {"deployment": target, "policy": spec.model_dump(mode="json")}
    record = ledger.replace("monitor", name or target, wanted, {}, anywhere=watched.anywhere, home=watched.home)
    ensure_supervisor(ledger.home)
    return Monitor(ledger, record)


def benchmark(
    workload: str,
    *,
    mode: Literal["window", "full"] = "window",
    device: Literal["auto", "cpu", "gpu"] = "auto",
    price_per_hour: float | str | None = None,
    seconds: float = 60.0,
    model: str = "",
    data: Any = None,
    on: str = "local",
    name: str | None = None,
    resources: Resources | None = None,
    lease: str | float | EllipsisType | None = ...,
) -> Benchmark:
    """Measure a frozen workload on a machine, beside published platforms, and return the benchmark's handle at once.

    Parameters
    ----------
    workload : str
        Such as ``"bert-large-squad"``, or ``"bert-large-squad@1"`` for a version.
    mode : str
        ``"window"`` measures some steps and extrapolates the hours of the whole workload; ``"full"`` trains on your data to the
        end, with F1 and exact match.
    device : str
        ``"auto"`` takes a GPU where there is one.
    price_per_hour : float or str, optional
        What an hour costs, in the currency of the settings, or the name of a machine with a published price, such as
        ``"Standard_NC40ads_H100_v5"``. By default what the place costs; where nobody says, the cost is left blank.
    seconds : float
        The longest time of a window.
    model, data : optional
        Of a full run: a folder or name of a pretrained model of the workload's architecture, and the paths of
        ``train-v1.1.json`` and ``dev-v1.1.json`` of SQuAD.
    on, name, resources, lease : optional
        As for `train`; by default all cores of this machine, and the lease of the settings.

    Returns
    -------
    Benchmark
        It goes on when this process ends; ``benchmark.wait().result`` is the table.

    Raises
    ------
    SpecError
        If an option is wrong, or the data cannot be read (`DataError`).
    NotFoundError
        If there is no such workload, machine or driver.
    """
    prepared, spec = prepare_benchmark(
        workload,
        mode=mode,
        device=device,
        price_per_hour=price_per_hour,
        seconds=seconds,
        pretrained=model,
        data=data,
        on=on,
        name=made_up_name(str(workload).partition("@")[0]) if name is None else name,
        resources=resources,
        lease=settings.current().run_lease if isinstance(lease, EllipsisType) else lease,
    )
    if registry.train_driver(on).capabilities.here:
        require("benchmarking", "text", "torch", "transformers")
        check_address(spec.tracking)
    started = _start_run(prepared, spec)
    assert isinstance(started, Benchmark)
    return started


def attach(ref: str) -> Run | Deployment | Monitor | Schedule:
    """Bring a handle back, in any process: ``attach("run/digits-3f2a")``, or just the name where it is the only one.

    Raises
    ------
    NotFoundError
        If there is nothing of that name.
    """
    ledger = open_ledger()
    record = ledger.find(ref)
    handles: dict[str, Callable[[Ledger, Record], Run | Deployment | Monitor | Schedule]] = {
        "run": _run,
        "search": SearchRun,
        "deployment": Deployment,
        "monitor": Monitor,
        "schedule": Schedule,
    }
    handle = handles[_kind(record)](ledger, record)
    handle.refresh()
    if not handle.ended:
        ensure_supervisor(ledger.home)
    return handle


def load_model(ref: str) -> Model:
    """Open a model by name, ``"digits"`` (the latest) or ``"digits@1.0.0"``, or the model in a folder.

    Raises
    ------
    NotFoundError
        If there is none.
    IntegrityError
        If it is not what was recorded.
    StoreError
        If the store cannot be reached or does not let you in.
    """
    return find_model(open_ledger(), ref)


def ps() -> Inventory:
    """List what is alive: where, since when, its processes, what it costs per day, and who holds it."""
    ledger = open_ledger()
    return Inventory(ledger, [_ledgered(ledger, record) for record in ledger.records(alive=True)])


def costs() -> Inventory:
    """List what everything has cost so far, the ended included."""
    ledger = open_ledger()
    records = [record for record in ledger.records() if record.kind not in ("monitor", "schedule")]
    return Inventory(ledger, [_ledgered(ledger, record) for record in records], title="Costs")


def cleanup() -> Cleanup:
    """List what is alive, was made here and is held by no other live process; ``.apply()`` ends it."""
    ledger = open_ledger()
    return Cleanup(ledger, [entry for entry in ps().entries if ledger.mine(entry.record) and not entry.held_elsewhere])


def advance(ledger: Ledger, record: Record) -> None:
    """Take one object one step further; what the supervisor does, again and again."""
    {
        "run": advance_run,
        "search": advance_search,
        "deployment": advance_deployment,
        "monitor": advance_monitor,
        "schedule": advance_schedule,
    }[_kind(record)](ledger, record)


def due(ledger: Ledger, record: Record) -> float | None:
    """Return when time alone makes `advance` act on an object, in unix time; None where only news do."""
    return {"run": run_due, "deployment": deployment_due, "monitor": monitor_due, "schedule": schedule_due}[record.kind](
        ledger, record
    )


def _kind(record: Record) -> str:
    """Return what an object is: its kind, or "search" of a run whose children are trials."""
    return "search" if is_search(record) else record.kind


def _start_schedule(prepared: Prepared, spec: ScheduleSpec) -> Schedule:
    ledger = open_ledger()
    driver = registry.train_driver(spec.train.on)
    offer = _offer_at_once(driver, run_needs(spec.train), spot=spec.train.spot_policy == "spot")
    if offer is not None:
        Limits.of(spec.train.budget, spec.train.deadline, ledger.clock.now()).refuse_uncounted(Offer(**offer))
    prepared.put(Store(spec.train.store))
    wanted, anywhere = {"folder": str(Path.cwd())}, not driver.capabilities.here
    record = ledger.replace("schedule", spec.train.name, spec.model_dump(mode="json"), wanted, anywhere=anywhere)
    ensure_supervisor(ledger.home)
    return Schedule(ledger, record)


def _start_run(prepared: Prepared, spec: TrainSpec, search: Search | None = None) -> Run:
    ledger = open_ledger()
    driver = registry.train_driver(spec.on)
    limits = Limits.of(spec.budget, spec.deadline, ledger.clock.now())
    offer = _offer_at_once(driver, run_needs(spec), spot=spec.spot_policy == "spot")
    if offer is not None:
        limits.refuse_uncounted(Offer(**offer))
    prepared.put(Store(spec.store))
    wanted: dict[str, Any] = {"folder": str(Path.cwd()), "offer": offer, "limits": limits.to_json()}
    if search is not None:
        wanted["search"] = search.model_dump(mode="json")
    anywhere = not driver.capabilities.here
    record = ledger.create("run", spec.name, spec.model_dump(mode="json"), wanted, anywhere=anywhere)
    ensure_supervisor(ledger.home)
    return _run(ledger, record) if search is None else SearchRun(ledger, record)


def _run(ledger: Ledger, record: Record) -> Run:
    return (Benchmark if record.spec["work"]["kind"] == "benchmark" else Run)(ledger, record)


def _offer_at_once(driver: Driver, needs: Needs, *, spot: bool = False) -> dict[str, Any] | None:
    """Choose the offer now, where the driver can say it at once; None where the supervisor must ask for it, or wait for it.

    Raises
    ------
    PlacementError
        If the driver can say at once that it cannot run this.
    """
    if not driver.capabilities.here:
        return None
    try:
        return asdict(place(driver, needs, spot=spot))
    except (NotReadyError, DriverError):
        return None


def _refuse_options(what: str, data: Any, options: Mapping[str, Any]) -> None:
    if data is not None or options:
        given = min(options) if options else "data"
        raise SpecError(f"{what} already says everything: {given}= comes too late", fix="give it to cloudai.plan")


def _revision(model: Model | Run) -> tuple[str, Mapping[str, str]]:
    """Return a deployment's first revision: a model, or the run that will make it."""
    if isinstance(model, Model):
        model.verify()
        return revision_id(model, {}), model_entry(model)
    if isinstance(model, Run):
        model.refresh()
        if not model.ended:
            return f"run-{model.name}", {"run": model.name}
        return _revision(model.model)
    raise SpecError(f"cannot deploy {type(model).__name__}", fix="give a Model, a Run or a model's name")


def _offers(needs: Needs, on: str) -> list[Offer]:
    """Return the offers of all drivers, the asked-for one first, and published prices for comparison."""
    return registry.offers(needs, first=on) + catalog.reference_offers(needs)


def _ledgered(ledger: Ledger, record: Record) -> Ledgered:
    spenders: dict[str, Callable[[Record, float], Spending]] = {
        "run": run_spending,
        "search": partial(search_spending, ledger),
        "deployment": deployment_spending,
    }
    spent = spenders.get(_kind(record))
    holders = ledger.holders(record.kind, parent_of(record) or record.name)  # who holds a search holds its trials
    return Ledgered(record, holders, spent(record, ledger.clock.now()) if spent else None)
