"""Reading a configuration: a file, and variables that replace what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cvmfs_sync.config.settings import Config
from cvmfs_sync.errors import ConfigurationError
from cvmfs_sync.schema import model_at, validate
from cvmfs_sync.yamlfile import Document, KeyPath, Problem, did_you_mean, dotted, parse, plain_scalar, read

__all__ = ["load"]

_PREFIX = "CVMFS_SYNC_"
# Variables of the same prefix that are no settings.
_OTHER_VARIABLE = re.compile(rf"{_PREFIX}(?:CONFIG|TEST_.*)")


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read a configuration.

    Args:
        path: The file. An empty one takes all defaults.
        environ: `CVMFS_SYNC_STATE_DIR`, `CVMFS_SYNC_REPOSITORY__ROOT` and so on replace what the file says; values are
            YAML words, or flow lists and mappings. Relative paths start from the file's directory here, too.

    Raises:
        ConfigurationError: With all mistakes, one a line.
    """
    try:
        document = read(path)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: there is no such configuration file",
            todo="name yours with --config, or create this one; an empty file takes all defaults",
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path}: the configuration cannot be read: {error.strerror}") from None
    problems = list(document.problems)
    overrides, mistakes = _overrides(environ)
    if not problems:
        data, lines, origins = _merge(document, overrides)
        base = Path(os.path.abspath(path)).parent
        config = validate(Config, data, lines, str(path), origins=origins, context={"base": base})
        if isinstance(config, Config) and not mistakes:
            return config
        problems.extend(config if isinstance(config, tuple) else ())
    raise ConfigurationError("\n".join(str(problem) for problem in [*problems, *mistakes]))


def _overrides(environ: Mapping[str, str]) -> tuple[list[tuple[KeyPath, str, Any]], list[Problem]]:
    """Settings that variables make, outer ones first: path, variable, value; and the variables that are wrong."""
    overrides: list[tuple[KeyPath, str, Any]] = []
    problems: list[Problem] = []
    known = {f"{_PREFIX}{'__'.join(path).upper()}": path for path in _settings(Config)}
    for variable in sorted(name for name in environ if name.startswith(_PREFIX)):
        if _OTHER_VARIABLE.fullmatch(variable):
            continue
        if variable not in known:
            names = [name.removeprefix(_PREFIX) for name in known]
            hint = did_you_mean(variable.removeprefix(_PREFIX).upper(), names, _PREFIX)
            problems.append(Problem(variable, None, "", f"no setting has this name{hint or '; unset it'}"))
            continue
        text, path = environ[variable], known[variable]
        # Only what must be YAML is parsed as YAML: a crontab line may begin with '*'.
        if text.lstrip().startswith(("[", "{", '"', "'")):
            document = parse(text, variable)
            problems.extend(Problem(variable, None, dotted(path), problem.message) for problem in document.problems)
            if document.problems:
                continue
            value = document.data
        else:
            try:
                value = plain_scalar(text.strip())
            except ValueError as error:
                problems.append(Problem(variable, None, dotted(path), f"{text!r} is not valid: {error}"))
                continue
        overrides.append((path, variable, value))
    return overrides, problems


def _settings(model: type[BaseModel]) -> list[tuple[str, ...]]:
    """Paths of all settings and sections."""
    paths: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        paths.append((name,))
        inner = model_at(field.annotation, ())
        if inner is not None:
            paths.extend((name, *rest) for rest in _settings(inner))
    return paths


def _merge(
    document: Document, overrides: list[tuple[KeyPath, str, Any]]
) -> tuple[Any, Mapping[KeyPath, int], Mapping[KeyPath, str]]:
    """The document with the overrides in their places: data, lines, and which variable each value came from."""
    data = {} if document.data is None else document.data
    lines = dict(document.lines)
    origins: dict[KeyPath, str] = {}
    if not isinstance(data, dict):
        return data, lines, origins
    for path, variable, value in overrides:
        owner = data
        for key in path[:-1]:
            if owner.get(key) is None:
                owner[key] = {}
            owner = owner[key]
            if not isinstance(owner, dict):
                break  # not a section: validation says so
        else:
            owner[path[-1]] = value
            origins = {at: name for at, name in origins.items() if at[: len(path)] != path} | {path: variable}
            lines = {at: line for at, line in lines.items() if at[: len(path)] != path}
    return data, lines, origins
