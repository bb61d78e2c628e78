"""What a search hands to its actors, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import ray
from ray.actor import ActorHandle

from data_prep.storage import Storage
from models.stacked import MethodConfig
from study.cluster.checkpoint_store import RemoteStore
from study.options import ResourceOptions
from study.protocol.trial_data import TrialData
from study.search.halving import SuccessiveHalving
from study.search.pack_queue import Counts, PackQueue
from study.search.records import Lane
from study.training.loop import Judge, OnEpoch, Training, TrainingOptions
from study.training.pack_checkpoint import PackCheckpoint
from study.training.scoring import LaneResult


class PackTraining(Protocol):
    """A pack in training, as its actor sees it; `training.loop.Training` is one."""

    @property
    def done(self) -> bool:
        """Whether all configurations have ended."""

    def advance(self) -> Mapping[int, LaneResult]:
        """Train an epoch; return the results of the configurations that have ended with it, by index."""

    def add(self, configs: Sequence[MethodConfig], seeds: Sequence[int]) -> None:
        """Train more configurations in the room of ended ones; they take the next indices."""


class TrainingFactory(Protocol):
    """What begins the training of a pack."""

    def __call__(
        self,
        configs: Sequence[MethodConfig],
        *,
        seeds: Sequence[int],
        data: TrialData,
        options: TrainingOptions,
        judge: Judge | None = None,
        on_epoch: OnEpoch | None = None,
        checkpoint: PackCheckpoint | None = None,
    ) -> PackTraining:
        """Build the pack; nothing is trained yet."""


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """What all packs of a search have in common; travels to every actor once, through Ray's object store."""

    study: str
    """Name of the study, for the dashboard."""
    space: str
    """Name of the search space."""
    config: Callable[..., MethodConfig]
    """The method's configuration class."""
    arrays: ray.ObjectRef
    """`TrialData.to_arrays()`, put once: actors map it, read-only, instead of copying it."""
    coordinator: ActorHandle
    """Handle of the study's `Coordinator`."""
    training: TrainingOptions
    """How its configurations are trained and scored."""
    resources: ResourceOptions
    """What a pack's workers get."""
    train: TrainingFactory = Training
    """What trains them."""
    refill: bool = False
    """Whether packs report lanes as they end and take others in their room."""
    store: RemoteStore | None = None
    """Where the packs' checkpoints are; None: there are none."""

    def begin(
        self,
        lanes: Sequence[Lane],
        data: TrialData,
        judge: Judge,
        on_epoch: OnEpoch | None = None,
        checkpoint: PackCheckpoint | None = None,
    ) -> PackTraining:
        """Begin the training of a pack on a worker; `judge` is asked at the rungs, if there are any."""
        return self.train(
            self.configs(lanes),
            seeds=[lane.seed for lane in lanes],
            data=data,
            options=self.training,
            judge=judge if self.training.rungs else None,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )

    def configs(self, lanes: Sequence[Lane]) -> list[MethodConfig]:
        """Return the lanes' configurations."""
        return [self.config(**lane.params) for lane in lanes]


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one space, as one of several that run together."""

    queue: PackQueue
    """Its packs, with its ledger."""
    training: TrainingOptions
    """How its configurations are trained and scored."""
    train: TrainingFactory = Training
    """What trains them."""
    halving: SuccessiveHalving = field(default_factory=SuccessiveHalving)
    """Without scores; it hears the ledger's first, so that a resumed search judges as if it had not stopped."""
    mirror: Storage | None = None
    """Where to keep a copy of the ledger, whose own file must be local."""


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search did; the configurations themselves are in the ledger."""

    interrupted: bool
    """Ended by an interrupt before all configurations were finished."""
    counts: Counts
    """Configurations by state, packs and lanes."""
    seconds: float
    """From its first pack to its last result."""
    concurrent: int
    """Packs that could run at the same time, those of other searches included."""
    trained: int
    """Configurations finished in this run."""
