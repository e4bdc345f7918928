"""Over how many workers a run is, and was: a file in its folder remembers, for its result is exact only while that stays."""

from __future__ import annotations

from cloudai.artifacts.store import Store
from cloudai.specs.training import TrainSpec

__all__ = ["note_size", "resized", "sizes_of"]

_FILE = "sizes.json"


def sizes_of(spec: TrainSpec) -> tuple[int, ...]:
    """Return the numbers of workers that a run may have."""
    if spec.work.kind == "function":
        return tuple(range(spec.scaling.smallest, spec.scaling.largest + 1))
    return spec.scaling.sizes(spec.loop.batch_size)


def note_size(folder: Store, size: int) -> None:
    """Note a number of workers, where it is another one than before and there is work of that one."""
    sizes = _read(folder) if _has_checkpoint(folder) else []  # without one, all is done again
    if sizes[-1:] != [size]:
        folder.write_json(_FILE, {"workers": [*sizes, size]})


def resized(folder: Store) -> str:
    """Return why a run is not exact: it went on with another number of workers; empty where it did not."""
    sizes = _read(folder)
    if len(sizes) < 2:
        return ""
    counts = ", then ".join(map(str, sizes))
    return f"it was resized: it had {counts} workers, and sums over other parts of a batch are rounded otherwise"


def _has_checkpoint(folder: Store) -> bool:
    """Whether any attempt has committed one; the status in the folder tells of the last attempt alone."""
    return any(key.endswith("/manifest.json") for key in folder.walk("checkpoints"))


def _read(folder: Store) -> list[int]:
    found = folder.read_json(_FILE) or {}
    return [int(size) for size in found.get("workers", [])]
