"""The command line: the same verbs from a shell. ``cloudai ps | logs | cancel | cleanup | costs | doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from cloudai import __version__, _api, settings
from cloudai.display import Table
from cloudai.drivers import registry
from cloudai.errors import CloudAIError, SpecError
from cloudai.serving.deployment import Deployment
from cloudai.training.run import Run

__all__ = ["main"]

_EXTRAS = {"torch": "train", "mlflow": "train", "ray": "ray", "uvicorn": "serve", "aiohttp": "serve", "ipywidgets": "notebook"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 for an error of ours, which prints two lines."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = args.command
    try:
        command(args)
    except CloudAIError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cloudai", description="What is alive, what it says, what it costs, and its end.")
    parser.add_argument("--version", action="version", version=f"cloudai {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("ps", help="list what is alive").set_defaults(command=lambda _: _say(str(_api.ps())))
    commands.add_parser("costs", help="list what everything has cost").set_defaults(command=lambda _: _say(str(_api.costs())))
    show = commands.add_parser("show", help="show one run, deployment or monitor")
    show.add_argument("ref")
    show.set_defaults(command=lambda args: _say(str(_api.attach(args.ref))))
    logs = commands.add_parser("logs", help="print what a run's workers wrote")
    logs.add_argument("ref")
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends")
    logs.set_defaults(command=_logs)
    cancel = commands.add_parser("cancel", help="end one run, deployment or monitor")
    cancel.add_argument("ref")
    cancel.set_defaults(command=_cancel)
    cleanup = commands.add_parser("cleanup", help="list what no live process holds")
    cleanup.add_argument("--apply", action="store_true", help="and end it")
    cleanup.set_defaults(command=_cleanup)
    commands.add_parser("doctor", help="say what is installed, where things are, and what is missing").set_defaults(
        command=_doctor
    )
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _logs(args: argparse.Namespace) -> None:
    found = _api.attach(args.ref)
    if not isinstance(found, Run):
        raise SpecError(f"{args.ref!r} is no run", fix="logs are of runs: cloudai logs run/NAME")
    for line in found.logs(follow=args.follow):
        _say(line)


def _cancel(args: argparse.Namespace) -> None:
    found = _api.attach(args.ref)
    if isinstance(found, Run):
        found.cancel()
    elif isinstance(found, Deployment):
        found.delete()
    else:
        found.stop()
    _say(f"{found.ref} will end; `cloudai ps` shows when it has")


def _cleanup(args: argparse.Namespace) -> None:
    found = _api.cleanup()
    _say(str(found))
    if args.apply and found.entries:
        found.apply()
        _say("ended")


def _doctor(args: argparse.Namespace) -> None:
    _say(f"cloudai {__version__}, Python {sys.version.split()[0]}")
    _say(str(settings.current()))
    rows = [
        (package, "yes" if find_spec(package) else f'no: pip install "cloudai[{extra}]"') for package, extra in _EXTRAS.items()
    ]
    _say(Table(("package", "installed"), rows).text())
    problems = [(name, problem.what, problem.fix) for name, problem in registry.problems()]
    drivers = ", ".join(registry.names())
    _say(f"drivers: {drivers}")
    _say(Table(("driver", "problem", "fix"), problems).text() if problems else "no driver has a problem")


if __name__ == "__main__":
    sys.exit(main())
