"""Train, deploy and monitor models from one notebook.

>>> import cloudai
>>> cloudai.__version__
'0.1.0'

Everything else is imported when it is first used, so that ``import cloudai`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudai import drivers, errors, settings, widgets
    from cloudai._api import attach, benchmark, cleanup, costs, deploy, load_model, monitor, plan, ps, train
    from cloudai.artifacts.model import Model
    from cloudai.benchmarking.benchmark import Benchmark
    from cloudai.monitoring.decide import Decision
    from cloudai.monitoring.monitor import Monitor
    from cloudai.planning.plan import Plan
    from cloudai.serving.deployment import Deployment
    from cloudai.specs.limits import Budget
    from cloudai.specs.monitoring import DecisionPolicy, DriftPolicy
    from cloudai.specs.resources import Resources, ScalingPolicy
    from cloudai.specs.rollout import Guard, Rollout
    from cloudai.specs.search import Search, choice, integers, log_uniform, uniform
    from cloudai.specs.serving import AutoscalingPolicy, ServerLimits
    from cloudai.specs.texts import Lora
    from cloudai.specs.training import CheckpointPolicy
    from cloudai.training.context import Context
    from cloudai.training.run import Run
    from cloudai.training.schedule import Schedule
    from cloudai.training.tables import Table

__version__ = "0.1.0"

_WHERE = {
    "AutoscalingPolicy": "cloudai.specs.serving",
    "Benchmark": "cloudai.benchmarking.benchmark",
    "Budget": "cloudai.specs.limits",
    "CheckpointPolicy": "cloudai.specs.training",
    "Context": "cloudai.training.context",
    "Decision": "cloudai.monitoring.decide",
    "DecisionPolicy": "cloudai.specs.monitoring",
    "Deployment": "cloudai.serving.deployment",
    "DriftPolicy": "cloudai.specs.monitoring",
    "Guard": "cloudai.specs.rollout",
    "Lora": "cloudai.specs.texts",
    "Model": "cloudai.artifacts.model",
    "Monitor": "cloudai.monitoring.monitor",
    "Plan": "cloudai.planning.plan",
    "Resources": "cloudai.specs.resources",
    "Rollout": "cloudai.specs.rollout",
    "Run": "cloudai.training.run",
    "ScalingPolicy": "cloudai.specs.resources",
    "Schedule": "cloudai.training.schedule",
    "Search": "cloudai.specs.search",
    "ServerLimits": "cloudai.specs.serving",
    "Table": "cloudai.training.tables",
    "attach": "cloudai._api",
    "choice": "cloudai.specs.search",
    "benchmark": "cloudai._api",
    "cleanup": "cloudai._api",
    "costs": "cloudai._api",
    "deploy": "cloudai._api",
    "drivers": "",
    "errors": "",
    "integers": "cloudai.specs.search",
    "load_model": "cloudai._api",
    "log_uniform": "cloudai.specs.search",
    "monitor": "cloudai._api",
    "plan": "cloudai._api",
    "ps": "cloudai._api",
    "settings": "",
    "train": "cloudai._api",
    "uniform": "cloudai.specs.search",
    "widgets": "",
}

__all__ = [
    "AutoscalingPolicy",
    "Benchmark",
    "Budget",
    "CheckpointPolicy",
    "Context",
    "Decision",
    "DecisionPolicy",
    "Deployment",
    "DriftPolicy",
    "Guard",
    "Lora",
    "Model",
    "Monitor",
    "Plan",
    "Resources",
    "Rollout",
    "Run",
    "ScalingPolicy",
    "Schedule",
    "Search",
    "ServerLimits",
    "Table",
    "attach",
    "benchmark",
    "choice",
    "cleanup",
    "costs",
    "deploy",
    "drivers",
    "errors",
    "integers",
    "load_model",
    "log_uniform",
    "monitor",
    "plan",
    "ps",
    "settings",
    "train",
    "uniform",
    "widgets",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    import gc
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'cloudai' has no attribute {name!r}")
    where = _WHERE[name]
    collects = gc.isenabled()
    gc.disable()  # beside a loaded torch, collecting garbage doubles the time of our imports
    try:
        value = getattr(importlib.import_module(where), name) if where else importlib.import_module(f"cloudai.{name}")
    finally:
        if collects:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
