"""What a cluster's dashboard and metrics endpoint say of a running study, read with the token that they ask for.

The study runs in a process of its own, on a Ray with a dashboard: `python tests/cluster/test_dashboard.py` prints what
was read. Needs `ray[default]`.
"""

import importlib.util
import io
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

CONFIGS, PACK = 12, 4


def test_gauges_actors_and_jobs_are_read_back_with_the_token() -> None:
    if importlib.util.find_spec("opencensus") is None:
        pytest.skip("the dashboard and its metrics need ray[default]")
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "study")]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    counts = read["counts"]
    assert all(counts.values()) and sum(counts[s] for s in ("complete", "pruned", "failed")) == CONFIGS
    assert read["after"]["configs"] == {s: counts[s] for s in ("complete", "pruned", "failed")}
    assert read["after"]["best_h"] == pytest.approx(counts["best_h"])
    assert read["after"]["best_score"] == pytest.approx(counts["best"])
    assert read["after"]["packs_died_total"] == counts["deaths"] == 1
    assert read["after"]["lanes_alive"] == read["after"]["packs"] == 0
    during = read["during"]
    assert during["packs"] == 1 and 1 <= during["lanes_alive"] <= PACK and 1 <= during["pack_lanes_alive"] <= PACK
    assert during["images_per_second"] > 0 and "gpu_bytes" not in during  # on CPUs alone
    assert read["actors"] == ["packs(study=of/study, spaces=toy, cpus=1)"]
    assert read["jobs"] == [["DRIVER", "RUNNING"]]
    assert read["without token"] == [401, 401]


def main() -> None:
    """A study of the toy space, watched through the dashboard."""
    import ray
    import toy
    from prometheus_client.parser import text_string_to_metric_families
    from rich.console import Console

    from study.cluster.jobs import Search
    from study.cluster.search_run import run_searches
    from study.options import ResourceOptions
    from study.search.ledger import open_ledger
    from study.search.pack_queue import PackQueue

    *others, x = toy.SPACE.knobs
    space = replace(toy.SPACE, knobs=(*others, replace(x, low=0.9, default=0.95)))  # a third fails: x > 0.97
    quick = {"metrics_report_interval_ms": 200}
    context = ray.init(
        address="local", num_cpus=1, include_dashboard=True, dashboard_port=0, log_to_driver=False, _system_config=quick
    )
    toy.register()
    dashboard = f"http://{context.dashboard_url}"
    metrics = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"

    def get(address: str, token: str | None = os.environ["RAY_AUTH_TOKEN"]) -> str:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.read().decode()

    def gauges() -> dict[str, Any]:
        found: dict[str, Any] = {"configs": {}}
        for family in text_string_to_metric_families(get(metrics)):
            for sample in family.samples:
                name = sample.name.removeprefix("ray_zerosweep_")
                if name == "configs":
                    found[name][sample.labels["state"]] = sample.value
                elif name != sample.name and (sample.labels["study"], sample.labels["space"]) == ("of/study", "toy"):
                    found[name] = sample.value
        return found

    def until(what: Callable[[], Any]) -> Any:
        for _ in range(300):
            try:
                if found := what():
                    return found
            except (urllib.error.URLError, ConnectionError):  # the agent is starting
                pass
            time.sleep(0.1)
        raise TimeoutError(str(gauges()))

    def refused(address: str) -> int:
        try:
            get(address, token=None)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    with (
        tempfile.TemporaryDirectory() as name,
        open_ledger(Path(name) / "of" / "study", space=space, identity=toy.IDENTITY) as book,
    ):
        queue = PackQueue(book, space, configs=CONFIGS, pack=PACK, sampler="random", seed=1)
        die = Path(name) / "die"
        die.touch()
        train = partial(toy.Training, seconds=2.0, die_once=die)
        search = Search(queue=queue, training=toy.OPTIONS, train=train)
        run = partial(run_searches, resources=ResourceOptions(), console=Console(file=io.StringIO()))
        study = threading.Thread(target=run, args=([search], toy.trial_data().to_arrays()))
        study.start()
        busy = {"packs", "lanes_alive", "pack_lanes_alive", "images_per_second"}
        during = until(lambda: (g := gauges()) and all(g.get(n) for n in busy) and g)
        found = json.loads(get(f"{dashboard}/api/v0/actors?detail=1&limit=1000"))["data"]["result"]["result"]
        actors = [a["repr_name"] for a in found if a["state"] == "ALIVE" and a["repr_name"]]
        jobs = [[job["type"], job["status"]] for job in json.loads(get(f"{dashboard}/api/jobs/"))]
        study.join()
        counts = queue.counts
        after = until(
            lambda: (g := gauges()) and g["configs"].get("complete") == counts.complete and not g["packs"] and g
        )
    print(
        json.dumps(
            {
                "counts": {n: getattr(counts, n) for n in ("complete", "pruned", "failed", "best", "best_h", "deaths")},
                "during": during,
                "after": after,
                "actors": actors,
                "jobs": jobs,
                "without token": [refused(f"{dashboard}/api/v0/actors"), refused(f"{dashboard}/api/jobs/")],
            }
        )
    )


if __name__ == "__main__":
    main()
