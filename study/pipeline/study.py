"""One study from options to leaderboard: prepare, plan, each rotation, write."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text

from data_prep import FeatureOptions, prepare
from data_prep.feature_store import load
from data_prep.manifest import read_manifest
from study.cluster.session import start_session
from study.evaluation.final_test import average_rotations
from study.evaluation.leaderboard_text import to_terminal
from study.evaluation.published import published_rows
from study.options import Options
from study.outputs.ablation_files import write_ablation
from study.outputs.folder import IDENTITY, write_json
from study.outputs.leaderboard_files import write_leaderboard
from study.outputs.provenance import Clock, command, write_run
from study.pipeline.plan import Prepared, make_plan
from study.pipeline.rotation import RotationResult, run_rotation
from study.pipeline.spec import StudySpec, resolve
from study.protocol.trial_data import trial_data
from study.reporting.report import write_report


class Study:
    """A study. Raises `UserError` for whatever the user can mend, before work starts where possible."""

    def __init__(self, options: Options, console: Console | None = None) -> None:
        self.spec = resolve(options)
        self.console = Console(quiet=True) if options.output.quiet else console or Console()
        self.clock = Clock()

    def run(self) -> str:
        """Run the whole study; return the folder or URI of the leaderboard."""
        spec, console, clock = self.spec, self.console, self.clock
        output, selection = spec.options.output, spec.options.selection
        with clock.stage("ray"):
            start_session(spec.options.resources)
        with clock.stage("features"):
            cache = prepare_features(spec, console)
        if output.prep_only:
            console.print(f"features: {cache}", soft_wrap=True, highlight=False)
            return str(cache)
        features = load(cache)
        datas = {
            rotation: trial_data(
                features,
                rotation=rotation,
                folds=selection.folds,
                seed=spec.options.search.seed,
                clip_path=spec.clip_path,
            )
            for rotation in spec.rotations
        }
        plan = make_plan(spec, datas[spec.rotations[0]])
        study = Prepared(spec=spec, cache=cache, features=features, plan=plan, console=console, clock=clock)
        mark = " (ORACLE: looks at test labels)" if selection.select == "oracle" else ""
        title = Text.assemble((spec.name, "bold"), (mark, "bold red"), f": {study.title}")
        console.print(title, soft_wrap=True, highlight=False)
        console.print(plan.text(len(datas), features.rejected), soft_wrap=True, highlight=False, markup=False)
        if output.dry_run:
            return spec.storage.shown
        write_json(spec.storage, IDENTITY, spec.identity.study_json())
        results: list[RotationResult] = []
        for rotation, data in datas.items():
            storage = spec.storage
            if len(datas) > 1:
                console.rule(f"rotation {rotation}: {int((~data.seen_C).sum())} unseen classes")
                storage = spec.storage / f"rotation-{rotation}"
            results.append(run_rotation(study, rotation, data, storage))
            if results[-1].interrupted:
                break
        self._write(study, results)
        return spec.storage.shown

    def _write(self, study: Prepared, results: list[RotationResult]) -> None:
        """Write and print what the rotations gave together."""
        spec, console = self.spec, self.console
        several = len(spec.rotations) > 1
        if several:
            rows = average_rotations([(r.evaluation, r.scored) for r in results], spec.reference)
        else:
            rows = [s.row for s in results[0].scored]
        rows += published_rows(study.features.benchmark)
        paths = write_leaderboard(spec.storage, rows)
        if spec.ablation:
            paths += write_ablation(spec.storage, spec.ablation, rows)
        write_run(spec.storage, study.run_record())
        paths.append(write_report(spec.storage))
        if several:
            console.rule(f"mean over {len(results)} rotations")
        console.print(to_terminal(rows))
        console.print(*paths, sep="\n", soft_wrap=True, markup=False)
        if results[-1].interrupted:
            again = f"{command()}{'' if spec.options.output.name else f' --name {spec.name}'}"
            again = f"interrupted; go on with: {again.replace(' --resume', '')} --resume"
            console.print(again, soft_wrap=True, markup=False)


def prepare_features(spec: StudySpec, console: Console) -> Path | str:
    """Return the folder or URI of the feature cache, built if it is missing, and show how far it is."""
    study = spec.options.study
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
                if not console.is_terminal:
                    console.print(f"preparing {stage}: {total} {'shards' if stage == 'features' else 'images'}")
            bars.update(tasks[stage], completed=done, total=total)

        options = FeatureOptions(
            benchmark=spec.benchmark,
            clip=study.clip,
            data_root=study.data_root,
            cache_dir=spec.options.output.cache,
            allow_partial=study.allow_partial,
            templates=study.templates,
            max_rejected=study.max_rejected,
        )
        cache = prepare(options, progress)
    if not read_manifest(cache).protected:
        text = "which protects its files, but not its own facts. To have them protected, delete it: it is built again"
        console.print(f"the feature cache {cache} is of an earlier version, {text}", soft_wrap=True, markup=False)
    return cache
