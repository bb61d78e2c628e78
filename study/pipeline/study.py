"""One study from options to leaderboard: prepare, search, refit, score once on the test split, write."""

import functools
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.progress import Progress, TaskID

import search_spaces
from data_prep import FeatureOptions, UserError, prepare
from data_prep.benchmarks import get_benchmark
from data_prep.benchmarks.transfer import ARROW
from data_prep.checkpoint import find_checkpoint
from data_prep.feature_store import load
from data_prep.manifest import read_manifest
from data_prep.ray_session import start_ray
from data_prep.storage import Storage, pull, push
from data_prep.templates import find_templates
from search_spaces import Ablation, Space
from study.cluster.jobs import Search
from study.cluster.refit_run import refit
from study.cluster.search_run import run_searches
from study.cluster.session import cpus_per_worker
from study.cluster.tasks import precision_on_worker, score_on_folds
from study.evaluation.final_test import Evaluation, Scored, average_rotations, select, with_test_labels
from study.evaluation.leaderboard_text import to_terminal
from study.evaluation.published import published_rows
from study.options import Options
from study.outputs.adapter import make_adapter
from study.outputs.adapter_files import write_adapter
from study.outputs.folder import IDENTITY, open_storage
from study.outputs.leaderboard_files import write_ablation, write_config, write_leaderboard, write_run
from study.outputs.prediction_tables import write_analysis
from study.outputs.provenance import command, jsonable, machine_and_versions
from study.outputs.trackers import check_tracker, log_configurations
from study.pipeline.candidates import winner_params
from study.pipeline.plan import make_plan
from study.pipeline.spec import baselines_of, check_workers, options_of_row
from study.protocol.trial_data import InCache, TrialData, in_cache, trial_data
from study.reporting.report import write_report
from study.search.halving import rung_epochs
from study.search.ledger import JOURNAL, Ledger, open_ledger
from study.search.pack_queue import PackSearcher
from study.search.records import Configuration
from study.training.loop import train_lanes
from study.training.methods import method_of, swept_values
from study.training.pack import Precision
from study.training.refit import Refit


class Study:
    """A study in progress. Raises `UserError` for whatever the user can mend, before work starts where possible."""

    def __init__(self, options: Options, console: Console | None = None) -> None:
        self.row: dict[str, Any] = {}
        if options.study.rerun:
            options, self.row = options_of_row(options)
        self.console = Console(quiet=True) if options.output.quiet else console or Console()
        chosen_space = search_spaces.load(options.study.space)
        self.ablation = chosen_space if isinstance(chosen_space, Ablation) else None
        self.space: Space = chosen_space.space if isinstance(chosen_space, Ablation) else chosen_space
        self.benchmark = options.study.benchmark or self.space.benchmark
        if options.study.train_on:
            self.benchmark = f"{options.study.train_on}{ARROW}{options.study.test_on}"
        self.criterion = options.selection.criterion or self.space.criterion
        if self.criterion != "h" and not method_of(self.space).uses_target:
            raise UserError(
                f"--criterion must be h for {self.space.method}, which may not see target images; got {self.criterion}"
            )
        self.baselines = baselines_of(options.search.baselines, self.space, bool(self.ablation))
        check_workers(options, [self.space, *self.baselines])
        chosen = get_benchmark(self.benchmark, options.study.data_root, allow_partial=options.study.allow_partial)
        self.images = chosen.domain("target")
        if not options.study.train_on:
            options = replace(options, study=replace(options.study, benchmark=self.benchmark))
        self.options = options
        checkpoint = find_checkpoint(options.study.clip or chosen.default_clip)
        # a node that does not see the driver's download makes its own
        self.clip_path = checkpoint.identity.get("hub") or str(checkpoint.folder)
        if options.study.templates:
            find_templates(options.study.templates)
        for option, given in (("--winner", options.selection.winner), ("--re-search", options.selection.re_search)):
            if given and not self.ablation:
                raise UserError(f"{option} must come with an ablation, got it with --space {options.study.space}")
        if options.output.log:
            check_tracker(options.output.log)
        if options.output.resume and options.output.name is None:
            raise UserError("--resume must come with the --name of the study to continue, got none")
        slug = re.sub(r"[^\w.-]", "-", chosen.slug)
        if options.output.ledger:
            from study.search.database import connect  # half a second, which a journal saves

            connect(options.output.ledger)
        self.name = options.output.name or f"{chosen_space.name}-{slug}-{datetime.now():%Y%m%d-%H%M%S}"
        self.storage = open_storage(options.output.storage, self.name)
        self._check_folder(chosen_space.name)
        self.seconds: dict[str, float] = {}
        self.per_minute: dict[str, float] = {}

    def run(self) -> str:
        """All of it; returns the folder or URI of the leaderboard."""
        options = self.options
        self._timed("ray", self._start_ray)
        self.cache = self._timed("features", self._prepare)
        if options.output.prep_only:
            self.console.print(f"features: {self.cache}", soft_wrap=True, highlight=False)
            return str(self.cache)
        self.features = load(self.cache)
        all_rotations = range(self.features.classes.unseen_RC.shape[0])
        rotations = list(all_rotations) if options.study.rotation == "all" else [int(options.study.rotation)]
        folds, seed = options.selection.folds, options.search.seed
        datas = {
            r: trial_data(self.features, rotation=r, folds=folds, seed=seed, clip_path=self.clip_path)
            for r in rotations
        }
        self.plan = make_plan(
            self.space, self.baselines, options, datas[rotations[0]], self.ablation, again=bool(self.row)
        )
        mark = " [bold red](ORACLE: looks at test labels)[/bold red]" if options.selection.select == "oracle" else ""
        self.console.print(
            f"[bold]{self.name}[/bold]{mark}: {options.study.space} on {self.features.benchmark} "
            f"with {self.features.clip}\n{self.plan.text(len(rotations), self.features.rejected)}",
            soft_wrap=True,
            highlight=False,
        )
        if options.output.dry_run:
            return self.storage.shown
        self.storage.write(IDENTITY, (json.dumps(self.identity, indent=2) + "\n").encode())
        done: list[tuple[Evaluation, list[Scored]]] = []
        interrupted = False
        for rotation, data in datas.items():
            storage = self.storage
            if len(rotations) > 1:
                self.console.rule(f"rotation {rotation}: {int((~data.seen_C).sum())} unseen classes")
                storage = self.storage / f"rotation-{rotation}"
            evaluation, scored, interrupted = self._rotation(rotation, data, storage)
            done.append((evaluation, scored))
            if interrupted:
                break
        rows = average_rotations(done, self.reference) if len(rotations) > 1 else [s.row for s in done[0][1]]
        rows += published_rows(self.features.benchmark)
        paths = write_leaderboard(self.storage, rows)
        if self.ablation:
            paths += write_ablation(self.storage, self.ablation, rows)
        write_run(self.storage, self._provenance())
        paths.append(write_report(self.storage))
        if len(rotations) > 1:
            self.console.rule(f"mean over {len(done)} rotations")
        self.console.print(to_terminal(rows))
        self.console.print(*paths, sep="\n", soft_wrap=True)
        if interrupted:
            again = f"{command()}{'' if options.output.name else f' --name {self.name}'}"
            self.console.print(f"interrupted; go on with: {again.replace(' --resume', '')} --resume", soft_wrap=True)
        return self.storage.shown

    # --- stages -----------------------------------------------------------------------------------------------------

    def _rotation(self, rotation: int, data: TrialData, storage: Storage) -> tuple[Evaluation, list[Scored], bool]:
        """One rotation's study: search (or the variants of an ablation), refit, and the test split, once."""
        selection = self.options.selection
        if selection.select == "oracle":
            data = with_test_labels(data, self.cache)
        arrays = ray.put(data.to_arrays() | self._in_cache(data))
        candidates, interrupted = self._timed("search", lambda: self._all_candidates(rotation, arrays, storage))
        seeds = [self.options.search.seed * 1000 + i for i in range(selection.seeds)]
        refits = self._timed("refit", lambda: self._refit([c["config"] for c in candidates], seeds, arrays, storage))
        evaluation = Evaluation(self.cache, self.features, data, selection.select)
        scored = evaluation.zero_shot(self.criterion)
        provenance = {"seeds": seeds, "rotation": rotation, "epochs": self.options.search.epochs, **self._provenance()}
        trained: dict[str, tuple[Any, Refit]] = {}
        for candidate, done in zip(candidates, refits, strict=True):
            config, row = candidate["config"], candidate["row"]
            if done.diverged:
                self.console.print(f"{row['config_id']} diverged in its refit and is left out", soft_wrap=True)
                continue
            scored.append(
                evaluation.score(
                    predictions_ST=done.predictions_ST,
                    division=done.division,
                    train_seconds=done.train_seconds,
                    params=asdict(config),
                    unseen_GT=done.unseen_GT,
                    **row,
                )
            )
            trained[row["config_id"]] = config, done
            about = {"params": asdict(config), "space": candidate["space"], **provenance}
            write_config(storage, row["config_id"], asdict(scored[-1].row) | about)
        scored = select(scored, evaluation, self.reference)
        self._timed("export", lambda: self._export(storage, scored, trained, evaluation, provenance))
        write_analysis(storage, evaluation, scored, self.reference, self.images)
        if storage is not self.storage:
            write_leaderboard(storage, [s.row for s in scored])
            write_run(storage, self._provenance(rotation))
            write_report(storage)
            self.console.print(to_terminal([s.row for s in scored]))
        return evaluation, scored, interrupted

    def _all_candidates(self, rotation: int, arrays: Any, storage: Storage) -> tuple[list[dict[str, Any]], bool]:
        """What will be refitted: the method's best or the ablation's variants, and each baseline's best.

        And whether Ctrl-C ended their search.
        """
        given: list[dict[str, Any]] = []
        spaces: list[tuple[Space, Storage, int]] = []
        if self.row:
            given = [self._candidate_of_row()]
        elif self.ablation and self.options.selection.re_search:
            variants = [self.ablation.researched(variant) for variant in self.ablation.variants]
            spaces = [(space, storage / "variants" / space.name, 1) for space in variants]
        elif self.ablation:
            given = self._variants(self.ablation, rotation, arrays)
        else:
            spaces = [(self.space, storage, self.options.selection.top)]
        spaces += [(space, storage / "baselines" / space.name, 1) for space in self.baselines]
        searched = [(space, of_space, top) for space, of_space, top in spaces if space.knobs]
        found, interrupted = self._search(searched, rotation, arrays) if searched else ([], False)
        for space, _, _ in spaces:
            if not space.knobs and not interrupted:  # nothing to search: there is just one configuration
                found += self._on_folds(space, [space.method], [space.config()], [f"{space.name}-0000"], arrays)
        return given + found, interrupted

    def _search(
        self, searched: Sequence[tuple[Space, Storage, int]], rotation: int, arrays: Any
    ) -> tuple[list[dict[str, Any]], bool]:
        """Search spaces, or what is left of that: each one's best so many, and whether Ctrl-C ended it."""
        search, resources = self.options.search, self.options.resources
        with ExitStack() as stack:
            searches, known = [], []
            packs = self.plan.packs
            for space, storage, _ in searched:
                ledger = stack.enter_context(self._open_ledger(space, rotation, storage))
                known.append({c.index for c in ledger.finished()})
                searcher = PackSearcher(
                    ledger,
                    space,
                    configs=search.configs,
                    pack=packs.get(space.name, packs[self.space.name]),  # a variant's is its space's
                    sampler=search.sampler,
                    seed=search.seed,
                )
                train = functools.partial(
                    train_lanes, criterion=self.criterion, precision=self._precision(space, arrays)
                )
                mirror = None if storage.is_local or ledger.url else storage
                searches.append(Search(searcher=searcher, train=train, mirror=mirror))
            of_study, first = searched[0][1], searches[0].searcher.ledger
            outcomes = run_searches(
                searches,
                arrays,
                epochs=search.epochs,
                rungs=tuple(rung_epochs(search.epochs)) if search.halves else (),
                cpus_per_pack=resources.cpus_per_pack,
                gpus_per_pack=resources.gpus_per_pack,
                workers_per_pack=resources.workers_per_pack,
                refill=search.refill,
                checkpoints=of_study,
                checkpoint_every=resources.checkpoint_every,
                console=self.console,
                look=functools.partial(write_report, of_study, ledger=first) if of_study.is_local else None,
            )
            candidates = []
            for (space, of_storage, top), of_space, outcome, before in zip(
                searched, searches, outcomes, known, strict=True
            ):
                ledger = of_space.searcher.ledger
                if ledger.url:
                    self._keep_journal(ledger, of_storage)
                candidates += [self._candidate(space, c) for c in ledger.best(top)]
                if self.options.output.log:
                    new = [c for c in ledger.finished() if c.index not in before]
                    log_configurations(self.options.output.log, new, study=self.name, folder=ledger.folder)
                self.per_minute[space.name] = round(60 * outcome.trained / max(outcome.seconds, 1e-9), 1)
        return candidates, any(outcome.interrupted for outcome in outcomes)

    def _open_ledger(self, space: Space, rotation: int, storage: Storage) -> Ledger:
        """A space's ledger, to be gone on with if it is there and `--resume` was given."""
        search, selection = self.options.search, self.options.selection
        folder = self._ledger_folder(storage)
        identity = {
            "benchmark": self.features.benchmark,
            "clip": self.features.clip,
            "fingerprint": self.features.fingerprint,
            "rotation": rotation,
            **{k: getattr(search, k) for k in ("epochs", "pruning", "sampler", "seed")},
            **{k: getattr(selection, k) for k in ("select", "folds")},
            "criterion": self.criterion,
            "precision": self.options.resources.precision,
        }
        return open_ledger(
            folder,
            space=space,
            objective=search.objective,
            identity=identity,
            resume=self.options.output.resume,
            url=self.options.output.ledger,
            name=self.name + storage.root.removeprefix(self.storage.root),
        )

    @staticmethod
    def _keep_journal(ledger: Ledger, storage: Storage) -> None:
        """What is in the database, for the report and whoever has the study's folder only."""
        journal = ledger.write_journal()
        if not storage.is_local:
            push(storage, journal)

    def _candidate(self, space: Space, c: Configuration) -> dict[str, Any]:
        """A searched configuration, with the inference-time knobs that were found for it."""
        return {
            "config": space.config(**c.params, **swept_values(space, c.metrics)),
            "row": {
                "method": space.method,
                "config_id": c.config_id,
                "val_score": c.score,
                "metrics": c.metrics,
                "pareto": c.pareto,
            },
            "space": self.space.name if self.ablation else space.name,
        }

    def _variants(self, ablation: Ablation, rotation: int, arrays: Any) -> list[dict[str, Any]]:
        """An ablation's configurations: the winner's (or the space's default) knobs, each variant's own on top."""
        params = self.space.defaults()
        if self.options.selection.winner:
            params = winner_params(self.options.selection.winner, self.space, rotation)
        configs = [self.space.config(**{**params, **changes}) for changes in ablation.variants.values()]
        methods = [ablation.method(name) for name in ablation.variants]
        return self._on_folds(
            self.space, methods, configs, [f"{ablation.name}-{i}" for i in range(len(configs))], arrays
        )

    def _candidate_of_row(self) -> dict[str, Any]:
        """The configuration of `--rerun` with what selection said of it then."""
        kept = ("method", "config_id", "val_score", "pareto")
        return {
            "config": self.space.config(**self.row["params"]),
            "row": {k: self.row[k] for k in kept} | {"metrics": {k: self.row[k] for k in ("val_h_mean", "val_h_std")}},
            "space": self.space.name,
        }

    def _on_folds(
        self, space: Space, methods: list[str], configs: list[Any], ids: list[str], arrays: Any
    ) -> list[dict[str, Any]]:
        """Given configurations scored like searched ones, their inference-time knobs found; diverged ones left out."""
        resources = self.options.resources
        results = score_on_folds(
            configs,
            seed=self.options.search.seed,
            arrays=arrays,
            epochs=self.options.search.epochs,
            criterion=self.criterion,
            cpus=resources.cpus_per_pack,
            gpus=resources.gpus_per_pack,
        )
        return [
            {
                "config": replace(config, **swept_values(space, result.metrics)),
                "row": {"method": method, "config_id": id_, "val_score": result.score, "metrics": result.metrics},
                "space": space.name,
            }
            for method, config, id_, result in zip(methods, configs, ids, results, strict=True)
            if result.state == "complete"
        ]

    def _precision(self, space: Space, arrays: Any) -> Precision:
        """`--precision`; auto decides once per search and not per pack, so that the seed decides with it."""
        resources = self.options.resources
        if resources.precision != "auto":
            return resources.precision
        # on CPUs float32: with AVX512-bf16 a step of SRE-CLIP took 8.7 ms per lane either way (casts eat the gain),
        # one of PVA 10.3 instead of 15.0, and then a lane depends on its pack
        if not resources.gpus_per_pack:
            return "float32"
        lr = float(space.config().lr)
        configs = [space.config(**space.defaults() | {"lr": lr * 2 ** (i / 2 - 2)}) for i in range(8)]
        task = ray.remote(precision_on_worker).options(
            num_cpus=resources.cpus_per_pack, num_gpus=resources.gpus_per_pack
        )
        return ray.get(task.remote(arrays, configs, resources.cpus_per_pack, resources.gpus_per_pack, self.criterion))

    def _refit(self, configs: list[Any], seeds: list[int], arrays: Any, storage: Storage) -> list[Refit]:
        resources = self.options.resources
        return refit(
            configs,
            seeds=seeds,
            arrays=arrays,
            epochs=self.options.search.epochs,
            cpus=cpus_per_worker(resources.refit_workers, resources.cpus_per_pack, resources.gpus_per_pack),
            gpus=resources.gpus_per_pack,
            workers=resources.refit_workers,
            checkpoint_every=resources.checkpoint_every,
            storage=storage,
        )

    def _export(
        self,
        storage: Storage,
        scored: list[Scored],
        trained: Mapping[str, tuple[Any, Refit]],
        evaluation: Evaluation,
        provenance: Mapping[str, Any],
    ) -> None:
        """Every refitted row's adapter, of its first seed, into adapters/<rank>."""
        storage.clear("adapters")  # an earlier run of the study may have ranked otherwise
        clip = read_manifest(self.cache).checkpoint
        for of_row in scored:
            if of_row.row.config_id not in trained:
                continue
            config, done = trained[of_row.row.config_id]
            write_adapter(
                storage,
                f"adapters/{of_row.row.rank}",
                make_adapter(config, provenance["seeds"][0], done.weights, evaluation.data, self.features, clip),
                row=of_row.row,
                metrics=evaluation.metrics(of_row.predictions_ST[:1])[0],
                provenance=provenance,
            )

    def _check_folder(self, space: str) -> None:
        """Refuse a folder that holds a study, or, with `--resume`, another one. Raises `UserError`."""
        study, search, selection = self.options.study, self.options.search, self.options.selection
        identity = {
            "space": space,
            "benchmark": self.benchmark,
            **{name: getattr(study, name) for name in ("clip", "rotation", "templates")},
            **{name: getattr(search, name) for name in ("epochs", "seed", "objective")},
            **{name: getattr(selection, name) for name in ("select", "folds")},
            "ledger": self.options.output.ledger,
        }
        self.identity = json.loads(json.dumps(identity))  # as it is read again
        content = self.storage.read(IDENTITY)
        if content is None:
            return
        theirs = json.loads(content)
        if not self.options.output.resume:
            raise UserError(f"--name must be new or --resume given: {self.storage.shown} already holds a study")
        differing = [name for name in self.identity if theirs.get(name) != self.identity[name]]
        if differing:
            shown = "; ".join(f"{n} was {theirs.get(n)!r}, now {self.identity[n]!r}" for n in differing)
            raise UserError(
                f"--resume must repeat the study's options, {self.storage.shown} holds another study: {shown}"
            )

    # --- around them ------------------------------------------------------------------------------------------------

    def _in_cache(self, data: TrialData) -> dict[str, InCache]:
        """Large features that the nodes map for themselves, where all of them see the cache: from a URI, or alone."""
        alone = self._address is None and len(ray.nodes()) == 1
        return in_cache(data, self.features, str(self.cache)) if alone or "://" in str(self.cache) else {}

    @property
    def _address(self) -> str | None:
        return self.options.resources.address or os.environ.get("RAY_ADDRESS")

    def _start_ray(self) -> None:
        if ray.is_initialized():
            return
        address = self._address
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming change of default, and no warning
        if address:  # its nodes have the project, or get it with the job's working directory
            start_ray(address)
            return
        project = str(Path(__file__).resolve().parents[2])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
        start_ray("local")  # another cluster that happens to run on this machine is not ours

    def _prepare(self) -> Path | str:
        study = self.options.study
        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            tasks: dict[str, TaskID] = {}

            def progress(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage)
                    if not self.console.is_terminal:
                        self.console.print(
                            f"preparing {stage}: {total} {'shards' if stage == 'features' else 'images'}"
                        )
                bars.update(tasks[stage], completed=done, total=total)

            options = FeatureOptions(
                benchmark=self.benchmark,
                clip=study.clip,
                data_root=study.data_root,
                cache_dir=self.options.output.cache,
                allow_partial=study.allow_partial,
                templates=study.templates,
                max_rejected=study.max_rejected,
            )
            return prepare(options, progress)

    def _ledger_folder(self, storage: Storage) -> Path:
        """Optuna's journal needs a local file: beside the outputs, or, for a URI, in the cache, and copied there."""
        if storage.is_local:
            return Path(storage.root)
        cache = self.options.output.cache
        folder = Path(".cache" if "://" in cache else cache) / "ledgers" / storage.root
        pull(storage, folder / JOURNAL)
        return folder

    @property
    def reference(self) -> str:
        """Method on the leaderboard that the others are compared with: the study's own, or an ablation's full model."""
        if self.row:
            return str(self.row["method"])
        return self.ablation.method(next(iter(self.ablation.variants))) if self.ablation else self.space.method

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started

    def _provenance(self, rotation: int | None = None) -> dict[str, Any]:
        """All that is needed to run the study (or the one rotation) again, and where it ran."""
        return {
            "name": self.name if rotation is None else f"{self.name}, rotation {rotation}",
            "command": command(),
            "reference": self.reference,
            "criterion": self.criterion,
            "data": self.plan.images,
            "concurrent": self.plan.at_once,
            "options": jsonable(asdict(self.options)),
            "feature_fingerprint": self.features.fingerprint,
            **machine_and_versions(),
            "packs": self.plan.packs,
            "megabytes_per_configuration": self.plan.megabytes,
            "configurations_per_minute": self.per_minute,
            "seconds": {stage: round(s, 2) for stage, s in self.seconds.items()},
        }
