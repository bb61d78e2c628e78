"""What a search hands to its actors, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from data_prep.storage import Storage
from study.cluster.worker_group import agreed
from study.protocol.trial_data import TrialData
from study.search.halving import RungBoard
from study.search.pack_queue import Counts, PackSearcher
from study.training.loop import Judge, Training, train_lanes


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """What all packs of a search have in common; travels to every actor once, through Ray's object store."""

    study: str
    """Name of the study, for the dashboard."""
    space: str
    """Name of the search space."""
    config: Callable[..., Any]
    """The method's configuration class."""
    arrays: ray.ObjectRef
    """`TrialData.to_arrays()`, put once: actors map it, read-only, instead of copying it."""
    board: Any
    """Handle of the `Board`."""
    epochs: int
    """Epochs of a lane that is not pruned."""
    rungs: tuple[int, ...]
    """Epochs after which lanes are judged."""
    cpus: float
    """CPUs of an actor."""
    gpus: float
    """GPUs of an actor."""
    refill: bool = False
    """Whether packs report lanes as they end and take others in their room."""
    train: Callable[..., Training] = train_lanes
    """`trainer.train_lanes`, or a partial of it."""
    keeper: Any = None
    """Handle of the `Keeper` of the packs' checkpoints; None: there are none."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints at least."""
    workers: int = 1
    """Processes that train a pack together, each with these CPUs and GPUs."""

    def training(self, lanes: Sequence[Mapping[str, Any]], data: TrialData, judge: Judge, **options: Any) -> Training:
        """The training of a pack on a worker; `options` of `train_lanes`."""
        if self.workers > 1:
            judge = agreed(judge, data.source_labels_I.device)
        return self.train(
            [self.config(**lane["params"]) for lane in lanes],
            seeds=[lane["seed"] for lane in lanes],
            data=data,
            epochs=self.epochs,
            rungs=self.rungs,
            judge=judge if self.rungs else None,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one space, as one of several that run together."""

    searcher: PackSearcher
    """What asks for its packs, with its ledger."""
    train: Callable[..., Training] = train_lanes
    """`train_lanes` or a partial of it."""
    board: RungBoard = field(default_factory=RungBoard)
    """An empty board; it hears the ledger's scores first, so that a resumed search judges as if it had not stopped."""
    mirror: Storage | None = None
    """Where to keep a copy of the ledger, whose own file must be local."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to train, nor in training."""
        return not self.searcher.left and not self.searcher.running


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search did; the configurations themselves are in the ledger."""

    interrupted: bool
    """Ended by Ctrl-C before all configurations were finished."""
    counts: Counts
    """Configurations by state, packs and lanes."""
    seconds: float
    """From its first pack to its last result."""
    concurrent: int
    """Packs that could run at the same time, those of other searches included."""
    trained: int
    """Configurations finished in this run."""
