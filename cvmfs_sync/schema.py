"""Data from a YAML file held against a pydantic model, every mistake worded for a person.

Plain data and the line of each value go in, a model or a list of problems comes out. Nothing here reads a file.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cvmfs_sync.yamlfile import KeyPath, Problem, describe, did_you_mean, dotted

__all__ = ["StrictModel", "model_at", "validate"]

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of all models of files: unknown keys and wrong types are errors, instances don't change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def validate(
    model: type[Model],
    data: object,
    lines: Mapping[KeyPath, int],
    file: str,
    *,
    at: KeyPath = (),
    origins: Mapping[KeyPath, str] | None = None,
    context: Mapping[str, object] | None = None,
) -> Model | tuple[Problem, ...]:
    """Hold data against a model: the model's instance, or all that is wrong.

    Args:
        model: A `StrictModel`.
        data: Plain data as `parse` returns it.
        lines: Lines of the whole document.
        file: Its name in messages.
        at: Where in the document `data` stands.
        origins: Values that came from elsewhere, with the name to blame instead of file and line.
        context: Passed to the model's validators.
    """
    try:
        return model.model_validate(data, context=dict(context or {}))
    except ValidationError as invalid:
        problems = []
        for error in invalid.errors(include_url=False):
            loc = tuple(part for part in error["loc"] if part != "[key]")
            message = _words(error, model, loc)
            # What is missing, or was made out of another form, has no place of its own: its owner has.
            path = at + (loc[:-1] if error["type"] == "missing" else loc)
            name, line = _place(path, lines, file, origins or {})
            problems.append(Problem(name, line, dotted(path), message))
        return tuple(sorted(problems, key=lambda problem: problem.line or 0))


def model_at(kind: object, path: KeyPath) -> type[BaseModel] | None:
    """The model that validates what stands at `path` below the type `kind`, or None if no model does."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not path:
            return kind
        field = kind.model_fields.get(str(path[0]))
        return model_at(field.annotation, path[1:]) if field else None
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return model_at(args[0], path)
    if origin in (typing.Union, types.UnionType):
        return next((found for arg in args if (found := model_at(arg, path))), None)
    members = [arg for arg in args if arg is not Ellipsis]
    return model_at(members[-1], path[1:]) if members and path else None


def _place(
    path: KeyPath, lines: Mapping[KeyPath, int], file: str, origins: Mapping[KeyPath, str]
) -> tuple[str, int | None]:
    """Who is to blame for the value at `path`: a variable, or a line of the file."""
    for length in range(len(path), -1, -1):
        if path[:length] in origins:
            return origins[path[:length]], None
        if path[:length] in lines:
            return file, lines[path[:length]]
    return file, None


def _words(error: Mapping[str, Any], model: type[BaseModel], loc: KeyPath) -> str:
    """One of pydantic's errors in plain words; see pydantic's "Validation Errors" for the types."""
    found, context = describe(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            owner = model_at(model, loc[:-1])
            names = list(owner.model_fields) if owner else []
            return f"unknown key; expected one of {', '.join(names)}{did_you_mean(str(loc[-1]), names)}"
        case "missing":
            return f"the key {loc[-1]!r} is missing"
        case "value_error":
            return str(context["error"])
        case "string_type":
            quotes = "" if isinstance(error["input"], list | dict | None) else "; put it in quotes"
            return f"expected text, found {found}{quotes}"
        case "int_type" | "int_from_float":
            return f"expected a whole number, found {found}"
        case "float_type" | "finite_number":
            return f"expected a number, found {found}"
        case "bool_type":
            return f"expected true or false, found {found}"
        case "literal_error":
            return f"expected {context['expected']}, found {found}"
        case "list_type" | "tuple_type":
            return f"expected a list, found {found}"
        case "dict_type" | "mapping_type" | "model_type" | "model_attributes_type":
            return f"expected a mapping of keys to values, found {found}"
        case "greater_than":
            return f"must be greater than {context['gt']}, found {found}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, found {found}"
        case "less_than_equal":
            return f"must be at most {context['le']}, found {found}"
        case "string_too_long":
            return f"must be at most {context['max_length']} characters long"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, found {found}"
