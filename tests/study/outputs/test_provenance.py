"""run.json and configs/ID.json: literal records in, literal JSON out, and records of older versions read."""

import json
from pathlib import Path

from rows import ROWS

from data_prep.storage import locate
from study.options import Options, OutputOptions, SelectionOptions, StudyOptions
from study.outputs.provenance import (
    Clock,
    DataCounts,
    Environment,
    RecordedOptions,
    RefitRecord,
    RunRecord,
    write_config,
    write_run,
)

RECORD = RunRecord(
    name="mine",
    command="python study/run.py",
    reference="PVA: full",
    criterion="h",
    data=DataCounts(source_images=4, target_images=3, seen_classes=2, unseen_classes=1),
    concurrent=1,
    options=RecordedOptions(by_group={"selection": {"select": "oracle", "folds": 3}, "study": {"rotation": "all"}}),
    feature_fingerprint="f00d",
    environment=Environment(versions={"python": "3.11"}, machine="x86_64", cluster={"CPU": 2.0}),
    packs={"pva": 4},
    megabytes_per_configuration={"pva": 42.2},
    configurations_per_minute={"pva": 9.6},
    seconds={"search": 58.25},
    scorings=2,
    status="interrupted",
)
RUN_JSON = {
    "name": "mine",
    "command": "python study/run.py",
    "reference": "PVA: full",
    "criterion": "h",
    "data": {"source_images": 4, "target_images": 3, "seen_classes": 2, "unseen_classes": 1},
    "concurrent": 1,
    "options": {"selection": {"select": "oracle", "folds": 3}, "study": {"rotation": "all"}},
    "feature_fingerprint": "f00d",
    "versions": {"python": "3.11"},
    "hardware": {"machine": "x86_64", "cluster": {"CPU": 2.0}},
    "packs": {"pva": 4},
    "megabytes_per_configuration": {"pva": 42.2},
    "configurations_per_minute": {"pva": 9.6},
    "seconds": {"search": 58.25},
    "scorings": 2,
    "status": "interrupted",
}


def test_run_json_is_the_record_and_the_record_is_read_again(tmp_path: Path) -> None:
    write_run(locate(tmp_path), RECORD)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content == RUN_JSON and list(content) == list(RUN_JSON)
    assert RunRecord.from_json(content, name="other", reference="other") == RECORD
    assert RECORD.is_ablation and RECORD.own_method == "PVA"
    assert RECORD.options.select == "oracle" and RECORD.options.folds == 3 and RECORD.options.rotation == "all"


def test_a_record_of_an_older_version_has_defaults() -> None:
    old = RunRecord.from_json({}, name="folder", reference="PVA")
    assert (old.name, old.reference, old.command, old.data, old.seconds) == ("folder", "PVA", "", None, {})
    assert not old.is_ablation and old.options.rotation is None and not old.options.resumed


def test_options_are_recorded_as_json_has_them() -> None:
    options = Options(
        study=StudyOptions(space="pva", data_root=Path("/data"), templates=("a {}",)),
        selection=SelectionOptions(folds=2),
        output=OutputOptions(resume=True, name="mine"),
    )
    recorded = RecordedOptions.of(options)
    content = json.loads(json.dumps(recorded.by_group))
    assert list(content) == ["study", "search", "selection", "resources", "output"]
    assert content["study"]["data_root"] == "/data" and content["study"]["templates"] == ["a {}"]
    assert (recorded.folds, recorded.seed, recorded.price, recorded.resumed) == (2, 0, None, True)


def test_a_configuration_has_its_row_and_how_it_was_refitted(tmp_path: Path) -> None:
    record = RefitRecord(seeds=(7, 8), rotation=1, epochs=20, run=RECORD)
    write_config(locate(tmp_path), ROWS[1], params={"lr": 0.5}, space="sre", record=record)
    content = json.loads((tmp_path / "configs" / "sre-0001.json").read_text())
    assert content["test_h_mean"] == 0.33 and content["params"] == {"lr": 0.5} and content["space"] == "sre"
    assert (content["seeds"], content["rotation"], content["epochs"]) == ([7, 8], 1, 20)
    run = {name: value for name, value in RUN_JSON.items() if name not in ("status", "scorings")}  # it has not ended
    assert "status" not in content and {name: content[name] for name in run} == run | {"feature_fingerprint": "f00d"}
    assert list(content)[-len(run) + 1 :] == [name for name in run if name != "feature_fingerprint"]


def test_the_speed_of_a_search_is_that_over_all_rotations() -> None:
    clock = Clock()
    clock.count("pva", 10, 60.0)
    clock.count("linear-probe", 5, 30.0)
    clock.count("pva", 20, 30.0)
    assert clock.per_minute == {"pva": 20.0, "linear-probe": 10.0}
