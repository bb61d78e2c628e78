"""The walls of the house: who may import whom, over all imports, also those for type checkers and in functions."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data_prep", "models", "search_spaces", "study")

FLOORS = (
    ("commands",),
    ("pipeline",),
    ("reporting",),
    ("outputs",),
    ("evaluation", "cluster"),
    ("search", "training"),
    ("protocol", "search_spaces", "options"),
    ("models", "data_prep"),
)
"""From the top floor down: a module imports its own room and floors below. Rooms of one floor do not know each other.

`commands` are the doors: the files directly in study/, but for `options`, which has only field names and rules.
"""

LARGEST = 400
"""Lines of a module of study/."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the project by its name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@functools.cache
def imports() -> dict[str, set[str]]:
    """Return the modules, ours and others', that each of our modules imports anywhere in its text."""
    ours = modules()
    found: dict[str, set[str]] = {}
    for name, path in ours.items():
        of_module: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                of_module |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                of_module |= {part for part in parts if part in ours} or {node.module}
        found[name] = of_module
    return found


def room(module: str) -> str:
    """Return the room of one of our modules."""
    package, *rest = module.split(".")
    if package != "study":
        return package
    if rest[:1] == ["options"]:
        return "options"
    return rest[0] if rest and (ROOT / "study" / rest[0]).is_dir() else "commands"


def floor(of_room: str) -> int:
    """Return how far down a room lies."""
    return next(i for i, rooms in enumerate(FLOORS) if of_room in rooms)


def test_every_import_goes_down() -> None:
    ours = modules()
    upward = [
        f"{module} -> {imported}"
        for module, found in imports().items()
        for imported in found & ours.keys()
        if room(module) != room(imported) and floor(room(module)) >= floor(room(imported))
    ]
    assert not upward


def test_no_circle() -> None:
    graph = nx.DiGraph((a, b) for a, found in imports().items() for b in found & modules().keys() if a != b)
    assert [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1] == []


NEVER = {"models": {"ray", "pyarrow"}, "search_spaces": {"ray", "optuna"}, "training": {"ray", "optuna"}}
NEVER |= {"protocol": {"ray", "optuna"}, "search": {"ray", "torch"}, "evaluation": {"ray", "optuna"}}


def test_what_a_room_never_imports() -> None:
    for module, found in imports().items():
        assert not {name.split(".")[0] for name in found} & NEVER.get(room(module), set()), module


@pytest.mark.parametrize(("of_room", "never"), [("training", "ray"), ("protocol", "ray"), ("search", "ray torch")])
def test_a_room_loads_without(of_room: str, never: str) -> None:
    """Also what its imports import."""
    names = [name for name in modules() if name.startswith(f"study.{of_room}.")]
    code = f"import sys, {', '.join(names)}; sys.exit(' '.join({set(never.split())} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_ray_s_private_state_is_touched_in_one_place() -> None:
    touching = [name for name, path in modules().items() if "ray._private" in path.read_text()]
    assert touching == ["data_prep.ray_session"]


def test_only_the_final_test_reads_target_labels() -> None:
    readers = [name for name, path in modules().items() if "load_target_labels" in path.read_text()]
    assert sorted(readers) == ["data_prep.feature_store", "study.evaluation.final_test"]


def test_rooms_only_say_what_they_are_for() -> None:
    for rooms in FLOORS[1:7]:
        for of_room in rooms:
            if (init := ROOT / "study" / of_room / "__init__.py").exists():
                (docstring,) = ast.parse(init.read_text()).body
                assert isinstance(docstring, ast.Expr)


def test_no_module_of_the_study_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {n: length for n, length in lengths.items() if n.startswith("study") and length > LARGEST} == {}


def test_inner_rooms_know_no_flags() -> None:
    """Options have Python names inside; only the doors and the gate in pipeline/ speak of flags."""
    inner = ("protocol", "training", "search", "cluster", "evaluation")
    for name, path in modules().items():
        if room(name) in inner:
            raised = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Raise)]
            assert not [ast.unparse(n) for n in raised if "--" in ast.unparse(n)], name
