"""Options of commands as dataclasses: each field's docstring is the option's help."""

import ast
import inspect
import shutil
import textwrap
from collections.abc import Sequence
from typing import Annotated, TypeVar

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

T = TypeVar("T")

CONFIG = (DisallowNone, FlagCreatePairsOff)
"""How all commands read their options: what is left out is not "None", and a switch has one form."""


def with_help(options: type[T]) -> type[T]:
    """Return a class of options whose help flows in one paragraph, with defaults where there are some.

    Left to itself, tyro breaks lines where the docstring does, and calls what is left out "None". To be applied before
    `dataclass`: the one below it.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            name = field.target.id
            help_ = tyro.conf.arg(help=" ".join(str(text.value.value).split()), help_behavior_hint=_default)
            options.__annotations__[name] = Annotated[options.__annotations__[name], help_]
    return options


def parse(options: type[T], arguments: Sequence[str] | None) -> T:
    """Return options from the command line. Exits with the usage where it makes no sense."""
    width = shutil.get_terminal_size().columns
    lines = inspect.cleandoc(options.__doc__ or "").splitlines()
    # tyro wraps no line of it; those of examples begin with spaces
    text = "\n".join(line if line.startswith(" ") else textwrap.fill(line, width) for line in lines)
    return tyro.cli(options, args=arguments, description=text, config=CONFIG)


def _default(label: str) -> str:
    """Return what stands behind an option's help; switches and options without a default say nothing."""
    return f"(default: {label})" if label not in ("", "None", "True", "False") else ""


Optional = Annotated[T | None, tyro.conf.arg(help_behavior_hint=_default)]
"""An option of a function that may be left out."""
