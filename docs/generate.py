"""Write the generated parts of the pages from the code: ``python docs/generate.py``.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; ``tests/docs`` fails while a page differs from what
this would write.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "cloudai"

POCKET = DOCS.parent / "tests" / "third_party" / "cloudai-pocket"
"""The package that docs/how-to/write-a-driver.md shows."""

_PART = re.compile(
    r"(<!-- generated: (?P<name>[\w-]+)(?: (?P<file>[\w./-]+)(?:#(?P<section>\w+))?)? -->\n).*?(<!-- end -->)", re.DOTALL
)

RETURNED = {
    "RunStatus": "cloudai.training.run",
    "SearchRun": "cloudai.training.search.run",
    "Trials": "cloudai.training.search.run",
    "Trial": "cloudai.training.search.run",
    "ScheduledRun": "cloudai.training.schedule",
    "BenchmarkResult": "cloudai.benchmarking.result",
    "Measurement": "cloudai.benchmarking.measurement",
    "Spending": "cloudai.planning.spending",
    "Estimate": "cloudai.planning.estimate",
    "Offer": "cloudai.drivers.protocols",
    "Signature": "cloudai.artifacts.signature",
    "Export": "cloudai.artifacts.export",
    "Split": "cloudai.serving.split",
    "Progress": "cloudai.serving.rollout",
    "Report": "cloudai.monitoring.drift",
    "Finding": "cloudai.monitoring.drift",
    "Inventory": "cloudai.inventory",
    "Cleanup": "cloudai.inventory",
    "Settings": "cloudai.settings",
}
"""What users meet without making it, and where it is defined."""

OPTIONS = {
    "on": ("'local'", "The driver."),
    "name": ("", "Of a run: its name, by default one that is made up. Of a deployment: its name, by default the model's."),
    "model_name": ("", "The name of the model that it makes; by default made from the work's."),
    "config": ("{}", "What your function finds as `context.config`; recorded as parameters."),
    "seed": ("0", "Seeds Python, numpy and torch, the rows held back and the order of rows."),
    "resources": ("Resources()", "What each worker or replica needs."),
    "checkpoint": ("CheckpointPolicy()", "How often checkpoints are written, and how many are kept."),
    "max_failures": ("3", "How often a run comes back after its worker was killed or lost."),
    "hang": ("None", "After how long without a step a worker is ended, to come back; by default chosen by the run's own pace."),
    "budget": ("None", "What it may cost, all attempts together."),
    "deadline": ("None", "Until when it may go on: a duration from now, or a datetime with its time zone."),
    "lease": (
        "the setting",
        "How long it goes on without a live handle. `None`: a deployment for ever, a run as the setting says.",
    ),
    "loss": ("'cross_entropy'", "Of the built-in loop."),
    "optimizer": ("'adamw'", "Of the built-in loop."),
    "lr": ("0.001", "The learning rate of the built-in loop; for a pretrained model 5e-05 or as its task has it."),
    "weight_decay": ("0.0", "Of the built-in loop's optimiser."),
    "epochs": ("10", "How often the built-in loop goes through all rows; for a pretrained model 3, for embeddings 1."),
    "limits": ("ServerLimits()", "What one server takes on."),
}
"""Defaults and meanings of options whose fields in the specs do not say them."""


def pages() -> list[Path]:
    """Return the pages that have generated parts."""
    every = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
    return [page for page in every if "<!-- generated:" in page.read_text(encoding="utf-8")]


def rendered(text: str) -> str:
    """Return a page with its generated parts written anew."""
    return _PART.sub(lambda part: f"{part[1]}\n{_part(part)}\n\n<!-- end -->", text)


def _part(part: re.Match[str]) -> str:
    return _source(part["file"], part["section"] or "") if part["name"] == "source" else PARTS[part["name"]]()


def main() -> None:
    """Write all pages."""
    for page in pages():
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


# ── docstrings and signatures, read from the source so that every Python version writes the same ──


def _definition(thing: Any) -> ast.FunctionDef | ast.ClassDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return node


def _signature(node: ast.FunctionDef) -> str:
    args = re.sub(r"\*\*(\w+): Unpack\[\w+\]", r"**\1", ast.unparse(node.args))
    args = re.sub(r"^(self|cls)(, |$)", "", args)
    return f"({args}) → {ast.unparse(node.returns)}" if node.returns else f"({args})"


def _markdown(docstring: str) -> str:
    """Turn a numpy docstring into Markdown."""
    head, *sections = re.split(r"^(\w+)\n-+\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    parts = [_inline(head)]
    for name, body in zip(sections[::2], sections[1::2], strict=True):
        parts.append(f"**{name}**\n\n{_examples(body) if name == 'Examples' else _entries(body)}")
    return "\n\n".join(part.strip() for part in parts)


def _inline(text: str) -> str:
    """Turn ``code`` and `names` of reStructuredText into Markdown's code; a paragraph becomes one line."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return "\n\n".join(paragraph.replace("``", "`") for paragraph in paragraphs)


def _entries(body: str) -> str:
    """Turn ``name : type`` with an indented description into a list."""
    entries = re.findall(r"^(\S.*)\n?((?:^(?:[ \t]+.*)?(?:\n|\Z))*)", body, flags=re.MULTILINE)
    return "\n".join(f"- `{name.replace('``', '')}`" + (f": {_inline(text)}" if text.strip() else "") for name, text in entries)


def _examples(body: str) -> str:
    return f"```pycon\n{body.strip()}\n```"


def _first_line(docstring: str | None) -> str:
    return _inline(inspect.cleandoc(docstring or "").split("\n\n")[0])


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


# ── reference/api.md ──


def api() -> str:
    """Describe every public name."""
    import cloudai

    things = {name: getattr(cloudai, name) for name in cloudai.__all__}
    functions = [thing for thing in things.values() if inspect.isfunction(thing)]
    in_order = sorted(functions, key=lambda function: function.__code__.co_firstlineno)
    verbs = [_verb(verb.__name__, verb) for verb in in_order if verb.__module__ == "cloudai._api"]
    others = [_verb(function.__name__, function) for function in in_order if function.__module__ != "cloudai._api"]
    classes = [_class(name, thing) for name, thing in things.items() if inspect.isclass(thing)]
    modules = [_module(name, thing) for name, thing in things.items() if inspect.ismodule(thing)]
    returned = [_class(name, getattr(importlib.import_module(where), name)) for name, where in RETURNED.items()]
    parts = {"Verbs": verbs, "What a search draws from": others, "Objects and policies": classes}
    parts |= {"Modules": modules, "What they return": returned}
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(entries) for title, entries in parts.items())


def _verb(name: str, function: Callable[..., Any]) -> str:
    signature = _signature(_definition(function))
    parts = [f"### {name}", f"`cloudai.{name}{signature}`", _markdown(inspect.getdoc(function) or "")]
    options = {"train": "TrainOptions", "deploy": "DeployOptions"}.get(name)
    return "\n\n".join([*parts, _options(name, options)] if options else parts)


def _options(verb: str, kind: str) -> str:
    """Tabulate a verb's keyword options with the defaults and meanings of the spec's fields."""
    from cloudai import _api
    from cloudai.specs import resources, serving, training

    rooms = [training.Loop, training.FailurePolicy, resources.ScalingPolicy, training.TrainSpec]
    fields = [_fields(spec) for spec in (rooms if verb == "train" else [serving.DeploySpec])]
    rows = []
    for option, kind_of, _, _ in _fields(getattr(_api, kind)):
        said = next(((d, m) for rows_of in fields for name, _, d, m in rows_of if name == option), ("", ""))
        default, meaning = OPTIONS.get(option, said)
        rows.append((f"`{option}`", f"`{kind_of}`", f"`{default}`" if default else "", meaning))
    return _table(("option", "type", "default", "meaning"), rows)


def _fields(kind: type) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of the annotated fields of a class."""
    body = _definition(kind).body
    found = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        meaning = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        default = "" if node.value is None else _default(node.value)
        found.append((node.target.id, ast.unparse(node.annotation), default, _inline(str(meaning))))
    return found


def _default(node: ast.expr) -> str:
    """Return a field's default; of pydantic's Field its keyword `default`."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Field":
        return next((ast.unparse(key.value) for key in node.keywords if key.arg == "default"), "")
    return ast.unparse(node)


def _class(name: str, kind: type) -> str:
    parts = [f"### {name}", f"`{kind.__module__}.{name}`", _markdown(kind.__doc__ or "")]
    fields = [(f"`{f}`", f"`{t}`", f"`{d}`" if d else "", m) for f, t, d, m in _fields(kind) if not f.startswith("_")]
    if fields and "Attributes\n" not in (kind.__doc__ or ""):
        parts.append(_table(("field", "type", "default", "meaning"), fields))
    listed = set(re.findall(r"\w+", " ".join(re.findall(r"^([\w, ]+) : ", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE))))
    members = [(name, what) for name, what in _members(kind) if name.strip("`") not in listed]
    if members:
        parts.append(_table(("member", "what it does"), members))
    return "\n\n".join(parts)


def _members(kind: type) -> Iterator[tuple[str, str]]:
    """Describe the public methods and properties of a class and of the classes of ours that it extends."""
    seen = {"card", "to_json", "from_json", "of", "parse"}
    for base in (base for base in kind.__mro__ if base.__module__.startswith("cloudai.")):
        for name, value in vars(base).items():
            function = getattr(value, "fget", None) or getattr(value, "__func__", None) or getattr(value, "func", None) or value
            if name.startswith("_") or name in seen or getattr(function, "__name__", "") != name:
                continue
            seen.add(name)
            is_property = function is not value and not isinstance(value, classmethod)
            signature = "" if is_property else _signature(_definition(function))
            yield f"`{name}{signature}`", _first_line(function.__doc__)


def _module(name: str, module: ModuleType) -> str:
    inner = importlib.import_module(f"{module.__name__}.registry") if name == "drivers" else module
    functions = [(n, getattr(inner, n)) for n in inner.__all__ if inspect.isfunction(getattr(inner, n))]
    rows = [(f"`{n}{_signature(_definition(f))}`", _first_line(f.__doc__)) for n, f in functions]
    parts = [f"### {name}", f"`{inner.__name__}`: {_first_line(inner.__doc__)}"]
    return "\n\n".join([*parts, _table(("function", "what it does"), rows)] if rows else parts)


# ── reference/errors.md ──


def error_tree() -> str:
    """Copy the tree from the docstring of `cloudai.errors`."""
    from cloudai import errors

    tree = re.search(r"::\n\n((?: {4}.*\n)+)", errors.__doc__ or "")
    assert tree is not None
    return f"```text\n{textwrap.dedent(tree[1]).rstrip()}\n```"


def messages() -> str:
    """List what every error in the code says, and its fix, by class."""
    from cloudai import errors

    found: dict[str, dict[str, str]] = {name: {} for name in errors.__all__}
    for kind, what, fix in _raised_anywhere():
        if kind in found and len(re.findall(r"\w+", what)) > 1:
            found[kind].setdefault(what, fix)
    parts = [
        f"### {kind}\n\n{_first_line(getattr(errors, kind).__doc__)}\n\n"
        + _table(("it says", "what to do"), sorted(said.items(), key=lambda row: row[0].lstrip("…‘\"'").lower()))
        for kind, said in found.items()
        if said
    ]
    return "\n\n".join(parts)


def refusals() -> str:
    """List what the servers answer when they refuse, by status."""
    found = {(what, fix) for kind, what, fix in _raised_anywhere() if kind == "HttpError" and what[0].isdigit()}
    rows = [(what[:3], what[4:] if what[4:].strip("… ") else "what is wrong with the request", fix) for what, fix in found]
    return _table(("status", "it says", "what to do"), sorted(rows))


def metrics() -> str:
    """List the metrics of server and router with their labels."""
    rows = []
    texts = [(PACKAGE / "serving" / name).read_text(encoding="utf-8") for name in ("metrics.py", "router_metrics.py")]
    for call in (node for text in texts for node in ast.walk(ast.parse(text))):
        name = getattr(call.func, "id", "") if isinstance(call, ast.Call) else ""
        kind = name.removesuffix("MetricFamily").lstrip("_").capitalize()
        named = isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)
        if isinstance(call, ast.Call) and named and kind in {"Counter", "Gauge", "Histogram"}:
            name, meaning = (ast.literal_eval(arg) for arg in call.args[:2])
            rows.append((f"`{name}`", kind.lower(), meaning))
    return _table(("metric", "kind", "what it counts"), sorted(rows))


def _raised_anywhere() -> Iterator[tuple[str, str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield from _raised(ast.parse(path.read_text(encoding="utf-8")))


def _raised(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Find each error that a module makes: its class, what it says and its fix, with … for what is filled in."""
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    constants = _assigned(tree.body)
    for scope in scopes:
        statements = sorted((node for node in ast.walk(scope) if isinstance(node, ast.stmt)), key=lambda node: node.lineno)
        for call in (node for node in ast.walk(scope) if isinstance(node, ast.Call)):
            before = [node for node in statements if node.lineno < call.lineno]
            known = constants | _defaults(scope) | _assigned(before)
            kind = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
            fix = next((key.value for key in call.keywords if key.arg == "fix"), None)
            if kind == "add" and len(call.args) == 3:  # Problems.add(what, fix, use), of captured code
                yield "CaptureError", _template(call.args[0], known), _template(call.args[1], known)
            elif call.args and fix is not None:
                what = call.args[-1] if kind == "HttpError" else call.args[0]
                status = f"{_template(call.args[0], known)} " if kind == "HttpError" else ""
                yield kind, status + _template(what, known), _template(fix, known)


def _defaults(scope: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, ast.expr]:
    names = [arg.arg for arg in scope.args.args][len(scope.args.args) - len(scope.args.defaults) :]
    return dict(zip(names, scope.args.defaults, strict=True))


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    pairs = [(node.targets[0], node.value) for node in body if isinstance(node, ast.Assign)]
    return {target.id: value for target, value in pairs if isinstance(target, ast.Name)}


def _template(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """Return the text of an expression, with … for what is filled in when it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, known) for part in node.values)
    if isinstance(node, ast.Name) and node.id in known:
        return _template(known[node.id], {name: value for name, value in known.items() if name != node.id})
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left, known) + _template(node.right, known)
    if isinstance(node, ast.IfExp):
        return f"{_template(node.body, known)} / {_template(node.orelse, known)}"
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "nearest":
        return "one of the names that it lists, the nearest first"
    return "…"


# ── settings and commands ──


def setting_table() -> str:
    """Tabulate the settings with their defaults and meanings."""
    from cloudai import settings

    docstring = inspect.cleandoc(settings.Settings.__doc__ or "")
    meanings = dict(re.findall(r"^([\w, ]+) : .*\n((?:^    .*\n?)+)", docstring, re.MULTILINE))
    rows = []
    for name in settings.NAMES:
        meaning = next(text for names, text in meanings.items() if name in names.split(", "))
        default = settings._DEFAULTS[name]  # noqa: SLF001
        rows.append((f"`{name}`", f"`CLOUDAI_{name.upper()}`", f"`{default!r}`", _inline(meaning)))
    return _table(("setting", "environment", "default", "meaning"), rows)


def commands() -> str:
    """Tabulate the commands of the command line with their arguments."""
    from cloudai import cli

    rows = []
    for name, parser in _subparsers(cli._parser()).items():  # noqa: SLF001
        usage = parser.format_usage().removeprefix("usage: ").replace(" [-h]", "").strip()
        rows.append((f"`{usage}`", _help(cli._parser(), name), _arguments(parser)))  # noqa: SLF001
    return _table(("command", "what it does", "options"), rows)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    return dict(action.choices)


def _help(parser: argparse.ArgumentParser, command: str) -> str:
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    return next(str(choice.help) for choice in action._choices_actions if choice.dest == command)  # noqa: SLF001


def _arguments(parser: argparse.ArgumentParser) -> str:
    options = [action for action in parser._actions if action.option_strings and action.dest != "help"]  # noqa: SLF001
    return "; ".join(f"`{' '.join(option.option_strings)}` {option.help}" for option in options)


# ── how-to/write-a-driver.md ──


def _source(file: str, section: str) -> str:
    """Return a file of the pocket package, or what is between two of its headings ``# ── section …``, as a block."""
    text = (POCKET / file).read_text(encoding="utf-8")
    parts = dict(re.findall(r"(?:^ *# ── (\w+).*\n)?((?:^(?! *# ── ).*\n)+)", text, re.MULTILINE))
    kind = {".py": "py", ".toml": "toml"}[Path(file).suffix]
    return f"```{kind}\n{(parts[section if section != 'head' else ''] if section else text).strip(chr(10))}\n```"


# ── drivers ──


def drivers() -> str:
    """Tabulate what each built-in driver can do, with the gaps that its tests declare."""
    from cloudai.drivers import registry

    columns = (
        "driver",
        "trains",
        "serves",
        "telemetry",
        "GPU",
        "spot",
        "workers of a run",
        "splits traffic",
        "to zero",
        "gaps",
    )
    return _table(columns, [_driver(name) for name in sorted(registry._BUILT_IN)])  # noqa: SLF001


def _driver(name: str) -> tuple[str, ...]:
    from cloudai.drivers import registry

    factory = registry._load(registry._BUILT_IN[name])  # noqa: SLF001
    can = factory().capabilities
    workers = "as many as there are cores" if can.here and can.max_workers == (os.cpu_count() or 1) else str(can.max_workers)
    routing = {"no": "no", "weights": "by weights", "device": "by device"}[can.routing]
    marks = ["yes" if able else "no" for able in (can.train, can.serve, can.telemetry, can.gpu, can.spot)]
    gaps = [f"{clause} ({gap.kind}): {gap.reason}" for clause, gap in _gaps(name).items()]
    return (f"`{name}`", *marks, workers, routing, "yes" if can.scale_to_zero else "no", "; ".join(gaps) or "none")


def _gaps(name: str) -> dict[str, Any]:
    """Return the gaps that the conformance tests of a built-in driver declare."""
    from cloudai.testing.clauses import Conformance

    if not (DOCS.parent / "tests" / "drivers" / f"test_{name}_conformance.py").exists():
        return {}
    tests = importlib.import_module(f"tests.drivers.test_{name}_conformance")
    suites = [kind for _, kind in inspect.getmembers(tests, inspect.isclass) if issubclass(kind, Conformance)]
    return {clause: gap for suite in suites for clause, gap in suite.gaps.items()}


def clauses() -> str:
    """List the clauses of the contract, by suite, with what each test of theirs says."""
    from cloudai import testing
    from cloudai.testing.clauses import clauses_of

    shared: dict[str, str] = {}
    parts = []
    for suite in (testing.TrainDriverConformance, testing.ServeDriverConformance, testing.TelemetryDriverConformance):
        rows = [
            (f"`{name}`", " ".join(_says(suite, test) for test in tests)) for name, tests in sorted(clauses_of(suite).items())
        ]
        rows = [row for row in rows if shared.get(row[0]) != row[1]]
        shared.update(rows)
        parts.append(f"### {suite.__name__}\n\n{_table(('clause', 'what it asks for'), rows)}")
    return "\n\n".join(parts)


def _says(suite: type, test: str) -> str:
    return _first_line(getattr(suite, test).__doc__)


PARTS: dict[str, Callable[[], str]] = {
    "api": api,
    "error-tree": error_tree,
    "messages": messages,
    "refusals": refusals,
    "metrics": metrics,
    "settings": setting_table,
    "commands": commands,
    "drivers": drivers,
    "clauses": clauses,
}

if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    main()
