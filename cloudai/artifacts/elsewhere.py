"""The ways in which a model that no run of ours made becomes one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cloudai.artifacts.servable import needed

__all__ = ["FromElsewhere"]


class FromElsewhere:
    """The constructors of `cloudai.Model` for models that you bring; each checks, writes and records before it opens."""

    if TYPE_CHECKING:

        @classmethod
        def open(cls, uri: str, digest: str = "") -> Self:
            """Open the model in a folder."""

    @classmethod
    def from_torch(
        cls, module: Any, example: Any, *, name: str, metrics: Mapping[str, float] | None = None, data: Any = None
    ) -> Self:
        """Record a `torch.nn.Module` that you have trained yourself; it is not changed.

        Parameters
        ----------
        module : torch.nn.Module
            The module. Classes of your notebook or script travel with it as source.
        example : array, or mapping of str to array
            A few rows of its inputs; several inputs are passed to ``forward`` in the mapping's order.
        name : str
            The model's name; the version follows from what is recorded under it.
        metrics : mapping of str to float, optional
            How good it is, as you measured it.
        data : optional
            Rows like those in service, which a monitor compares with.

        Raises
        ------
        CaptureError
            If the module holds something that cannot be stored: a hook, a lambda, a foreign object.
        DataError
            If it does not take the example, or the data does not fit.
        SpecError
            If it does not give one row per example, or answers differently once it is stored.
        """
        needed("torch", "train")
        from cloudai.artifacts import bringing, torch_models

        return cls.open(*bringing.record(torch_models.brought(module, example), name, metrics, data))

    @classmethod
    def from_onnx(
        cls,
        source: str | Path | bytes,
        *,
        name: str,
        example: Any = None,
        metrics: Mapping[str, float] | None = None,
        data: Any = None,
    ) -> Self:
        """Record an ONNX model, which ONNX Runtime will run; it is checked before it is loaded.

        Parameters
        ----------
        source : path or bytes
            The file; tensors that it keeps in other files must lie in its own folder.
        example : array or mapping of str to array, optional
            A few rows of its inputs; made up where there are none.
        name, metrics, data
            As for `from_torch`.

        Raises
        ------
        IntegrityError
            If it is no ONNX model, or reaches outside of its folder.
        SpecError
            If the installed runtime cannot run it, or it has no batch axis.
        NotFoundError
            If there is no such file.
        """
        needed("onnx", "onnx")
        needed("onnxruntime", "onnx")
        from cloudai.artifacts import bringing, onnx_models

        return cls.open(*bringing.record(onnx_models.brought(source, example), name, metrics, data))

    @classmethod
    def from_transformers(
        cls,
        source: Any,
        *,
        name: str,
        task: str = "text-classification",
        example: Any = None,
        metrics: Mapping[str, float] | None = None,
        data: Any = None,
    ) -> Self:
        """Record a model of transformers that works on texts; its folder is checked before it is loaded.

        Parameters
        ----------
        source : path, str, or (model, tokenizer)
            A folder that ``save_pretrained`` wrote, a name on the Hugging Face hub, or the objects, which stay as they are.
        task : str
            What it does: ``"text-classification"``, ``"causal-lm"`` (continues texts) or ``"embeddings"``.
        example : list of str, optional
            A few texts; made up where there are none.
        name, metrics, data
            As for `from_torch`; ``data`` are texts.

        Raises
        ------
        NotFoundError
            If there is no such folder, or the name is neither in the cache nor to be had.
        IntegrityError
            If the weights are pickled, or code from beside the model would have to run.
        SpecError
            If it cannot do the task.
        """
        needed("transformers", "text")
        from cloudai.artifacts import bringing, text_sources

        return cls.open(*bringing.record(text_sources.brought(source, example, task), name, metrics, data))

    @classmethod
    def from_mlflow(
        cls,
        uri: str,
        *,
        name: str,
        tracking: str = "",
        example: Any = None,
        metrics: Mapping[str, float] | None = None,
        data: Any = None,
    ) -> Self:
        """Record a model that MLflow keeps as ONNX, or as a classifier of texts in safetensors; a pickle is never read.

        Parameters
        ----------
        uri : str
            ``models:/name/version``, ``models:/name@alias`` or ``runs:/id/path``.
        tracking : str
            Where MLflow is; by default where the settings say.
        name, example, metrics, data
            As for `from_onnx` and `from_transformers`.

        Raises
        ------
        NotFoundError
            If MLflow has no such model.
        DriverError
            If MLflow does not answer.
        IntegrityError
            If the model is kept in another form; the fix says how to log it instead.
        SpecError
            As `from_onnx` and `from_transformers`.
        """
        from cloudai.artifacts import bringing, mlflow_models

        return cls.open(*bringing.record(mlflow_models.brought(uri, tracking, example), name, metrics, data))
