"""The wheel: it has what a study reads at run time, and nothing that belongs to the checkout."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the files that git tracks or would track."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            copy = folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_it_has_all_files_that_are_read_at_run_time(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assets = {str(f.relative_to(ROOT)) for f in (ROOT / "data_prep/assets").rglob("*") if f.is_file()}
    assert len(assets) > 10 and assets <= names
    assert {"study/reporting/page.html.j2", "study/cluster/grafana.json"} <= names
    modules = {
        str(f.relative_to(ROOT))
        for package in ("data_prep", "models", "search_spaces", "study")
        for f in (ROOT / package).rglob("*.py")
    }
    assert modules == {name for name in names if name.endswith(".py")}


def test_it_has_nothing_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    rooms = {name.split("/")[0] for name in wheel.namelist()}
    assert rooms == {"data_prep", "models", "search_spaces", "study", "zerosweep-0.1.0.dist-info"}


def test_its_command_and_extras_are_those_of_pyproject(wheel: zipfile.ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry_points = wheel.read("zerosweep-0.1.0.dist-info/entry_points.txt").decode()
    assert "zerosweep = study.__main__:main" in entry_points
    metadata = wheel.read("zerosweep-0.1.0.dist-info/METADATA").decode()
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
    assert extras == set(project["optional-dependencies"])
