"""Methods of other people: Python modules that call `study.register`, by file or by name."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from data_prep.errors import UserError

GROUP = "zerosweep.methods"
"""Entry points of installed packages that have methods; each names a module."""

PLUGINS: dict[str, ModuleType] = {}
"""Modules that were loaded here, by name: what nodes of a cluster need, too."""


def load_plugins(given: Sequence[str], *, option: str = "plugin") -> list[ModuleType]:
    """Import modules with methods or spaces, each a file or the name of a module, and return them.

    `option`: Python name of the option that they come from. Raises `UserError`. What a module itself raises passes: its
    author needs the traceback.
    """
    modules = []
    for plugin in given:
        file = Path(plugin).expanduser()
        modules.append(_from_file(file, option) if file.suffix == ".py" else _by_name(plugin, option))
        PLUGINS[modules[-1].__name__] = modules[-1]
    return modules


def load_installed() -> None:
    """Import the modules that installed packages name as theirs."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        PLUGINS[point.module] = importlib.import_module(point.module)


def _by_name(name: str, option: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UserError(f"must be a Python file or a module that can be imported; got {name}", option=option)
    return importlib.import_module(name)


def _from_file(file: Path, option: str) -> ModuleType:
    """Import a file as the module of its name: under this name other nodes import it, too."""
    file, name = file.resolve(), file.stem
    if not file.is_file():
        raise UserError(f"must be a Python file that is there; got {file}", option=option)
    before = sys.modules.get(name)
    if before is not None and getattr(before, "__file__", None) == str(file):
        return before
    if not name.isidentifier() or before is not None or importlib.util.find_spec(name):
        raise UserError(f"must be a file with a name that no other module has; got {file.name}", option=option)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader  # it ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
