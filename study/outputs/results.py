"""Read a finished study's files: all that the report and the comparison of studies show."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState
from pyarrow.fs import FileSelector, FileType

from data_prep.errors import UserError
from data_prep.storage import Storage, locate, pull
from study.evaluation.leaderboard import ORACLE, Row
from study.outputs.ablation_files import AblationLine, read_ablation
from study.outputs.folder import read_json
from study.outputs.leaderboard_files import read_leaderboard
from study.outputs.prediction_tables import PredictionTables, read_prediction_tables
from study.outputs.provenance import RecordedOptions, RunRecord
from study.search.ledger import JOURNAL, Ledger, read_ledger
from study.search.records import Configuration, SearchedSpace


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """What a ledger holds of a finished search."""

    space: SearchedSpace
    """Its space: knobs with their ranges, sampler, epochs."""
    configurations: list[Configuration]
    """Finished configurations in the order in which they were drawn."""
    optuna_study: optuna.Study
    """The same configurations for Optuna's own charts, see `score_study`."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A finished study, or one rotation of it."""

    folder: str
    """Folder or URI of the study."""
    rows: list[Row]
    """Rows of its leaderboard, published ones included; at least one."""
    run: RunRecord
    """Where the results come from."""
    search: SearchResults | None
    """Search of the study's own method; None where nothing was searched, or each rotation has its own."""
    baselines: Mapping[str, list[Configuration]]
    """Finished configurations of the searched baselines, by space."""
    rotations: list["Results"]
    """Results of each rotation, if there were several."""
    tables: PredictionTables
    """Tables of the final test."""
    ablation: list[AblationLine]
    """Lines of an ablation; none of any other study."""

    @property
    def own(self) -> Row | None:
        """The selected row of the study's own method; in an ablation, of the full method."""
        return next((r for r in self.rows if r.selected and r.method == self.run.reference), None)

    @property
    def benchmark(self) -> str:
        """Benchmark of the study."""
        return self.rows[0].benchmark

    @property
    def task(self) -> tuple[str, str, float | str | None]:
        """What two studies must share for their numbers to be compared: features, rotation, held-out images."""
        row, options = self.own or self.rows[0], self.run.options
        return row.feature_fingerprint, str(options.rotation or 0), options.test_share

    @property
    def is_oracle(self) -> bool:
        """Whether configurations were selected with test labels."""
        return any(row.select == ORACLE for row in self.rows)

    @property
    def is_scored(self) -> bool:
        """Whether any target image had a label."""
        return any(row.test_h_mean is not None for row in self.rows)

    @property
    def interrupted(self) -> bool:
        """Whether the study, or one of its rotations, was ended before it had done all it was asked to."""
        return self.run.status == "interrupted" or any(rotation.interrupted for rotation in self.rotations)

    @property
    def configurations(self) -> list[Configuration]:
        """Finished configurations of the study's own method."""
        return self.search.configurations if self.search else []


def read_results(storage: Storage) -> Results:
    """Read a finished study. Raises `UserError` if its folder has no leaderboard, or a damaged file."""
    try:
        rows = read_leaderboard(storage)
    except FileNotFoundError as error:
        raise UserError(f"a finished study must have a leaderboard, there is none: {error}") from None
    # for studies of versions that did not write the reference
    methods = [r.method for r in rows if json.loads(r.params)] or [rows[0].method]
    reference = next((m for m in methods if m.endswith(": full")), methods[0])
    folder = storage.root.rpartition("/")[2]
    run = read_json(storage, "run.json") or {}
    searches = {space: read_search(storage / f"baselines/{space}") for space in _folders(storage, "baselines")}
    return Results(
        folder=storage.shown,
        rows=rows,
        run=RunRecord.from_json(run, name=folder, reference=reference),
        search=read_search(storage),
        baselines={space: search.configurations if search else [] for space, search in searches.items()},
        rotations=[read_results(storage / name) for name in _folders(storage) if name.startswith("rotation-")],
        tables=read_prediction_tables(storage),
        ablation=read_ablation(storage),
    )


def read_search(storage: Storage) -> SearchResults | None:
    """Read the journal of a study or baseline; None where there is none."""
    with _local_folder(storage) as folder:
        journal = folder / JOURNAL
        if not (journal.exists() and journal.stat().st_size):
            return None
        ledger = read_ledger(folder)
        return SearchResults(
            space=SearchedSpace.from_json(ledger.identity),
            configurations=ledger.finished(),
            optuna_study=score_study(ledger),
        )


def score_study(ledger: Ledger) -> optuna.Study:
    """Return the finished configurations, each once, under one objective (the score), which all Optuna charts need."""
    trials = {t.number: t for t in ledger.trials()}
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                state=states[c.state],
                value=c.score if c.state == "complete" else None,
                params=trials[c.number].params,
                distributions=trials[c.number].distributions,
                intermediate_values=dict(c.curve),
            )
            for c in ledger.finished()
        ]
    )
    return study


def oracles_beside(storage: Storage, results: Results) -> list[Results]:
    """Return the oracle studies of the same method, features and rotation that lie in the same local storage."""
    if not storage.is_local or not results.own or results.own.select == ORACLE:
        return []
    found = []
    for file in Path(storage.root).parent.glob("*/run.json"):
        try:
            content = read_json(locate(file.parent), file.name) or {}
        except UserError:  # another study's: it says so itself
            continue
        options = RecordedOptions(by_group=content.get("options", {}))
        if options.select == ORACLE and (file.parent / "leaderboard.parquet").exists():
            found.append(read_results(locate(file.parent)))
    return [o for o in found if o.own and o.task == results.task and o.run.own_method == results.run.own_method]


def _folders(storage: Storage, name: str = "") -> list[str]:
    """Return the names of the folders in `storage`, or in its folder `name`, sorted; none if it does not exist."""
    selector = FileSelector(f"{storage.root}/{name}", allow_not_found=True)
    found = storage.filesystem.get_file_info(selector)
    return sorted(info.base_name for info in found if info.type == FileType.Directory)


@contextmanager
def _local_folder(storage: Storage) -> Iterator[Path]:
    """Give a local folder that holds the journal, because Optuna reads journals from local files only."""
    if storage.is_local:
        yield Path(storage.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        pull(storage, Path(folder) / JOURNAL)
        yield Path(folder)
