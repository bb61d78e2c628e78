"""Where the checkpoints of packs are kept while they train: an actor beside the driver.

Without torch: its actor starts in a fraction of the time that a pack's actor takes.
"""

import contextlib
from typing import Any

import ray
from ray.actor import ActorHandle

from data_prep.errors import UserError
from data_prep.storage import Storage
from study.cluster.session import on_this_node


@ray.remote(num_cpus=0)
class CheckpointStore:
    """Checkpoints in a study's storage, to which the driver's node may write; workers' nodes often may not."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def load(self, name: str) -> bytes | None:
        """Return the content of a checkpoint, None if there is none or storage fails."""
        try:
            return self._storage.read(name)
        except OSError:
            return None

    def save(self, name: str, content: bytes) -> None:
        """Write a checkpoint, whole or not at all; while storage fails, training goes on without."""
        with contextlib.suppress(UserError):
            self._storage.write(name, content)

    def remove(self, name: str) -> None:
        """Remove a checkpoint if it is there."""
        with contextlib.suppress(OSError):
            self._storage.filesystem.delete_file(f"{self._storage.root}/{name}")


class RemoteStore:
    """The store as workers of any node use it: a `training.pack_checkpoint.Store` over the actor's handle."""

    def __init__(self, actor: ActorHandle) -> None:
        """`actor`: handle of a `CheckpointStore`."""
        self._actor = actor

    def load(self, name: str) -> bytes | None:
        """Return the content of a checkpoint, None if there is none."""
        content: Any = ray.get(self._actor.load.remote(name))
        return content

    def save(self, name: str, content: bytes) -> None:
        """Write a checkpoint, and wait until it is written."""
        ray.get(self._actor.save.remote(name, content))

    def remove(self, name: str) -> None:
        """Remove a checkpoint some time soon."""
        self._actor.remove.remote(name)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


def start_checkpoint_store(storage: Storage) -> RemoteStore:
    """Start a store on the driver's node: `storage` may be that node's disk."""
    actor = CheckpointStore.options(scheduling_strategy=on_this_node()).remote(storage)  # type: ignore[attr-defined]
    return RemoteStore(actor)
