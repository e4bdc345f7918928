"""The package that a job brings along: this very cloudai, so that no two versions meet, named by its content."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cloudai

__all__ = ["Package", "package"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
_LEFT_OUT = ("__pycache__",)


@dataclass(frozen=True)
class Package:
    """A zip archive that Ray puts into a job's working folder."""

    name: str
    content: bytes

    @property
    def uri(self) -> str:
        """Where the cluster keeps it."""
        return f"gcs://{self.name}"

    @property
    def path(self) -> str:
        """Where it is uploaded to."""
        return f"/api/packages/gcs/{self.name}"


@functools.cache
def package() -> Package:
    """Return the package of this cloudai: the same files give the same bytes, so a cluster is sent it once."""
    root = Path(cloudai.__file__).parent
    paths = sorted(path for path in root.rglob("*") if path.is_file() and not set(path.parts) & set(_LEFT_OUT))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            entry = zipfile.ZipInfo(str(path.relative_to(root.parent)), _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    return Package(f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:40]}.zip", content)
