"""Models in MLflow: fetched, looked at, and taken where they are ONNX or safetensors. What MLflow would unpickle is not read.

Beside `cloudai.tracking`, which writes to MLflow, this is the one place that imports mlflow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloudai import settings
from cloudai.artifacts import pretrained
from cloudai.artifacts.bringing import Brought
from cloudai.artifacts.servable import needed
from cloudai.errors import CloudAIError, DriverError, IntegrityError, NotFoundError, SpecError

__all__ = ["brought"]

_URI = re.compile(r"models:/[^\s?#/@']+([/@][^\s?#/@']+)?|runs:/[0-9a-f]{1,64}/[^\s?#']+")
_MOST_YAML = 2**20
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")


def brought(uri: str, tracking: str, example: Any) -> Brought:
    """Fetch a model from MLflow, check it, and return its files.

    Raises
    ------
    CloudAIError
        As `cloudai.Model.from_mlflow`.
    """
    if not isinstance(uri, str) or not _URI.fullmatch(uri):
        fix = "write models:/name/version, models:/name@alias or runs:/id/path"
        raise SpecError(f"{str(uri)[:80]!r} is no address of a model in MLflow", fix=fix)
    with _fetched(uri, tracking or settings.current().tracking) as folder:
        facts = _facts(folder, uri)
        flavors = facts["flavors"]
        if "onnx" in flavors:
            found = _of_onnx(folder, flavors["onnx"], example)
        elif "transformers" in flavors:
            found = _of_transformers(folder, flavors["transformers"], example)
        else:
            raise _refused(uri, flavors)
    identity = facts.get("model_id") or facts.get("run_id") or ""
    return replace(found, lineage={**found.lineage, "source": f"MLflow {uri} {identity}".strip()})


def _refused(uri: str, flavors: Mapping[str, Any]) -> IntegrityError:
    kinds = ", ".join(sorted(name for name in flavors if name != "python_function")) or "python_function"
    instead = {"pytorch": "mlflow.onnx.log_model(torch.onnx.export(…).model_proto, …), or Model.from_torch where you have it"}
    fix = instead.get(kinds, "convert it to ONNX and log that: mlflow.onnx.log_model(…)")
    return IntegrityError(f"{uri} is saved by MLflow as {kinds}, which may hold a pickle that can run anything", fix=fix)


@contextlib.contextmanager
def _fetched(uri: str, tracking: str) -> Iterator[Path]:
    """Yield a folder with the model's files."""
    if tracking == "none":
        raise SpecError("there is no MLflow to ask: tracking is 'none'", fix="pass tracking=, or set CLOUDAI_TRACKING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    mlflow = needed("mlflow", "train")
    with tempfile.TemporaryDirectory(prefix="cloudai-mlflow-") as name:
        try:
            place = _place(mlflow.MlflowClient(tracking_uri=tracking, registry_uri=tracking), uri)
            path = mlflow.artifacts.download_artifacts(place, dst_path=name, tracking_uri=tracking, registry_uri=tracking)
        except Exception as error:  # noqa: BLE001  of mlflow's own, of requests, SQLAlchemy and each artifact store
            raise _trouble(uri, error) from None
        yield Path(path)


def _place(client: Any, uri: str) -> str:
    """Return where the files of a model lie. MLflow's own way from such an address would ask its global registry too."""
    scheme, _, rest = uri.partition(":/")
    if scheme == "runs":
        run, _, path = rest.strip("/").partition("/")
        experiment = client.get_run(run).info.experiment_id
        models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run}'")
        return next((str(model.artifact_location) for model in models if model.name == path), uri)
    name, at, alias = rest.partition("@")
    name, _, version = name.partition("/")
    if at:
        version = str(client.get_model_version_by_alias(name, alias).version)
    place = str(client.get_model_version_download_uri(name, version)) if version else f"models:/{name}"
    identity = place.removeprefix("models:/")
    return place if identity == place else str(client.get_logged_model(identity).artifact_location)


def _trouble(uri: str, error: Exception) -> CloudAIError:
    code = str(getattr(error, "error_code", ""))
    first = str(error).strip().split("\n")[0][:200]
    if code in _GONE or isinstance(error, FileNotFoundError):
        return NotFoundError(f"MLflow has no model {uri}: {first}", fix="look at the names in its registry, or pass tracking=")
    return DriverError(f"MLflow does not give {uri}: {type(error).__name__}", fix="is it up, and tracking= right?")


def _facts(folder: Path, uri: str) -> Mapping[str, Any]:
    """Read the model's description; MLflow writes it as YAML, which is read without making objects."""
    import yaml

    path = folder / "MLmodel"
    if not path.is_file():
        fix = "models that cloudai registered are opened with cloudai.load_model"
        raise NotFoundError(f"{uri} is no model that MLflow saved", fix=fix)
    try:
        facts = yaml.safe_load(path.read_bytes()) if path.stat().st_size <= _MOST_YAML else None
    except yaml.YAMLError:
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("flavors"), dict):
        raise IntegrityError(f"the description of {uri} is damaged", fix="log the model again")
    return facts


def _of_onnx(folder: Path, flavor: Mapping[str, Any], example: Any) -> Brought:
    needed("onnx", "onnx")
    needed("onnxruntime", "onnx")
    from cloudai.artifacts import onnx_models

    return onnx_models.brought(_inside(folder, flavor.get("data", "model.onnx")), example)


def _of_transformers(folder: Path, flavor: Mapping[str, Any], example: Any) -> Brought:
    """Put model and tokenizer, which MLflow keeps apart, into one folder."""
    needed("transformers", "text")
    from cloudai.artifacts import text_sources

    with tempfile.TemporaryDirectory(prefix="cloudai-mlflow-") as name:
        for part in (_inside(folder, flavor.get("model_binary", "model")), folder / "components" / "tokenizer"):
            if part.is_dir():
                if (part / "config.json").is_file():
                    pretrained.check_folder(part, tokenizer=False)
                for path in pretrained.taken_files(part):
                    (Path(name) / path.name).symlink_to(path.resolve())
        return text_sources.brought(name, example)


def _inside(folder: Path, name: Any) -> Path:
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise IntegrityError(f"the model from MLflow reaches for {name!r}, outside of its folder", fix="log the model again")
    return path
