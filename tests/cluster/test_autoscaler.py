"""Ray's own autoscaler brings the nodes that packs wait for, from none to two and back; its nodes are processes here.

The cluster is `ray.cluster_utils.AutoscalingCluster` without its two faults: its wheel lacks the provider's example
configuration, and its start and end stop every Ray on the machine, the other tests' included.

`python tests/cluster/test_autoscaler.py` prints what happened; it needs the test's environment.
"""

import contextlib
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

CONFIGS, PACK = 24, 4
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Node id that the provider gives the head."""

CONFIGURATION = {
    "cluster_name": "fake",
    "max_workers": 2,
    "provider": {
        "type": "external",  # as "fake_multinode" it would look for the example file
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": HEAD,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1, "object_store_memory": 10**8}, "node_config": {}, "max_workers": 2},
        # Ray counts a GPU, and there is none
        "gpu": {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 10**8}, "node_config": {}, "max_workers": 1},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.05,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    **{f"{when}_commands": [] for when in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
}


@pytest.mark.by_hand
def test_nodes_come_for_packs_and_go() -> None:
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "study")]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode == 77:
        pytest.skip(f"the fake provider does not start here: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["too large"] == (
        "cpus_per_pack and the GPUs of a pack must fit the cluster, got 3 and 0 for 0 CPUs and 0 GPUs"
    )
    assert found["capacity"] == [1, 2]  # one node came for the question; two are what the study can use
    assert found["finished"] == list(range(CONFIGS)) and found["deaths"] == 0
    assert found["at once"] == 2 and found["nodes"] == 2
    assert found["workers afterwards"] == 0
    assert "Ray counts GPUs on" in found["no CUDA"]


def start(folder: Path) -> str:
    """Start the head with its autoscaler; return the address."""
    import ray

    ip = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((ip, 0))
        port = free.getsockname()[1]
    address = f"{ip}:{port}"
    configuration = json.loads(json.dumps(CONFIGURATION))
    configuration["provider"]["gcs_address"] = address
    (folder / "cluster.json").write_text(json.dumps(configuration))
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    head = ["--head", f"--node-ip-address={ip}", f"--port={port}", "--num-cpus=0", "--num-gpus=0"]
    head += ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *head, f"--temp-dir={folder}/ray"]
    done = subprocess.run(
        [*command, f"--autoscaling-config={folder}/cluster.json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        print(done.stdout[-400:], done.stderr[-400:], file=sys.stderr)
        raise SystemExit(77)
    return address


def end(folder: Path) -> None:
    """End the processes of this cluster: those that name its folder."""
    for _ in range(2):  # the autoscaler may start one more while it ends
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(str(folder) in part for part in process.cmdline()):
                    process.send_signal(signal.SIGKILL)
        time.sleep(0.5)


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Hold a cluster of a head without CPUs; yield its address."""
    with tempfile.TemporaryDirectory(prefix="zs", ignore_cleanup_errors=True) as name:
        try:
            yield start(Path(name))
        finally:
            end(Path(name))


def main(address: str) -> dict[str, Any]:
    """Search the toy space on a cluster without workers; return what was seen."""
    import ray
    import toy
    from rich.console import Console

    from data_prep.errors import UserError
    from study.cluster.capacity import find_capacity
    from study.cluster.jobs import Search
    from study.cluster.search_run import run_searches
    from study.cluster.session import alive_nodes
    from study.cluster.tasks import time_lanes
    from study.options import ResourceOptions
    from study.search.ledger import open_ledger, read_ledger
    from study.search.pack_queue import PackQueue

    began = time.monotonic()

    def step(name: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s: {name}", file=sys.stderr, flush=True)

    def workers() -> int:
        return sum(resources.get("CPU", 0) > 0 for resources in alive_nodes().values())

    def refusal(work: Callable[[], object]) -> str:
        try:
            work()
        except UserError as error:
            return str(error)
        return "not refused"

    ray.init(address=address, log_to_driver=False)
    toy.register()
    step("connected")
    found: dict[str, Any] = {}
    said, resources = io.StringIO(), ResourceOptions()
    console = Console(file=said, width=200)
    found["too large"] = refusal(lambda: find_capacity(ResourceOptions(cpus_per_pack=3), 2, console))
    step(found["too large"])
    capacity = find_capacity(resources, 2, console)
    step(f"{capacity}")
    found["capacity"] = [capacity.now, capacity.most]
    with (
        tempfile.TemporaryDirectory() as name,
        open_ledger(Path(name) / "study", space=toy.SPACE, identity=toy.IDENTITY) as book,
    ):
        queue = PackQueue(book, toy.SPACE, configs=CONFIGS, pack=PACK, sampler="random", seed=1)
        search = Search(queue=queue, training=toy.OPTIONS, train=partial(toy.Training, seconds=4.0))
        arrays = toy.trial_data().to_arrays()
        (done,) = run_searches([search], arrays, resources=resources, requested=capacity.most, console=console)
        found["finished"] = [c.index for c in read_ledger(book.folder).finished()]
    found |= {"deaths": done.counts.deaths, "at once": done.concurrent, "nodes": workers()}
    step("searched")
    for _ in range(60):
        if not workers():
            break
        time.sleep(0.5)
    found["workers afterwards"] = workers()
    step("workers are gone")
    gpu = ResourceOptions(gpus_per_pack=1)
    found["no CUDA"] = refusal(lambda: time_lanes([], toy.trial_data(), gpu, console, votes=False))
    step(found["no CUDA"])
    print(said.getvalue(), file=sys.stderr)
    ray.shutdown()
    return found


if __name__ == "__main__":
    with cluster() as where:
        result = main(where)
    print(json.dumps(result))
