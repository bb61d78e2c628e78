"""The actor that keeps checkpoints. Without torch: it starts in a fraction of the time that a pack's actor takes."""

import contextlib

import ray

from data_prep.errors import UserError
from data_prep.storage import Storage


@ray.remote(num_cpus=0)
class Keeper:
    """Checkpoints, kept where the driver runs: it may write to the study's storage, workers often may not."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def save(self, name: str, content: bytes) -> None:
        """Write a checkpoint, whole or not at all; while storage fails, training goes on without."""
        with contextlib.suppress(UserError):
            self._storage.write(name, content)

    def load(self, name: str) -> bytes | None:
        """The last checkpoint of that name."""
        try:
            return self._storage.read(name)
        except OSError:
            return None

    def remove(self, name: str) -> None:
        """Forget a checkpoint."""
        with contextlib.suppress(OSError):
            self._storage.filesystem.delete_file(f"{self._storage.root}/{name}")
