"""Fixtures shared by all tests: one local Ray cluster per session, one prepared cache of the embedded benchmark."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


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

    return prepare(FeatureOptions(benchmark="icons2emoji", cache_dir=tmp_path_factory.mktemp("embedded")))
