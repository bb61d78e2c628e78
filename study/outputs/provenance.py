"""Record where a result comes from: run.json, and what configurations and adapters say of their refits."""

import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from data_prep.storage import Storage
from study.evaluation.leaderboard import Row
from study.options import Options
from study.outputs.folder import read_json, write_json

RUN, CONFIGS = "run.json", "configs"
"""The record in a study's folder, and the folder of its rows' configurations."""

PACKAGES = ("ray", "torch", "transformers", "optuna", "numpy", "pyarrow", "networkx")
"""Packages whose versions are recorded, beside Python's."""


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """Images and classes of a study."""

    source_images: int
    """Labelled images."""
    target_images: int
    """Images of the test split, unlabelled for everything but the final test."""
    seen_classes: int
    """Classes with labelled images."""
    unseen_classes: int
    """Classes of which only the names are known."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Software and hardware that a study ran on."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Version by package, Python's among them."""
    machine: str = ""
    """Processor family, such as x86_64."""
    cluster: Mapping[str, float] = field(default_factory=dict)
    """Amount by resource of the Ray cluster: CPUs, GPUs, bytes of memory."""


def current_environment() -> Environment:
    """Return the installed versions and the resources of the Ray cluster that this process is connected to."""
    import ray  # seconds, which readers of run.json save

    return Environment(
        versions={"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        machine=platform.machine(),
        # names with a colon are those of single nodes
        cluster={name: amount for name, amount in ray.cluster_resources().items() if ":" not in name},
    )


@dataclass(frozen=True, kw_only=True)
class RecordedOptions:
    """A study's options as its run.json holds them; a version that lacks an option gives None for it."""

    by_group: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Option and value, as JSON, by group of the command line's help."""

    @classmethod
    def of(cls, options: Options) -> "RecordedOptions":
        """Record options as JSON can hold them."""
        return cls(
            by_group={
                group: {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
                for group, given in asdict(options).items()
            }
        )

    def _value(self, group: str, option: str) -> Any:
        return self.by_group.get(group, {}).get(option)

    @property
    def rotation(self) -> int | Literal["all"] | None:
        """Which classes were the unseen ones."""
        return self._value("study", "rotation")

    @property
    def seed(self) -> int | None:
        """Seed of everything."""
        return self._value("search", "seed")

    @property
    def select(self) -> str | None:
        """What selection looked at: pseudo-unseen, or oracle."""
        return self._value("selection", "select")

    @property
    def test_share(self) -> float | str | None:
        """Share of the target images that was held out of everything but a second test."""
        return self._value("selection", "test_share")

    @property
    def folds(self) -> int | None:
        """Folds of the seen classes."""
        return self._value("selection", "folds")

    @property
    def seeds(self) -> int | None:
        """Refits of each chosen configuration."""
        return self._value("selection", "seeds")

    @property
    def configs(self) -> int | None:
        """Configurations that were to be finished."""
        return self._value("search", "configs")

    @property
    def top(self) -> int | None:
        """Configurations that were refitted."""
        return self._value("selection", "top")

    @property
    def price(self) -> float | None:
        """Price of the cluster per hour."""
        return self._value("resources", "price")

    @property
    def resumed(self) -> bool:
        """Whether the study's last run continued an earlier one."""
        return bool(self._value("output", "resume"))


Status = Literal["finished", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json: what is needed to run a study again, and where it ran."""

    name: str
    """Name of the study; that of a rotation's folder names the rotation, too."""
    command: str = ""
    """Command line of the study."""
    reference: str
    """Method that the others are compared with: the study's own, or an ablation's full model."""
    criterion: str = ""
    """What ranked configurations: consensus, agreement, h*mi, h or mi."""
    data: DataCounts | None = None
    """Images and classes of the first rotation; None in studies of older versions."""
    concurrent: int | None = None
    """Packs that trained at the same time; None in studies of older versions."""
    options: RecordedOptions = field(default_factory=RecordedOptions)
    """Options of the study."""
    feature_fingerprint: str = ""
    """Fingerprint of the feature cache."""
    environment: Environment = field(default_factory=Environment)
    """Software and hardware."""
    packs: Mapping[str, int] = field(default_factory=dict)
    """Configurations in a pack, by space."""
    megabytes_per_configuration: Mapping[str, float] = field(default_factory=dict)
    """Estimated memory of a configuration in training, by space."""
    configurations_per_minute: Mapping[str, float] = field(default_factory=dict)
    """Measured speed of the search, by space."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time by stage."""
    scorings: int = 1
    """Times that the test split was scored: a study that is resumed with more configurations scores it again."""
    status: Status = "finished"
    """Whether the study did all it was asked to; older versions wrote their run.json for finished studies only."""

    @property
    def own_method(self) -> str:
        """Method that the study is about; of an ablation, the method that is taken apart."""
        return self.reference.partition(":")[0]

    @property
    def is_ablation(self) -> bool:
        """Whether the study takes a method apart: its rows are then called METHOD: VARIANT."""
        return ":" in self.reference

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return {
            "name": self.name,
            "command": self.command,
            "reference": self.reference,
            "criterion": self.criterion,
            "data": None if self.data is None else asdict(self.data),
            "concurrent": self.concurrent,
            "options": self.options.by_group,
            "feature_fingerprint": self.feature_fingerprint,
            "versions": self.environment.versions,
            "hardware": {"machine": self.environment.machine, "cluster": self.environment.cluster},
            "packs": self.packs,
            "megabytes_per_configuration": self.megabytes_per_configuration,
            "configurations_per_minute": self.configurations_per_minute,
            "seconds": self.seconds,
            "scorings": self.scorings,
            "status": self.status,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, name: str, reference: str) -> "RunRecord":
        """Read the content of run.json; `name` and `reference` stand in where an older version did not write them."""
        hardware = content.get("hardware", {})
        return cls(
            name=content.get("name") or name,
            command=content.get("command", ""),
            reference=content.get("reference", reference),
            criterion=content.get("criterion", ""),
            data=DataCounts(**content["data"]) if content.get("data") else None,
            concurrent=content.get("concurrent"),
            options=RecordedOptions(by_group=content.get("options", {})),
            feature_fingerprint=content.get("feature_fingerprint", ""),
            environment=Environment(
                versions=content.get("versions", {}),
                machine=hardware.get("machine", ""),
                cluster=hardware.get("cluster", {}),
            ),
            packs=content.get("packs", {}),
            megabytes_per_configuration=content.get("megabytes_per_configuration", {}),
            configurations_per_minute=content.get("configurations_per_minute", {}),
            seconds=content.get("seconds", {}),
            scorings=content.get("scorings", 1),
            status=content.get("status", "finished"),
        )


@dataclass(frozen=True, kw_only=True)
class RefitRecord:
    """How the refits of one rotation were made: part of each configs/ID.json and of each adapter's config.json."""

    seeds: tuple[int, ...]
    """Seeds of the refits."""
    rotation: int
    """Which classes were the unseen ones."""
    epochs: int
    """Epochs of each refit."""
    run: RunRecord
    """The study so far."""

    def to_json(self) -> dict[str, Any]:
        """Return seeds, rotation and epochs, and all of the study's record but how the study ended: it still runs."""
        run = {name: value for name, value in self.run.to_json().items() if name not in ("status", "scorings")}
        return {"seeds": self.seeds, "rotation": self.rotation, "epochs": self.epochs, **run}


class Clock:
    """How long the stages of a study take, and how fast its searches are."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Wall time by stage, over all rotations."""
        self._searched: dict[str, tuple[int, float]] = {}  # configurations and seconds, by space

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time until the context ends to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def count(self, space: str, configurations: int, seconds: float) -> None:
        """Add how many configurations of a space were finished in a time, of one rotation."""
        before, spent = self._searched.get(space, (0, 0.0))
        self._searched[space] = before + configurations, spent + seconds

    @property
    def per_minute(self) -> dict[str, float]:
        """Configurations finished per minute, by space, over all rotations."""
        return {space: round(60 * n / max(seconds, 1e-9), 1) for space, (n, seconds) in self._searched.items()}


def command() -> str:
    """Return the command line of this process."""
    program, *arguments = sys.argv
    own = program.split() if program.startswith("zerosweep ") else ["python", program]
    return shlex.join([*own, *arguments])


def scorings_before(storage: Storage) -> int:
    """Return how often the test split of a study's folder was scored so far."""
    content = read_json(storage, RUN)
    if content is None:
        return 0
    return content.get("scorings", int(content.get("status", "finished") == "finished"))


def write_run(storage: Storage, record: RunRecord) -> None:
    """Write run.json. Raises `UserError` if the storage cannot be written."""
    write_json(storage, RUN, record.to_json())


def write_config(storage: Storage, row: Row, *, params: Mapping[str, Any], space: str, record: RefitRecord) -> None:
    """Write configs/ID.json of a refitted configuration, which `--rerun` takes. Raises `UserError`.

    `params`: fields of the configuration; `space`: search space that builds it from them.
    """
    content = asdict(row) | {"params": dict(params), "space": space} | record.to_json()
    write_json(storage, f"{CONFIGS}/{row.config_id}.json", content)
