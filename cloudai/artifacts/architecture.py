"""A torch module as JSON and named tensors, and back: no pickle, and no call of a class's own ``__init__``.

What is kept: classes, children and their order, parameters and buffers (shared ones stay shared), the training flag, and
plain attributes. What a description may name is limited: module classes, an allow list of torch's functions, and code from
the bundle that travels with it. A description from a store cannot call anything else.
"""

from __future__ import annotations

import graphlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from cloudai.artifacts import layouts, torch_names
from cloudai.artifacts.attributes import decode, encode, refused
from cloudai.capture.bundle import carries
from cloudai.errors import CaptureError, CloudAIError, IntegrityError, SpecError

__all__ = ["build", "describe", "parts_of"]

_FORMAT = 1
_FIX = "restore the model, or train it again"
_INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if "hook" in name and value is not None)


def describe(module: nn.Module, locate: Callable[[Any], str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Describe a module.

    Parameters
    ----------
    module : torch.nn.Module
        The module; it is not changed.
    locate : callable
        Says where a class or function outside torch is found, as ``module:qualname``. It may raise `CaptureError`.

    Returns
    -------
    dict
        The description: plain JSON.
    dict of str to torch.Tensor
        The tensors, under the names that they have in the module. They share its memory.

    Raises
    ------
    CaptureError
        If something cannot be described (a hook, a lambda, an object of a foreign type), with its path and the fix.

    Examples
    --------
    >>> description, tensors = describe(nn.Linear(2, 1), locate=str)
    >>> description["modules"][0]["class"], sorted(tensors)
    ('torch.nn.modules.linear:Linear', ['bias', 'weight'])
    """
    describer = _Describer(locate)
    describer.module(module, "")
    layouts.check_memory(describer.tensors)
    tensors = {key: tensor.detach() for key, tensor in describer.tensors.items()}
    facts = {key: layouts.layout_of(tensor) for key, tensor in describer.tensors.items()}
    return {"format": _FORMAT, "tensors": facts, "modules": describer.modules}, tensors


def parts_of(module: nn.Module) -> list[Any]:
    """Return the classes and functions outside torch that a description of `module` refers to, in order.

    They are what must be captured with it.

    Raises
    ------
    CaptureError
        As `describe` does.
    """
    found: list[Any] = []

    def note(thing: Any) -> str:
        if not any(thing is known for known in found):
            found.append(thing)
        return "noted:noted"

    describe(module, note)
    return found


class _Describer:
    """Gives each module an index and each tensor a key, the first time it is met."""

    def __init__(self, locate: Callable[[Any], str]) -> None:
        self.modules: list[dict[str, Any]] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self._locate = locate
        self._index: dict[int, int] = {}
        self._keys: dict[int, str] = {}

    def module(self, module: nn.Module, path: str) -> int:
        if id(module) in self._index:
            return self._index[id(module)]
        index = self._index[id(module)] = len(self.modules)
        self.modules.append({})
        self.modules[index].update(self._described(module, path))
        _refuse_hooks(module, path)
        return index

    def _described(self, module: nn.Module, path: str) -> dict[str, Any]:
        persistent = vars(module)["_non_persistent_buffers_set"]
        return {
            "class": self.location(_class_of(module), path or "model"),
            "training": module.training,
            "parameters": [[name, self._key(p, _join(path, name))] for name, p in vars(module)["_parameters"].items()],
            "buffers": [[n, self._key(b, _join(path, n)), n not in persistent] for n, b in vars(module)["_buffers"].items()],
            "children": [
                [name, None if child is None else self.module(child, _join(path, name))]
                for name, child in vars(module)["_modules"].items()
            ],
            "attributes": {n: encode(v, _join(path, n), self) for n, v in vars(module).items() if n not in _INTERNAL},
            "parametrized": list(vars(module)["_modules"]["parametrizations"]) if parametrize.is_parametrized(module) else [],
        }

    def _key(self, tensor: torch.Tensor | None, path: str) -> str | None:
        return None if tensor is None else self.tensor(tensor, path)

    def tensor(self, tensor: torch.Tensor, path: str) -> str:
        if id(tensor) not in self._keys:
            layouts.check_tensor(tensor, path)
            key = path
            while key in self.tensors:
                key += "'"
            self._keys[id(tensor)] = key
            self.tensors[key] = tensor
        return self._keys[id(tensor)]

    def location(self, thing: Any, path: str) -> str:
        home = str(getattr(thing, "__module__", None) or "torch")
        own = f"{home}:{getattr(thing, '__qualname__', '')}"
        if isinstance(thing, type) and torch_names.class_named(own) is thing:
            return own
        known = None if isinstance(thing, type) else torch_names.name_of_function(thing)
        if known is not None:
            return known
        if getattr(thing, "__name__", "") == "<lambda>":
            raise refused(path, thing, "a lambda has no source of its own", "write a def")
        if home.partition(".")[0] == "torch":
            name = getattr(thing, "__qualname__", repr(thing))
            fix = "pass the module as it was before torch.compile, torch.jit or torch.fx; wrap a function of torch in a def"
            raise CaptureError(f"‘{path}’ is or holds {home}.{name}, which cannot be described", fix=fix)
        is_module = isinstance(thing, type) and issubclass(thing, nn.Module)
        if not is_module and _is_packaged(home):
            raise refused(
                path, thing, f"a stored module may not name {home}.{thing.__name__}", "wrap it in a def or class of your own"
            )
        return self._locate(thing)


def _is_packaged(module: str) -> bool:
    """Whether a module is in the standard library or in an installed package."""
    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    installed = bool({"site-packages", "dist-packages"} & set(Path(file).parts))
    return installed or module.partition(".")[0] in sys.stdlib_module_names


def _class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class as it was before parametrizations put properties on a subclass of it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refuse_hooks(module: nn.Module, path: str) -> None:
    for name in _HOOKS:
        for hook in vars(module).get(name, {}).values():
            inner = getattr(hook, "hook", hook)
            if getattr(inner, "__module__", "") != "torch.nn.utils.parametrizations":  # reads older weights, does no more
                fix = "call the function in forward, or use torch.nn.utils.parametrizations instead of a hook"
                raise refused(f"{path or 'model'}.{name}", inner, "it is a hook", fix)


def build(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], resolve: Callable[[str], Any]) -> nn.Module:
    """Build the module that `describe` described.

    Parameters
    ----------
    description : Mapping
        What `describe` returned, also after a way through JSON.
    tensors : Mapping[str, torch.Tensor]
        The tensors. The module takes them over: it does not copy them.
    resolve : callable
        Returns the object at ``module:qualname``, such as `cloudai.capture.bundle.resolve`. It is asked for module classes
        outside torch, and for functions, enums and dataclasses only where a loaded bundle carries them.

    Raises
    ------
    IntegrityError
        If the description is malformed, does not fit the tensors, or names something that a module may not hold.
    SpecError
        If the module that defines a class cannot be imported here.
    """
    try:
        return _Builder(description, tensors, resolve).built()
    except CloudAIError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise IntegrityError(f"this is no description of a module: {type(error).__name__}: {error}", fix=_FIX) from error


class _Builder:
    def __init__(
        self, description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], resolve: Callable[[str], Any]
    ) -> None:
        if description["format"] != _FORMAT:
            raise IntegrityError(f"the description has format {description['format']!r}", fix="update cloudai")
        self._resolve = resolve
        self._tensors = _given(description["tensors"], tensors)
        self._described = list(description["modules"])
        children = {i: [c for _, c in d["children"] if c is not None] for i, d in enumerate(self._described)}
        graphlib.TopologicalSorter(children).prepare()  # a module inside itself is an error
        self._modules = [_empty(self.module_class(described["class"])) for described in self._described]

    def built(self) -> nn.Module:
        for module, described in zip(self._modules, self._described, strict=True):
            self._fill(module, described)
        for module, described in zip(self._modules, self._described, strict=True):
            _parametrize(module, described["parametrized"])
        return self._modules[0]

    def _fill(self, module: nn.Module, described: Mapping[str, Any]) -> None:
        own = vars(module)
        own["training"] = described["training"] is True
        for name, key in described["parameters"]:
            own["_parameters"][_attribute(name)] = self._parameter(key)
        for name, key, persistent in described["buffers"]:
            own["_buffers"][_attribute(name)] = None if key is None else self.tensor(key)
            if not persistent:
                own["_non_persistent_buffers_set"].add(name)
        for name, index in described["children"]:
            own["_modules"][_attribute(name)] = None if index is None else self.module(index)
        for name, encoded in described["attributes"].items():
            if name in _INTERNAL:
                raise IntegrityError(f"{name!r} is no attribute of the user's", fix=_FIX)
            own[_attribute(name)] = decode(encoded, self)

    def _parameter(self, key: str | None) -> nn.Parameter | None:
        tensor = None if key is None else self.tensor(key)
        if tensor is not None and not isinstance(tensor, nn.Parameter):
            raise IntegrityError(f"{key!r} is not a parameter", fix=_FIX)
        return tensor

    def tensor(self, key: str) -> torch.Tensor:
        return self._tensors[key]

    def module(self, index: int) -> nn.Module:
        if type(index) is not int or index < 0:
            raise IntegrityError(f"{index!r} is not the index of a module", fix=_FIX)
        return self._modules[index]

    def module_class(self, location: str) -> type[nn.Module]:
        found = torch_names.class_named(location)
        if found is None and not _is_torchs(location):
            found = self._found(location)
        if not isinstance(found, type) or not issubclass(found, nn.Module):
            raise _forbidden(location)
        return found

    def function(self, location: str) -> Any:
        known = torch_names.function_named(location)
        if known is not None:
            return known
        found = self._found(location) if carries(location) else None
        if not isinstance(found, FunctionType) or not _is_carried(found):
            raise _forbidden(location)
        return found

    def carried_class(self, location: str) -> type:
        found = self._found(location) if carries(location) else None
        if not isinstance(found, type) or not _is_carried(found):
            raise _forbidden(location)
        return found

    def _found(self, location: str) -> Any:
        if location.partition(":")[0].partition(".")[0] in sys.stdlib_module_names and not carries(location):
            raise _forbidden(location)
        try:
            return self._resolve(location)
        except CloudAIError:
            raise
        except Exception as error:
            what = f"the code of {location!r} cannot be imported: {type(error).__name__}: {error}"
            raise SpecError(what, fix="install what it imports in this environment") from error


def _given(facts: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Check the tensors against the description and make parameters of those that are."""
    if facts.keys() != tensors.keys():
        odd = sorted(facts.keys() ^ tensors.keys())
        raise IntegrityError(f"the description and the tensors do not fit: {', '.join(odd[:5])}", fix=_FIX)
    return {key: layouts.restored(key, tensors[key], facts[key]) for key in facts}


def _empty(cls: type[nn.Module]) -> nn.Module:
    module = object.__new__(cls)
    nn.Module.__init__(module)
    return module


def _parametrize(module: nn.Module, names: list[str]) -> None:
    """Give a module the properties that compute its parametrized tensors; torch has no public way without running them."""
    if names:
        parametrize._inject_new_class(module)  # noqa: SLF001
    for name in names:
        vars(module)["_modules"]["parametrizations"][_attribute(name)]
        parametrize._inject_property(module, name)  # noqa: SLF001


def _attribute(name: Any) -> str:
    if not isinstance(name, str) or not name or "." in name:
        raise IntegrityError(f"{name!r} is not a name in a module", fix=_FIX)
    return name


def _is_torchs(location: str) -> bool:
    return location.partition(":")[0].partition(".")[0] == "torch"


def _is_carried(found: Any) -> bool:
    """Whether a loaded bundle defines the object; to import it there is not enough."""
    return carries(f"{found.__module__}:{found.__qualname__}")


def _forbidden(location: str) -> IntegrityError:
    return IntegrityError(f"a stored module may not name {location!r}", fix="do not use this file; " + _FIX)
