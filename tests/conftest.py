"""Fixtures shared by all tests: one local Ray cluster per session, one prepared cache of the embedded benchmark."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "study"))  # tests import `small` and `toy`, whichever way pytest starts

torch.set_num_threads(1)
# the processes of `-n 2` ignore Ctrl-C, and so would the programs that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks: else every test goes to whichever process is free
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give all tests that use Ray to one of the processes of `-n 2`, which share one cluster; others go by module.

    Much of the time of tests with Ray is waiting for its processes: the other tests run meanwhile. With two clusters
    side by side everything took longer.
    """
    for item in items:
        uses_ray = "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if uses_ray else str(item.path)))


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


@pytest.fixture(scope="session")
def embedded_cache(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded benchmark's features, built by the real Ray Data job: it costs seconds, so all tests share it."""
    from data_prep import FeatureOptions, prepare

    if "PYTEST_XDIST_WORKER" in os.environ:  # the folder above is that of all processes
        mark = tmp_path_factory.getbasetemp().parent / "embedded_cache"
        assert not mark.exists(), "a second process makes all studies again: xdist has lost its groups"
        mark.touch()
    return prepare(FeatureOptions(benchmark="icons2emoji", cache_dir=tmp_path_factory.mktemp("embedded")))


@pytest.fixture
def without_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches and refits of this test run in its process: for tests of what is around them."""
    from small import map_packs_here, refit_here, search_here

    monkeypatch.setattr("study.pipeline.search_stage.run_searches", search_here)
    monkeypatch.setattr("study.pipeline.rotation.refit", refit_here)
    monkeypatch.setattr("study.cluster.tasks.map_packs", map_packs_here)
