"""Notices that a cloud gives to a machine which it is about to take away, read from its metadata service.

Each cloud has an address that only the machine itself reaches:

- AWS: ``/latest/meta-data/spot/instance-action``, two minutes ahead, and ``…/events/recommendations/rebalance``, earlier and
  less sure, both with a token (IMDSv2). AWS recommends to look every 5 seconds. (Amazon EC2 User Guide, "Spot Instance
  interruption notices", "EC2 instance rebalance recommendations".)
- Google Cloud: ``/computeMetadata/v1/instance/preempted``, 30 seconds ahead, answered when it changes;
  ``maintenance-event``, a minute ahead for those who have looked at it before. (Compute Engine documentation, "Preemptible VM
  instances", "Query metadata server for maintenance event notices".)
- Azure: ``/metadata/scheduledevents``, at least 30 seconds ahead for Preempt. It tells of the machines of a whole set, so the
  own name is asked for. (Azure documentation, "Scheduled Events for Linux VMs".)

Which cloud a machine belongs to is read from what its firmware says, without a request: elsewhere nothing is ever asked.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from cloudai.artifacts.store import Store
from cloudai.errors import StoreError

__all__ = ["METADATA", "Notice", "Source", "here", "note", "noted", "watch"]

log = logging.getLogger(__name__)

METADATA = "CLOUDAI_METADATA"
"""The environment variable that says which cloud to ask: ``aws``, ``google``, ``azure``, with ``=URL`` at another address, or
``none``. Without it the machine's firmware says so."""

_FIRMWARE = Path("/sys/class/dmi/id")
_AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
"""The asset tag of every Azure machine, by which others with Microsoft's hypervisor differ (cloud-init, tools/ds-identify)."""

_TIMEOUT = 2.0  # seconds for an answer from the own machine's host
_HELD = 10.0  # seconds that Google's service is asked to wait for news
_TOKEN_LIFE = 21600  # seconds, the longest that AWS gives
_LONGEST_PAUSE = 60.0  # seconds between two tries while nobody answers
_FILE = "notice.json"
_BRIEF = 10.0  # seconds that a store has to take a notice: the machine has not many more


@dataclass(frozen=True)
class Notice:
    """What a cloud says about this machine.

    Attributes
    ----------
    text : str
        In words.
    final : bool
        Whether the machine will be gone; else a checkpoint is wise, and the work goes on.
    """

    text: str
    final: bool


class Source(Protocol):
    """A cloud's metadata service."""

    pause: float
    """Seconds between two looks."""

    def look(self) -> Notice | None:
        """Return what it says now; None while the machine stays. `OSError` or `ValueError` where it cannot be understood."""
        ...


class _Service:
    """An address that answers short texts."""

    def __init__(self, url: str) -> None:
        if not url.startswith("http://"):
            raise ValueError(f"{METADATA}: {url!r} is no http:// address")
        self._url = url.rstrip("/")
        # never through a proxy: it would tell of its own machine
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def ask(
        self, path: str, headers: Mapping[str, str], *, method: str = "GET", held: float = 0.0
    ) -> tuple[str | None, Mapping[str, str]]:
        """Return the answer, None where there is nothing (404), and its headers."""
        request = urllib.request.Request(self._url + path, headers=dict(headers), method=method)  # noqa: S310  http alone
        try:
            with self._open(request, timeout=_TIMEOUT + held) as answer:
                return answer.read(1 << 20).decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None, {}
            raise


class Aws:
    """Amazon EC2."""

    pause = 5.0

    def __init__(self, url: str = "http://169.254.169.254") -> None:
        self._service = _Service(url)
        self._token, self._until = "", float("-inf")

    def look(self) -> Notice | None:
        """Ask for an interruption, then for a recommendation."""
        action = self._read("/latest/meta-data/spot/instance-action")
        if action is not None:
            told = json.loads(action)
            verb = {"stop": "stop", "hibernate": "hibernate"}.get(told["action"], "take")
            return Notice(f"AWS will {verb} this machine at {_clock(datetime.fromisoformat(told['time']))}", final=True)
        advice = self._read("/latest/meta-data/events/recommendations/rebalance")
        if advice is not None:
            since = _clock(datetime.fromisoformat(json.loads(advice)["noticeTime"]))
            return Notice(f"AWS says since {since} that it may soon take this machine", final=False)
        return None

    def _read(self, path: str) -> str | None:
        if time.monotonic() >= self._until:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE)}
            self._token = self._service.ask("/latest/api/token", headers, method="PUT")[0] or ""
            self._until = time.monotonic() + _TOKEN_LIFE / 2
        try:
            return self._service.ask(path, {"X-aws-ec2-metadata-token": self._token})[0]
        except urllib.error.HTTPError:
            self._until = float("-inf")  # the token may not be good any more
            raise


class Google:
    """Google Compute Engine."""

    pause = 1.0

    def __init__(self, url: str = "http://metadata.google.internal") -> None:
        self._service = _Service(url)
        self._etag = ""

    def look(self) -> Notice | None:
        """Ask whether it is preempted, from the second time on with patience, then for maintenance."""
        if self._read("preempted", wait=bool(self._etag)) == "TRUE":
            return Notice("Google Cloud takes this machine within 30 seconds", final=True)
        event = self._read("maintenance-event")
        if event == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice("Google Cloud will end this machine for maintenance within a minute", final=True)
        if event == "MIGRATE_ON_HOST_MAINTENANCE":
            return Notice("Google Cloud will move this machine for maintenance within a minute", final=False)
        return None

    def _read(self, name: str, *, wait: bool = False) -> str:
        query = {"wait_for_change": "true", "timeout_sec": f"{_HELD:g}", "last_etag": self._etag} if wait else {}
        path = f"/computeMetadata/v1/instance/{name}?{urllib.parse.urlencode(query)}"
        text, headers = self._service.ask(path, {"Metadata-Flavor": "Google"}, held=_HELD if wait else 0.0)
        if name == "preempted":
            self._etag = headers.get("ETag", "")
        return (text or "").strip().upper()


class Azure:
    """Microsoft Azure."""

    pause = 1.0

    def __init__(self, url: str = "http://169.254.169.254") -> None:
        self._service = _Service(url)
        self._name = ""

    def look(self) -> Notice | None:
        """Ask for what is scheduled for this machine; what ends it comes first."""
        if not self._name:
            self._name = self._read("/metadata/instance/compute/name?api-version=2021-02-01&format=text")
        events = json.loads(self._read("/metadata/scheduledevents?api-version=2020-07-01") or "{}").get("Events", [])
        notices = [self._notice(event) for event in events if self._name in event.get("Resources", [])]
        return min(notices, key=lambda notice: not notice.final, default=None)

    def _notice(self, event: Mapping[str, Any]) -> Notice:
        at = event.get("NotBefore", "")
        when = f"at {_clock(parsedate_to_datetime(at))}" if at else "now"
        verb = {"Preempt": "take", "Terminate": "delete", "Reboot": "restart", "Redeploy": "move and restart"}
        kind = event.get("EventType", "")
        if kind in verb:
            return Notice(f"Azure will {verb[kind]} this machine {when}", final=True)
        return Notice(f"Azure will hold this machine for a moment {when} ({kind})", final=False)

    def _read(self, path: str) -> str:
        return self._service.ask(path, {"Metadata": "true"})[0] or ""


_CLOUDS: Mapping[str, Callable[..., Source]] = {"aws": Aws, "google": Google, "azure": Azure}


def here(firmware: Path = _FIRMWARE) -> Source | None:
    """Return the cloud that this machine belongs to; None where it belongs to none. No request is made."""
    name, _, url = os.environ.get(METADATA, "").partition("=")
    name = name or _named_by(firmware)
    if name not in ("", "none", *_CLOUDS):
        log.warning("%s=%s names no cloud: write %s or none", METADATA, name, ", ".join(_CLOUDS))
    make = _CLOUDS.get(name)
    try:
        return None if make is None else make(url) if url else make()
    except ValueError as error:
        log.warning("%s", error)
        return None


def _named_by(firmware: Path) -> str:
    vendor, product, tag = (_text(firmware / name) for name in ("sys_vendor", "product_name", "chassis_asset_tag"))
    if vendor == "Amazon EC2":
        return "aws"
    if product == "Google Compute Engine":
        return "google"
    return "azure" if tag == _AZURE_TAG else ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def watch(source: Source, told: Callable[[Notice], None], wait: Callable[[float], bool] | None = None) -> None:
    """Look again and again, and pass on each notice once, until a final one or until `wait` says that it is enough."""
    wait = wait or threading.Event().wait
    last: Notice | None = None
    failures = 0
    while True:
        try:
            notice = source.look()
            failures = 0
        except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
            notice, failures = None, failures + 1
            if failures == 1:
                log.info("the cloud cannot be asked whether it takes this machine: %s", error)
        if notice is not None and notice != last:
            told(notice)
            last = notice
            if notice.final:
                return
        if wait(min(_LONGEST_PAUSE, source.pause * 2 ** min(failures, 10))):
            return


def note(folder: Store, attempt: int, notice: Notice) -> None:
    """Leave a notice in the run's folder at once: the machine may be gone before its worker can say why it ended."""
    try:
        folder.patient(min(_BRIEF, folder.patience)).write_json(_FILE, {"attempt": attempt, **asdict(notice)})
    except StoreError as error:
        log.warning("the notice cannot be written down: %s", error.what)


def noted(folder: Store, attempt: int) -> Notice | None:
    """Return the last notice that was noted for an attempt; None where there was none."""
    found = folder.read_json(_FILE) or {}
    return Notice(str(found.get("text", "")), found.get("final") is True) if found.get("attempt") == attempt else None


def _clock(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M:%S UTC")
