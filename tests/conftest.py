"""Fixtures shared by all tests: a local Ray cluster, a prepared cache of the embedded benchmark, finished studies."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent / "study"))  # tests import `small` and `toy`, whichever way pytest starts

torch.set_num_threads(1)
# the processes of `-n 2` ignore Ctrl-C, and so would the programs that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = (
    "test_faults.py",
    "test_devices.py",
    "test_methods.py",
    "test_run.py",
    "test_round_trips.py",
    "test_report.py",
    "test_adapter.py",
    "test_scale.py",
)
"""Modules that take longest."""

STUDIES = {"small_study", "pva_study"}
"""Fixtures: studies that Ray's workers make once, for all processes."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks: else every test goes to whichever process is free
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give all tests whose work is done by Ray's workers to one of the processes of `-n 2`; others go by module.

    Much of the time of tests with Ray is waiting for its processes: the other tests run meanwhile. With actors on two
    clusters side by side everything took longer.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if _on_workers(item) else str(item.path)))
    items.sort(key=_order)


def _on_workers(item: pytest.Item) -> bool:
    """Whether Ray's workers do the work of a test, and not this process."""
    fixtures = set(getattr(item, "fixturenames", ()))
    return "ray_cluster" in fixtures and "without_tune" not in fixtures


def _order(item: pytest.Item) -> int:
    """Studies first, which the other process waits for; then what takes long, so that nobody ends alone with it."""
    if _on_workers(item):
        return 0 if STUDIES & set(getattr(item, "fixturenames", ())) else 1
    return LONG.index(item.path.name) + 2 if item.path.name in LONG else len(LONG) + 2


@pytest.fixture(autouse=True)
def one_process_has_rays_workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fail where xdist has lost its groups: two clusters would be busy side by side."""
    if "PYTEST_XDIST_WORKER" in os.environ and _on_workers(request.node):
        mark, mine = tmp_path_factory.getbasetemp().parent / "has ray's workers", os.environ["PYTEST_XDIST_WORKER"]
        if not mark.exists():
            mark.write_text(mine)
        assert mark.read_text() == mine, "a second process has tests of Ray's workers: xdist has lost its groups"


@pytest.fixture(autouse=True)
def no_plugin_stays() -> Iterator[None]:
    """Methods and spaces that a test brings go with it: a study in the same process would ask Ray for them."""
    yield
    if "search_spaces.plugins" in sys.modules:
        import search_spaces
        from search_spaces.plugins import PLUGINS

        for name in list(PLUGINS):
            sys.modules.pop(name, None)
        PLUGINS.clear()
        for name in [n for n in search_spaces.REGISTERED if n != "task-residual"]:  # the template, which tests import
            del search_spaces.REGISTERED[name]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs, started once: starting it costs seconds."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a folder on the cluster, once for all processes; each has a copy of its own, which its tests may change."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        mine, everyones = tmp_path_factory.mktemp(name), shared / f"everyone's {name}"
        with FileLock(shared / f"{name}.lock"):
            if not everyones.exists():
                request.getfixturevalue("ray_cluster")
                make(mine)
                shutil.copytree(mine, everyones)
                return mine
        return Path(shutil.copytree(everyones, mine, dirs_exist_ok=True))

    return made


@pytest.fixture(scope="session")
def embedded_cache(made_once: MadeOnce) -> Path:
    """The embedded benchmark's features, built by the real Ray Data job: it costs seconds, so all tests share it."""
    from data_prep import FeatureOptions, prepare

    cache = made_once("embedded", lambda folder: prepare(FeatureOptions(benchmark="icons2emoji", cache_dir=folder)))
    (built,) = (entry for entry in cache.iterdir() if entry.is_dir())
    return built


@pytest.fixture
def without_tune(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches and refits of this test run in its process: for tests of what is around them."""
    from small import map_packs_here, refit_here, search_here

    monkeypatch.setattr("study.pipeline.search_stage.run_searches", search_here)
    monkeypatch.setattr("study.pipeline.rotation.refit", refit_here)
    monkeypatch.setattr("study.cluster.tasks.map_packs", map_packs_here)
