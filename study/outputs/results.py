"""A finished study's files, read: what the report and the comparison of studies show."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
from optuna.trial import TrialState
from pyarrow.fs import FileType

from data_prep.errors import UserError
from data_prep.storage import Storage, locate, pull
from study.evaluation.leaderboard import ORACLE, Row
from study.outputs.leaderboard_files import read_leaderboard
from study.outputs.prediction_tables import read_table
from study.search.ledger import JOURNAL, Ledger, read_ledger
from study.search.records import Configuration


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study's files, read."""

    name: str
    """Name of the study."""
    folder: str
    """Where its files are."""
    rows: list[Row]
    """Its leaderboard, published rows included; empty while it runs."""
    run: dict[str, Any]
    """Its run.json."""
    identity: dict[str, Any]
    """What its ledger was created with; empty where nothing was searched."""
    configurations: list[Configuration]
    """Finished configurations of the study's own method."""
    looking: optuna.Study | None
    """The same as an Optuna study, for Optuna's own charts."""
    baselines: dict[str, list[Configuration]]
    """Finished configurations of the searched baselines, by space."""
    rotations: list["Results"]
    """One per rotation if there were several."""
    tables: dict[str, pa.Table]
    """What `analysis` wrote, and an ablation's table."""

    @property
    def own(self) -> Row | None:
        """The selected row of the study's own method: the first row that the others are compared with."""
        return next((r for r in self.rows if r.selected and r.method == self.run.get("reference")), None)

    @property
    def searched(self) -> str:
        """The study's own method; of an ablation, the method that is taken apart."""
        return str(self.run["reference"]).partition(":")[0]

    @property
    def benchmark(self) -> str:
        """What it was measured on."""
        return self.rows[0].benchmark


def read_results(storage: Storage) -> Results:
    """All that the report shows of a finished study. Raises `UserError` if there is no leaderboard."""
    try:
        rows = read_leaderboard(storage)
    except FileNotFoundError as error:
        raise UserError(f"a finished study must have a leaderboard, there is none: {error}") from None
    run = json.loads(storage.read("run.json") or b"{}")
    methods = [r.method for r in rows if json.loads(r.params)] or [rows[0].method]
    run.setdefault("reference", next((m for m in methods if m.endswith(": full")), methods[0]))  # older studies
    configurations, identity, looking = _read_ledger(storage)
    spaces = [i.base_name for i in _folders(storage, "baselines")]
    tables = {name: read_table(storage, name) for name in ("curves", "landscape", "errors", "confusions", "ablation")}
    return Results(
        name=run.get("name") or storage.root.rpartition("/")[2],
        folder=storage.shown,
        rows=rows,
        run=run,
        identity=identity,
        configurations=configurations,
        looking=looking,
        baselines={s: _read_ledger(storage / f"baselines/{s}")[0] for s in spaces},
        rotations=[read_results(storage / i.base_name) for i in _folders(storage) if _is_rotation(i.base_name)],
        tables={name: table for name, table in tables.items() if table is not None},
    )


def _is_rotation(folder: str) -> bool:
    return folder.startswith("rotation-")


def _folders(storage: Storage, name: str = "") -> list[Any]:
    selector = pa.fs.FileSelector(f"{storage.root}/{name}", allow_not_found=True)
    found = [i for i in storage.filesystem.get_file_info(selector) if i.type == FileType.Directory]
    return sorted(found, key=lambda i: i.base_name)


@contextmanager
def _local_folder(storage: Storage) -> Iterator[Path]:
    """A local folder with the journal, which Optuna cannot read elsewhere."""
    if storage.is_local:
        yield Path(storage.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        pull(storage, Path(folder) / JOURNAL)
        yield Path(folder)


def _read_ledger(storage: Storage) -> tuple[list[Configuration], dict[str, Any], optuna.Study | None]:
    with _local_folder(storage) as folder:
        journal = folder / JOURNAL
        if not (journal.exists() and journal.stat().st_size):
            return [], {}, None
        ledger = read_ledger(folder)
        return ledger.finished(), ledger.identity, for_looking(ledger)


def for_looking(ledger: Ledger) -> optuna.Study:
    """Finished configurations, each once, under one objective (the score): what all of Optuna's charts can show."""
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


def oracles_beside(storage: Storage, mine: Results) -> list[Results]:
    """Oracle studies of the same method and features in the same storage."""
    if not storage.is_local or not mine.own or mine.own.select == ORACLE:
        return []
    found = []
    for run in Path(storage.root).parent.glob("*/run.json"):
        options = json.loads(run.read_text()).get("options", {})
        if options.get("selection", {}).get("select") == ORACLE and (run.parent / "leaderboard.parquet").exists():
            found.append(read_results(locate(run.parent)))
    return [o for o in found if _comparable(o, mine)]


def _comparable(a: Results, b: Results) -> bool:
    def task(r: Results) -> tuple[Any, ...]:
        return (r.own and r.own.feature_fingerprint, r.run.get("options", {}).get("study", {}).get("rotation"))

    return task(a) == task(b) and a.run["reference"].partition(":")[0] == b.run["reference"].partition(":")[0]


def is_ablation(results: Results) -> bool:
    return ":" in results.run["reference"]
