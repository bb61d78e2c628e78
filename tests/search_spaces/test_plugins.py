"""Modules with methods of other people: by file, by name, by an installed package's entry point."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import search_spaces
from data_prep.errors import UserError
from search_spaces import plugins
from search_spaces.plugins import load_plugins

SPACE = """
from dataclasses import replace
import search_spaces
search_spaces.register(replace(search_spaces.load("linear-probe"), name="{name}"))
LOADED = []
"""


@pytest.fixture(autouse=True)
def afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "PLUGINS", {})
    monkeypatch.setattr(search_spaces, "REGISTERED", {})
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def test_a_file_is_imported_once_under_its_name(tmp_path: Path) -> None:
    file = tmp_path / "plugin_by_file.py"
    file.write_text(SPACE.format(name="by-file"))
    (module,) = load_plugins([str(file)])
    assert module is sys.modules["plugin_by_file"] is load_plugins([str(file)])[0]
    assert plugins.PLUGINS == {"plugin_by_file": module}
    assert search_spaces.load("by-file").name == "by-file" and "by-file" in search_spaces.names()


def test_a_module_is_imported_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_by_name.py").write_text(SPACE.format(name="by-name"))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugins(["plugin_by_name"])[0].__name__ == "plugin_by_name"
    assert search_spaces.load("by-name").name == "by-name"


def test_an_installed_package_s_method_is_found_without_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin_installed.py").write_text(SPACE.format(name="installed"))
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(name="any", value="plugin_installed", group=plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "zerosweep.methods" else [])
    assert search_spaces.load("installed").name == "installed"
    assert list(plugins.PLUGINS) == ["plugin_installed"]  # nodes of a cluster get it, too


def test_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match="plugin must be a file with a name that no other module has; got json.py"):
        load_plugins([str(tmp_path / "json.py")])
    (tmp_path / "not-a-name.py").write_text("")
    with pytest.raises(
        UserError, match="plugin must be a file with a name that no other module has; got not-a-name.py"
    ):
        load_plugins([str(tmp_path / "not-a-name.py")])
    (tmp_path / "plugin_named_sre.py").write_text(SPACE.format(name="sre"))
    with pytest.raises(UserError, match="a space needs a name of its own, .*; got 'sre', which is a shipped space"):
        load_plugins([str(tmp_path / "plugin_named_sre.py")])
    assert "plugin_named_sre" not in sys.modules  # half a module is none


def test_the_author_s_own_error_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "plugin_broken.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        load_plugins([str(tmp_path / "plugin_broken.py")])
