"""What every public name's docstring has to say: that it is there, and shapes of tensors."""

import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from torch import Tensor

ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*|\n(?=\n {5}))*)", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", re.MULTILINE)
RETURNS = re.compile(r"^(?:Returns|Yields):\n((?:    .*\n?|\n)*)", re.MULTILINE)
SHAPE = re.compile(r"``\([^`]*\)``|\bas in\b|\bas there\b|\bsee :")
REFERENCE = re.compile(r"(?:[Ss]ee|[Aa]s in|In-place) :(?:func|meth|class):`([^`]+)`")


def problems(obj: Any, name: str) -> Iterator[str]:
    """Say what the docstrings of a function, or of a class and its public methods, lack."""
    if not inspect.isclass(obj):
        yield from _callable_problems(obj, name, None)
        return
    own = vars(obj).get("__doc__")
    if not own or own.startswith(f"{obj.__name__}("):  # what dataclass and NamedTuple put there
        yield f"{name} has no docstring"
        return
    fields = vars(obj).get("__annotations__", {})
    constructor = vars(obj).get("__init__")
    if inspect.isfunction(constructor) and not hasattr(obj, "__dataclass_fields__"):
        fields = fields | {k: p.annotation for k, p in _parameters(constructor)}
    yield from _shape_problems(own, fields, name)
    for method, member in vars(obj).items():
        if not method.startswith("_") and _is_method(member):
            yield from _callable_problems(_function(member), f"{name}.{method}", obj)


def _is_method(member: Any) -> bool:
    kinds = (classmethod, staticmethod, property, functools.cached_property)
    return inspect.isfunction(member) or isinstance(member, kinds)


def _function(member: Any) -> Any:
    for wrapped in ("__func__", "fget", "func"):
        member = getattr(member, wrapped, member)
    return member


def _parameters(function: Any) -> Iterator[tuple[str, inspect.Parameter]]:
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in ("self", "cls"):
            yield name, parameter


def _callable_problems(function: Any, name: str, owner: type | None) -> Iterator[str]:
    doc = inspect.cleandoc(function.__doc__ or "")
    if not doc:
        yield f"{name} has no docstring"
        return
    if "see the base class" in doc and owner is not None:
        method = name.rpartition(".")[2]
        if not any(vars(base).get(method) for base in owner.__mro__[1:]):
            yield f"{name}: no base class has {method}"
        return
    missing = [path for path in REFERENCE.findall(doc) if _find(path, function, owner) is None]
    yield from (f"{name}: there is no {path}" for path in missing)
    refers = REFERENCE.search(doc) and "\nArgs:\n" not in doc  # to what says everything
    if refers or missing:
        return
    fields = {key: parameter.annotation for key, parameter in _parameters(function)}
    yield from _shape_problems(doc, fields, name)
    if _has_tensor(inspect.signature(function).return_annotation):
        said = RETURNS.search(doc)
        if not SHAPE.search(said[1] if said else doc.partition("\n")[0]):
            yield f"{name}: no shape of what it returns"


def _shape_problems(doc: str, fields: dict[str, Any], name: str) -> Iterator[str]:
    sections = "\n".join(SECTION.findall(inspect.cleandoc(doc) + "\n"))
    entries = {key: text for keys, text in ENTRY.findall(sections) for key in keys.split(", ")}
    for key, annotation in fields.items():
        if not _is_tensor(annotation):
            continue
        if key not in entries:
            yield f"{name}: no entry for the tensor {key}"
        elif not SHAPE.search(entries[key]):
            yield f"{name}: no shape of the tensor {key}"


def _is_tensor(annotation: Any) -> bool:
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return Tensor in (typing.get_args(annotation) if union else (annotation,))


def _has_tensor(annotation: Any) -> bool:
    """Return whether a tensor, or a tuple with one, is among what comes back."""
    parts = (annotation, *typing.get_args(annotation))
    return any(_is_tensor(x) or Tensor in typing.get_args(x) for x in parts)


def _find(path: str, function: Any, owner: type | None) -> Any:
    """Return what a cross-reference names: in full, or from the own class or module."""
    if hasattr(owner, path):
        return getattr(owner, path)
    if not path.startswith("fairseq_fwm."):
        path = f"{function.__module__}.{path}"
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None
