"""The command line: the same verbs from a shell. ``cloudai ps | show | logs | cancel | cleanup | costs | track | doctor``."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cloudai import __version__, _api, doctor, settings
from cloudai.display import nearest
from cloudai.errors import CloudAIError, SpecError
from cloudai.inventory import Inventory, Ledgered
from cloudai.serving.deployment import Deployment
from cloudai.state.ledger import open_ledger
from cloudai.training import tracked
from cloudai.training.catch_up import start_catching_up
from cloudai.training.run import Run
from cloudai.training.schedule import Schedule

__all__ = ["main"]

_WRONG, _INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 for an error of ours, which prints two lines."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = args.command
    try:
        code = command(args) or 0
        sys.stdout.flush()
    except CloudAIError as error:
        sys.stderr.write(f"{error}\n")
        return _WRONG
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read has gone, as `head` does; nothing is left to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _INTERRUPTED
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines, as all others are."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        fix = nearest(unknown[1], re.findall(r"[\w-]+", unknown[2])) if unknown else f"{self.prog} --help"
        what = f"there is no command {unknown[1]!r}" if unknown else f"{self.prog}: {message}"
        self.exit(2, f"{what}\nFix: {fix}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="cloudai", description="What is alive, what it says, what it costs, and its end.")
    parser.add_argument("--version", action="version", version=f"cloudai {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, command: Callable[[argparse.Namespace], int | None], what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        added.set_defaults(command=command)
        return added

    _json(add("ps", _ps, "list what is alive"))
    _json(add("costs", _costs, "list what everything has cost"))
    add("show", _show, "show one run, deployment, monitor or schedule").add_argument("ref")
    logs = add("logs", _logs, "print what a run's workers wrote")
    logs.add_argument("ref")
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends")
    add("cancel", _cancel, "end one run, deployment, monitor or schedule").add_argument("ref")
    cleanup = add("cleanup", _cleanup, "list what no live process holds")
    cleanup.add_argument("--apply", action="store_true", help="and end it")
    track = add("track", _track, "tell trackers what they missed of a run that has ended, or of all such runs")
    track.add_argument("ref", nargs="?")
    examine = add("doctor", _doctor, "say what is installed, reachable and missing, each with its fix")
    _json(examine)
    trust = "take this machine's clock for right, and bring back what the ledger says of its future"
    examine.add_argument("--trust-clock", action="store_true", help=trust)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _say_json(value: Any) -> None:
    _say(json.dumps(value, indent=2, ensure_ascii=False))


def _ps(args: argparse.Namespace) -> None:
    _list(_api.ps(), as_json=args.json)


def _costs(args: argparse.Namespace) -> None:
    _list(_api.costs(), as_json=args.json)


def _list(found: Inventory, *, as_json: bool) -> None:
    if as_json:
        _say_json({"entries": [_entry(entry) for entry in found.entries], "totals": found.totals})
    else:
        _say(str(found))


def _entry(entry: Ledgered) -> dict[str, Any]:
    """Return one object for machines; times are unix times."""
    record, spent = entry.record, entry.spending
    priced = spent is not None and bool(spent.currency)
    return {
        "ref": record.ref,
        "phase": record.phase,
        "created": record.created,
        "updated": record.updated,
        "pids": entry.pids,
        "held_by": [str(holder) for holder in entry.holders],
        "spent": {"amount": spent.amount, "currency": spent.currency} if spent is not None and priced else None,
    }


def _show(args: argparse.Namespace) -> None:
    _say(str(_api.attach(args.ref)))


def _logs(args: argparse.Namespace) -> None:
    for line in _run(args.ref, "logs are").logs(follow=args.follow):
        _say(line)


def _run(ref: str, what: str) -> Run:
    found = _api.attach(ref)
    if not isinstance(found, Run):
        raise SpecError(f"{ref!r} is no run", fix=f"{what} of runs: give run/NAME")
    return found


def _cancel(args: argparse.Namespace) -> None:
    found = _api.attach(args.ref)
    if found.ended:
        _say(f"{found.ref} has ended already: {found.phase}")
        return
    if isinstance(found, Run | Schedule):
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


def _track(args: argparse.Namespace) -> int:
    if args.ref:
        run = _run(args.ref, "records are")
        _say(f"{run.track(wait=True).ref} is recorded in {run.spec.tracking}")
        return 0
    home = settings.current().home
    names = tracked.behind(home)
    if not names:
        _say("no tracker is behind")
        return 0
    start_catching_up(home).wait()
    left = tracked.behind(home)
    for name in names:
        _say(f"run/{name} " + (f"is still behind: `cloudai show run/{name}` says why" if name in left else "is recorded"))
    return _WRONG if left else 0


def _doctor(args: argparse.Namespace) -> int:
    if args.trust_clock:
        _say(f"{open_ledger().trust_clock()} objects were brought back to this machine's time")
        return 0
    report = doctor.examine()
    if args.json:
        _say_json(report.to_json())
    else:
        _say(str(report))
    return 0 if report.well else _WRONG


if __name__ == "__main__":
    sys.exit(main())
