"""One study from options to leaderboard: prepare, plan, each rotation, write."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text

from data_prep import FeatureOptions, UserError, prepare
from data_prep.cache_build import NotPrepared
from data_prep.feature_store import load
from data_prep.interrupts import interrupts
from data_prep.manifest import read_manifest
from study.cluster.session import has_gpu, names_a_cluster, start_session
from study.evaluation.final_test import average_rotations
from study.evaluation.leaderboard_text import to_terminal
from study.evaluation.published import published_rows
from study.options import Options
from study.outputs.ablation_files import write_ablation
from study.outputs.adapter_files import ADAPTERS, SELECTED
from study.outputs.folder import IDENTITY, clear_leftovers, write_json
from study.outputs.hub import push_adapter
from study.outputs.leaderboard_files import write_leaderboard
from study.outputs.prediction_tables import write_resamples
from study.outputs.provenance import Clock, command, scorings_before, write_run
from study.outputs.study_lock import hold_study
from study.outputs.trackers import log_result
from study.pipeline.plan import Prepared, choose_gpus, make_plan
from study.pipeline.rotation import RotationResult, run_rotation
from study.pipeline.search_stage import ledger_folder
from study.pipeline.spec import StudySpec, check_folder, resolve
from study.protocol.target_split import split_target
from study.protocol.trial_data import TrialData, trial_data
from study.reporting.report import write_report
from study.reporting.running import write_interrupted_report

NOT_PREPARED = (
    "{}: its features are not prepared yet. --prep-only prepares them; then the plan says how many images and packs "
    "there are, and how long it takes"
)


class Study:
    """A study. Raises `UserError` for whatever the user can mend, before work starts where possible."""

    def __init__(self, options: Options, console: Console | None = None) -> None:
        self.spec = resolve(options)
        self.console = Console(quiet=True) if options.output.quiet else console or Console()
        self.clock = Clock()

    def run(self) -> str:
        """Run the whole study; return the folder or URI of the leaderboard.

        Holds the study from here to the report. Raises KeyboardInterrupt, after the files say so, where the study is
        interrupted.
        """
        spec, output = self.spec, self.spec.options.output
        if output.prep_only or output.dry_run:  # writes nothing into the study's folder
            return self._run()
        again = f"{command()}{'' if output.name else f' --name {spec.name}'}"
        again = f"{again.replace(' --resume', '')} --resume"
        interrupts.last_words = f"interrupted; go on with: {again}"
        try:
            with hold_study(spec.storage), errors_say_how_to_go_on(spec, again):
                check_folder(spec.storage, spec.identity, resume=output.resume)  # nobody changes it any more
                if output.resume:
                    clear_leftovers(spec.storage)
                return self._run()
        except KeyboardInterrupt:
            interrupts.say()
            raise

    def _run(self) -> str:
        """Run the study that is held, or as much of one as is asked for."""
        spec, console, clock = self.spec, self.console, self.clock
        output, selection = spec.options.output, spec.options.selection
        # the plan of a study on this machine needs no Ray
        resources = spec.options.resources
        here = output.dry_run and not resources.gpus and not names_a_cluster(resources) and not has_gpu()
        if not here:
            with clock.stage("ray"):
                dashboard = start_session(resources)
            if dashboard and resources.dashboard:
                text = f"dashboard: http://{dashboard} (its token: ray get-auth-token)"
                console.print(text, soft_wrap=True, highlight=False)
        for note in spec.notes:
            console.print(f"  {note}", soft_wrap=True, highlight=False, markup=False)
        with clock.stage("features"):
            try:
                cache = prepare_features(spec, console, may_build=not output.dry_run)
            except NotPrepared:
                console.print(NOT_PREPARED.format(spec.benchmark), soft_wrap=True, highlight=False, markup=False)
                return spec.storage.shown
        if output.prep_only:
            console.print(f"features: {cache}", soft_wrap=True, highlight=False)
            return str(cache)
        features, new = load(cache), None
        if selection.test_share is not None:
            features, new = split_target(features, selection.test_share, spec.options.search.seed)
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
        if not here:
            spec = self.spec = choose_gpus(spec, datas[spec.rotations[0]], console)
        plan = make_plan(spec, datas[spec.rotations[0]], console, here=here)
        study = Prepared(
            spec=spec,
            cache=cache,
            features=features,
            new=new,
            plan=plan,
            console=console,
            clock=clock,
            scorings_before=scorings_before(spec.storage),
        )
        mark = " (ORACLE: looks at test labels)" if selection.select == "oracle" else ""
        title = Text.assemble((spec.name, "bold"), (mark, "bold red"), f": {study.title}")
        console.print(title, soft_wrap=True, highlight=False)
        console.print(plan.text(len(datas), features.rejected), soft_wrap=True, highlight=False, markup=False)
        if output.dry_run:
            return spec.storage.shown
        write_json(spec.storage, IDENTITY, spec.identity.study_json())
        self._run_rotations(study, datas)
        return spec.storage.shown

    def _run_rotations(self, study: Prepared, datas: Mapping[int, TrialData]) -> None:
        """Run each rotation and write what they gave; mark the study in its files where it is interrupted."""
        spec, console = self.spec, self.console
        results: list[RotationResult] = []
        storage = spec.storage
        try:
            for rotation, data in datas.items():
                if len(datas) > 1:
                    console.rule(f"rotation {rotation}: {int((~data.seen_C).sum())} unseen classes")
                    storage = spec.storage / f"rotation-{rotation}"
                results.append(run_rotation(study, rotation, data, storage))
                if results[-1].interrupted:
                    break
            self._write(study, results)
        except KeyboardInterrupt:
            write_run(spec.storage, study.run_record(interrupted=True, scored=False))
            interrupts.say()
            write_interrupted_report(storage)
            raise

    def _write(self, study: Prepared, results: list[RotationResult]) -> None:
        """Write and print what the rotations gave together."""
        spec, console, interrupted = self.spec, self.console, results[-1].interrupted
        several = len(spec.rotations) > 1
        if several:
            rotations = [(r.evaluation, r.scored) for r in results]
            rows = average_rotations(rotations, spec.reference)
            write_resamples(spec.storage, rotations)
        else:
            rows = [s.row for s in results[0].scored]
        rows += published_rows(study.features.benchmark)
        paths = write_leaderboard(spec.storage, rows, interrupted=interrupted)
        if spec.ablation:
            paths += write_ablation(spec.storage, spec.ablation, rows)
        write_run(spec.storage, study.run_record(interrupted=interrupted))
        paths.append(write_report(spec.storage))
        if several:
            console.rule(f"mean over {len(results)} rotations")
        console.print(to_terminal(rows, interrupted=interrupted))
        if study.scorings_before:
            console.print(f"The test split of this study was scored {study.scorings_before + 1} times.")
        console.print(*paths, sep="\n", soft_wrap=True, markup=False)
        adapter = f"{ADAPTERS}/{SELECTED}"
        if tracker := spec.options.output.log:
            folder = ledger_folder(spec, spec.storage)
            files, weights = spec.storage, results[-1].storage / adapter
            log_result(tracker, files, weights, rows, study=spec.name, folder=folder, console=console)
        if interrupted:
            interrupts.say()
        elif push := spec.options.output.push:
            address = push_adapter(results[-1].storage, adapter, push)
            console.print(address, soft_wrap=True, markup=False)


@contextmanager
def errors_say_how_to_go_on(spec: StudySpec, again: str) -> Iterator[None]:
    """Add to the error of a storage or database that is gone where the ledger lies, and the command that goes on."""
    try:
        yield
    except UserError as error:
        if error.option not in ("storage", "ledger"):
            raise
        where = spec.options.output.ledger or ledger_folder(spec, spec.storage).resolve()
        text = f"{error.message}. The ledger lies in {where}; go on with: {again}"
        raise UserError(text, option=error.option) from error


def prepare_features(spec: StudySpec, console: Console, *, may_build: bool = True) -> Path | str:
    """Return the folder or URI of the feature cache, built if it is missing, and show how far it is.

    Raises `NotPrepared` where it is missing and not to be built.
    """
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
            gpu=spec.options.resources.gpus > 0,
        )
        cache = prepare(options, progress, may_build=may_build)
    manifest = read_manifest(cache)
    for remark in manifest.remarks:
        console.print(f"  {remark}", highlight=False, soft_wrap=True)
    if not manifest.protected:
        text = "which protects its files, but not its own facts. To have them protected, delete it: it is built again"
        console.print(f"the feature cache {cache} is of an earlier version, {text}", soft_wrap=True, markup=False)
    return cache
