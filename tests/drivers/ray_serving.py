"""What tests of deployments on a real Ray cluster do: make revisions that answer with their number, and ask."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from urllib.parse import urlsplit

import numpy as np

from cloudai.drivers.protocols import Needs, Revision, RevisionId, Scaling
from cloudai.errors import CloudAIError
from cloudai.serving import client


def numbered(name, revision, token_file, scaling=Scaling()):  # noqa: B008  it is frozen
    argv = ("-m", "cloudai.testing.server", "--revision", revision, "--name", name, "--token-file", str(token_file))
    return Revision(RevisionId(revision), argv, {}, Needs(cpus=0.5), scaling=scaling)


def status(url, path, **headers):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request("GET", f"{parts.path}{path}", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


class Asking:
    """Asks again and again, and counts what comes."""

    def __init__(self, url, name, token):
        self.counts = Counter()
        self.last = Counter()
        self._ask = lambda: client.predict(url, name, {"x": np.zeros((1, 1), "float32")}, token=token, timeout=10)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def _go_on(self):
        while not self._over.is_set():
            try:
                self._ask()
                self.counts["answered"] += 1
                self.last["answered"] += 1
            except CloudAIError as error:
                self.counts[type(error).__name__] += 1
                self.last.clear()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(20)


def ready(driver, name, replicas):
    found = driver.inspect(name).revisions
    return found and all(r.ready and len(r.pids) == replicas for r in found)
