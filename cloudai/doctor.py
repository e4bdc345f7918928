"""What is installed, reachable and missing, each in words and with its fix. It looks, and leaves nothing behind.

Everything is looked at by a probe of its own in a thread of its own: what hangs or fails in any way is a finding, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sqlite3
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from cloudai import __version__, settings
from cloudai.artifacts.filesystems import is_local
from cloudai.artifacts.store import Store
from cloudai.display import Card, Shown, Table, ago, duration
from cloudai.drivers import registry
from cloudai.drivers.protocols import Needs
from cloudai.errors import CloudAIError
from cloudai.specs.confidential import redact
from cloudai.state.leader import supervisor_pid
from cloudai.state.ledger import open_ledger
from cloudai.tracking import check_address, parse_address, tracker_for
from cloudai.tracking.registry import NONE
from cloudai.training.tracked import behind

__all__ = ["Finding", "Report", "examine"]

_LIMIT = 5.0  # seconds for one probe
_LOW_DISK = 2**30  # bytes
_SET_BACK = 300.0  # seconds that the clock may be behind the ledger's newest entry: several machines never agree wholly
_TAIL = 64 * 1024  # bytes of the supervisor's log
_IMPORTED_AS = {
    "grpcio": "grpc",
    "mlflow-skinny": "mlflow",
    "nvidia-ml-py": "pynvml",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "protobuf": "google.protobuf",
}
_NOT_FOR_USERS = {"all", "dev", "bench"}

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    area : str
        What it is about.
    what : str
        How it is, in words.
    state : {"ok", "note", "broken"}
        Whether it is as it should be; could be better, or is missing and optional; or keeps cloudai from working here.
    fix : str
        What to do, where something is to be done.
    """

    area: str
    what: str
    state: State = "ok"
    fix: str = ""


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """All findings."""

    findings: Sequence[Finding]

    def __repr__(self) -> str:
        return f"Report(well={self.well}, {len(self.findings)} findings)"

    @property
    def well(self) -> bool:
        """Whether nothing that is required is broken."""
        return not any(finding.state == "broken" for finding in self.findings)

    def card(self) -> Card:
        """Show everything, and then what is to be done."""
        marks = {"ok": "ok", "note": "note", "broken": "BROKEN"}
        rows = [(finding.area, marks[finding.state], finding.what) for finding in self.findings]
        mend = [(marks[finding.state], f"{finding.area}: {finding.fix}") for finding in self.findings if finding.fix]
        tables = [Table(("about", "state", "finding"), rows)]
        tables += [Table(("state", "fix"), sorted(mend), title="What can be done")] if mend else []
        return Card(f"cloudai is {'well' if self.well else 'not well'} here", tables=tables)

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {"well": self.well, "findings": [asdict(finding) for finding in self.findings]}


Probe = Callable[[], Iterable[Finding]]


def examine() -> Report:
    """Look at everything; takes a few seconds at most, whatever hangs."""
    probes: dict[str, tuple[Probe, State]] = {
        "version": (_versions, "broken"),
        "packages": (_packages, "note"),
        "settings": (_settings, "broken"),
        "home": (_home, "broken"),
        "ledger": (_ledger, "broken"),
        "clock": (_clock, "note"),
        "supervisor": (_supervisor, "note"),
        "store": (_store, "broken"),
        "tracking": (_tracking, "note"),
        "drivers": (_drivers, "broken"),
        "ports": (_ports, "broken"),
    }
    running = [_Running(area, probe, state) for area, (probe, state) in probes.items()]
    deadline = time.monotonic() + _LIMIT
    found = [finding for one in running for finding in one.findings(deadline)]
    return Report([replace(finding, what=redact(finding.what), fix=redact(finding.fix)) for finding in found])


class _Running:
    """A probe in a thread; if it fails or does not end, that is its finding."""

    def __init__(self, area: str, probe: Probe, state: State) -> None:
        self._area, self._probe, self._state = area, probe, state
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, name=f"cloudai-doctor-{area}", daemon=True)
        self._thread.start()

    def findings(self, deadline: float) -> list[Finding]:
        """Return what it found until `deadline`, a monotonic time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        found = list(self._found)
        if self._thread.is_alive():
            fix = "see whether what it asks is up, and whether a firewall drops the answer"
            found.append(Finding(self._area, f"no answer within {_LIMIT:g} s", self._state, fix))
        return found

    def _run(self) -> None:
        try:
            for finding in self._probe():
                self._found.append(finding)
        except CloudAIError as error:
            self._found.append(Finding(self._area, error.what, self._state, error.fix))
        except BaseException as error:  # noqa: BLE001  a package may fail in any way when it is imported
            fix = "see that what it asks is up, or report it"
            self._found.append(Finding(self._area, f"{type(error).__name__}: {error}"[:300], self._state, fix))


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("version", f"cloudai {__version__}, Python {python} at {sys.executable}, {sys.platform}")


def _packages() -> Iterator[Finding]:
    for extra, names in _extras().items():
        versions = {name: _version(name) for name in sorted(names)}
        missing = [name for name, version in versions.items() if version is None]
        there = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        if not missing:
            yield Finding(f"extra {extra}", there)
        else:
            what = f"not installed: {', '.join(missing)}" + (f"; installed: {there}" if there else "")
            yield Finding(f"extra {extra}", what, "note", f'pip install "cloudai[{extra}]"')


def _extras() -> dict[str, set[str]]:
    """Return the packages of each extra, as the installed cloudai says."""
    direct: dict[str, set[str]] = {}
    for line in metadata.requires("cloudai") or ():
        name = re.match(r"[\w.-]+(?:\[[\w,.-]+\])?", line)
        extra = re.search(r"extra *== *['\"](\w+)['\"]", line)
        if name and extra and extra[1] not in _NOT_FOR_USERS:
            direct.setdefault(extra[1], set()).add(name[0])
    return {extra: _expanded(names, direct) for extra, names in sorted(direct.items())}


def _expanded(names: Iterable[str], direct: dict[str, set[str]]) -> set[str]:
    """Replace ``cloudai[other]`` by what that extra needs."""
    found: set[str] = set()
    for name in names:
        package, _, extras = name.partition("[")
        inner = extras.rstrip("]").split(",")
        found |= set().union(*(_expanded(direct.get(e, ()), direct) for e in inner)) if package == "cloudai" else {package}
    return found


def _version(package: str) -> str | None:
    """Return the version of a package that is there to be imported, or None."""
    module = _IMPORTED_AS.get(package, package.replace("-", "_"))
    try:
        return metadata.version(package) if find_spec(module) is not None else None
    except (metadata.PackageNotFoundError, ImportError, ValueError):
        return None


def _settings() -> Iterator[Finding]:
    now = settings.current()
    for name in settings.NAMES:
        yield Finding(f"setting {name}", f"{getattr(now, name)} (from {now.sources[name]})")


def _home() -> Iterator[Finding]:
    home = settings.current().home
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    probe = place / f".cloudai-doctor-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"cloudai")
        probe.unlink()
    except OSError as error:
        what = f"{home} cannot be written: {error.strerror}"
        yield Finding("home", what, "broken", "make it yours (chown, chmod u+rwx), or set CLOUDAI_HOME to another folder")
        return
    free = shutil.disk_usage(place).free
    room = f"{free / 2**30:.1f} GiB free"
    if free < _LOW_DISK:
        yield Finding("home", f"{home}: only {room}", "note", "free some space, or set CLOUDAI_HOME to another disk")
    else:
        yield Finding("home", f"{home}{'' if place == home else ', made when first used'}: {room}")
    if place == home and stat.S_IMODE(home.stat().st_mode) & 0o077:
        yield Finding("home", "others on this machine can read it", "note", f"chmod 700 {home}")


def _ledger() -> Iterator[Finding]:
    now = settings.current()
    path = now.home / "ledger.sqlite"
    shared = now.ledger
    if not shared and not path.exists():
        yield Finding("ledger", f"{path}, made when first used")
        return
    if not shared:
        version = _checked_database(path)
    records = open_ledger().records()
    alive = sum(not record.ended for record in records)
    what = f"{len(records)} objects, {alive} of them alive"
    yield Finding("ledger", f"{shared}: {what}" if shared else f"{path}: {what}, schema {version}, sound")


def _checked_database(path: Path) -> int:
    """Return the schema's version of a SQLite file that is whole.

    Raises
    ------
    CloudAIError
        If it is not.
    """
    fix = f"stop what uses it, move {path} away, and bring back a copy; without one, an empty ledger is made"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_LIMIT)) as db:
            said = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if said != "ok":
                raise CloudAIError(f"{path} is damaged: {said}", fix=fix)
            return int(db.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        raise CloudAIError(f"{path} cannot be read: {error}", fix=fix) from None


def _clock() -> Iterator[Finding]:
    now, home = time.time(), settings.current()
    if not (home.ledger or (home.home / "ledger.sqlite").exists()):
        return
    newest = max((record.updated for record in open_ledger().records()), default=now)
    if newest - now > _SET_BACK:
        what = f"it is {duration(newest - now)} behind the ledger's newest entry"
        fix = "set the clock; or, if the ledger's times are wrong, cloudai doctor --trust-clock"
        yield Finding("clock", what, "note", fix)
    else:
        yield Finding("clock", "not behind the ledger's newest entry")


def _supervisor() -> Iterator[Finding]:
    home = settings.current().home
    pid = supervisor_pid(home) if home.exists() else None
    yield Finding("supervisor", f"process {pid}" if pid else "none runs: one starts when it is needed")
    log = home / "supervisor.log"
    if log.exists():
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            errors = [line for line in file.read().decode(errors="replace").splitlines() if " ERROR " in line]
        if errors:
            age = ago(max(0.0, time.time() - log.stat().st_mtime))
            what = f"its log, last written {age}, ends with the error: {errors[-1][:200]}"
            yield Finding("supervisor", what, "note", f"see {log}; if it comes again, report it")
    late = behind(home)
    if late:
        listed = ", ".join(late[:3]) + (", …" if len(late) > 3 else "")
        yield Finding("tracking", f"behind with {len(late)} ended runs: {listed}", "note", "cloudai track")


def _store() -> Iterator[Finding]:
    root = settings.current().store
    local = is_local(root)
    if local and not Path(root).exists():
        yield Finding("store", f"{root}, made when first used")
        return
    store, key, content = Store(root, patience=0.0), f"doctor-{uuid.uuid4().hex}", os.urandom(64)
    began = time.monotonic()
    try:
        try:
            store.write(key, content)
            same = store.read(key) == content
        finally:
            store.remove(key)
    except CloudAIError:
        raise
    except Exception as error:  # noqa: BLE001  a file system may fail in any way
        what = f"{root} cannot be used: {type(error).__name__}: {error}"[:300]
        raise CloudAIError(what, fix="see that it exists and that you may write to it, or set store=") from None
    took = duration(time.monotonic() - began)
    if same:
        yield Finding("store", f"{root}: wrote, read and removed a file in {took}")
    else:
        yield Finding("store", f"{root} gives back other bytes than were written", "broken", "do not use this store")


def _tracking() -> Iterator[Finding]:
    address = settings.current().tracking
    if address == NONE:
        yield Finding("tracking", "off")
        return
    try:
        address = parse_address(address)
        check_address(address)
    except CloudAIError as error:
        yield Finding("tracking", error.what, "broken", error.fix)
        return
    check = getattr(tracker_for(address, settings.current().home / "tracking"), "check", None)
    try:
        yield Finding("tracking", f"{address}: {check() if check is not None else 'it cannot be asked whether it is there'}")
    except Exception as error:  # noqa: BLE001  a tracker may fail in any way
        what = f"{address} cannot be reached: {error}"[:300]
        yield Finding("tracking", what, "note", "see that it runs; runs go on without it, and are recorded later")


def _drivers() -> Iterator[Finding]:
    problems = registry.problems()
    for name in registry.names():
        area, mine = f"driver {name}", [problem for of, problem in problems if of == name]
        for problem in mine:
            yield Finding(area, problem.what, "ok" if problem.passing else "note", "" if problem.passing else problem.fix)
        if not mine:
            yield Finding(area, "no problem")
            yield from _gpus(name) if registry.get(name).capabilities.train else ()


def _gpus(name: str) -> Iterator[Finding]:
    try:
        offers = list(registry.train_driver(name).offers(Needs(gpus=1)))
    except CloudAIError as error:  # one driver's trouble is not the others'
        yield Finding(f"driver {name}", error.what, "note", error.fix)
        return
    with_gpu = [offer.place for offer in offers if offer.available]
    why_not = next((offer.why_not for offer in offers if not offer.available), "it offers none")
    yield Finding(f"driver {name}", f"GPU: {', '.join(with_gpu)}" if with_gpu else f"no GPU: {why_not}")


def _ports() -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
    yield Finding("ports", "127.0.0.1 can be listened on")
    now = settings.current()
    if not (now.ledger or (now.home / "ledger.sqlite").exists()):
        return
    for record in open_ledger().records("deployment", alive=True):
        url = urlsplit(str(record.status.get("url", "")))
        if url.hostname and url.port:
            yield _listening(record.name, url.hostname, url.port)


def _listening(name: str, host: str, port: int) -> Finding:
    try:
        with socket.create_connection((host, port), timeout=2):
            return Finding("ports", f"{name} listens on {host}:{port}")
    except OSError as error:
        fix = f"cloudai show deployment/{name}"
        return Finding("ports", f"{name} does not listen on {host}:{port}: {error.strerror or error}", "note", fix)
