"""How a model comes into the store: under a version of its own, with its manifest last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cloudai.artifacts import versions
from cloudai.artifacts.store import Store, canonical_json, sha256
from cloudai.errors import SpecError

__all__ = ["MANIFEST", "write_model"]

MANIFEST = "manifest.json"


def write_model(
    store: Store, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any], *, run: str, version: str = ""
) -> tuple[str, str]:
    """Write a model under ``models/<name>/<version>``; called again for the same run it leaves the first one as it is.

    Parameters
    ----------
    files : mapping of str to bytes
        The files by name.
    facts : mapping
        ``kind``, ``signature``, ``metrics``, ``lineage``, ``features``, and ``labels`` where there are classes.
    run : str
        Who makes it: the claim on the version, so that a restarted worker finds its own.
    version : str
        The version to give; by default the next one, from what changed.

    Returns
    -------
    uri : str
        Its folder.
    digest : str
        The digest of its manifest; empty where another one lies there, which nothing vouches for.
    """
    facts = json.loads(canonical_json(facts))  # as it will be read again, so that versions compare like with like
    folder, claimed = _claim(store, name, facts, run, version)
    manifest = {
        "format": 1,
        "name": name,
        "version": claimed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {file: {"sha256": sha256(data), "size": len(data)} for file, data in sorted(files.items())},
        **facts,
    }
    if store.exists(f"{folder}/{MANIFEST}"):
        return store.uri(folder), _digest_if_same(store.read(f"{folder}/{MANIFEST}"), manifest)
    for file, data in files.items():
        store.write(f"{folder}/{file}", data)
    data = canonical_json(manifest)
    store.write(f"{folder}/{MANIFEST}", data)  # last: a folder without it is not a model
    return store.uri(folder), sha256(data)


def _digest_if_same(data: bytes, manifest: Mapping[str, Any]) -> str:
    """Return the digest of a written manifest that differs from ours in nothing but its time."""
    try:
        written = json.loads(data)
    except ValueError:
        return ""
    same = isinstance(written, dict) and {**written, "created": ""} == {**manifest, "created": ""}
    return sha256(data) if same else ""


def _claim(store: Store, name: str, facts: Mapping[str, Any], run: str, version: str) -> tuple[str, str]:
    """Take a version number for a run, one that nobody else has; the claims lie beside the models."""
    while True:
        taken = [file.removesuffix(".json") for file in store.list(f"models/{name}/claims")]
        for old in taken:
            claim = store.read_json(f"models/{name}/claims/{old}.json") or {}
            if claim.get("run") == run:
                return f"models/{name}/{old}", old
        last = versions.latest(taken)
        before = (store.read_json(f"models/{name}/claims/{last}.json") or {}).get("facts", {}) if last else {}
        new = version or versions.next_version(last, before, facts)
        claim = {"run": run, "facts": {"signature": facts["signature"], "lineage": facts["lineage"]}}
        if store.create(f"models/{name}/claims/{new}.json", canonical_json(claim)):
            return f"models/{name}/{new}", new
        if version:
            raise SpecError(f"{name} {version} exists already", fix="give another version, or none")
