"""cluster.yaml, checked offline: what Ray checks, what only AWS would (`node_config`), what keeps it closed and cheap.

No machine is started: that the AMI and the images exist, and what they contain, is beyond these tests.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.model import ListShape, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import hash_launch_conf, prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).resolve().parents[1]
EXPORT = "export RAY_AUTH_MODE=token;"
SECRET = re.compile(r"AKIA|ASIA|aws_secret|BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{64}\b")

Config = dict[str, Any]


def load() -> Config:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


# --- the checks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run_instances() -> StructureShape:
    """What EC2's RunInstances takes, from the model inside botocore: no network, no credentials."""
    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def bad_enums(value: Any, shape: Shape, path: str) -> Iterator[str]:
    """Values outside their enumeration, which botocore's own validator lets through to the service."""
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        for key in value.keys() & shape.members.keys():
            yield from bad_enums(value[key], shape.members[key], f"{path}.{key}")
    elif isinstance(shape, ListShape) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from bad_enums(item, shape.member, f"{path}[{index}]")
    elif isinstance(shape, StringShape) and shape.enum and value not in shape.enum:
        yield f"{path}: {value!r} is not a {shape.name}"


def node_problems(config: Config, shape: StructureShape) -> Iterator[str]:
    """Unknown keys, wrong types and values in each `node_config`, of which Ray only knows that it is a mapping."""
    for name, node_type in config["available_node_types"].items():
        # Ray adds the counts at launch
        request = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, shape)
        if report.has_errors():
            yield f"{name}: {report.generate_report()}"
        yield from bad_enums(request, shape, name)
        if not re.fullmatch(r"ami-[0-9a-f]{17}", str(request.get("ImageId"))):  # else Ray takes an old one of its own
            yield f"{name}: ImageId is not pinned"
        if request.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: instance credentials can be read without a session token"


def own_problems(config: Config) -> Iterator[str]:
    """What the project asks of the file beyond its being valid."""
    for stage in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[stage]:
            if not command.startswith(EXPORT):
                yield f"{stage}: no token export in {command!r}"
    if "--dashboard-host=127.0.0.1" not in config["head_start_ray_commands"][-1]:
        yield "dashboard is not on the loopback"
    if "~/.ray/auth_token" not in config["file_mounts"].values():
        yield "token is not mounted"
    if config["provider"].get("security_group", {}).get("IpPermissions"):
        yield "security group is opened"
    if config["provider"]["cache_stopped_nodes"]:
        yield "stopped machines keep their disks"
    if not 0 < config["idle_timeout_minutes"] <= 15:
        yield "idle workers stay"
    for name, kind in config["available_node_types"].items():  # else Ray gives the head all of EC2 and S3, workers none
        if not kind["node_config"].get("IamInstanceProfile", {}).get("Name", "").startswith("zerosweep-"):
            yield f"{name}: no instance profile of its own"
    installs = [config.get(f"{kind}setup_commands", []) for kind in ("", "head_", "worker_")]
    if any("pip install" in command for commands in installs for command in commands):
        yield "nodes install at every start"
    if not any(option.startswith("-e ZEROSWEEP_STORAGE=s3://") for option in config["docker"]["run_options"]):
        yield "storage is not on S3"
    workers = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    if any(kind.get("min_workers", 0) for kind in workers):
        yield "idle cluster keeps GPU workers"
    spot = [kind.get("priority", 0) for kind in workers if "InstanceMarketOptions" in kind["node_config"]]
    paid = [kind.get("priority", 0) for kind in workers if "InstanceMarketOptions" not in kind["node_config"]]
    if not (spot and paid and min(spot) > max(paid)):
        yield "spot workers do not come before on-demand ones"
    if found := SECRET.search(yaml.safe_dump(config)):
        yield f"looks like a secret: {found.group()[:4]}..."


def problems(config: Config, shape: StructureShape) -> list[str]:
    config = copy.deepcopy(config)
    try:
        validate_config(prepare_config(config))
    except Exception as error:  # of several libraries; any of them is the finding
        return [f"Ray: {error}"]
    return [*node_problems(config, shape), *own_problems(config)]


# --- the file --------------------------------------------------------------------------------------------------------


def test_cluster_yaml_has_no_problem(run_instances: StructureShape) -> None:
    assert problems(load(), run_instances) == []


# --- that the checks see mistakes ------------------------------------------------------------------------------------

SPOT = "available_node_types.gpu_spot"
HEAD = "available_node_types.head.node_config"
MISTAKES = [
    ("idle_timeout_minuts", 5, "Ray: Additional properties"),
    (f"{SPOT}.min_worker", 0, "Ray: Additional properties"),
    ("head_node_type", "haed", "Ray: `head_node_type`"),
    (f"{HEAD}.InstanceTyp", "m7i.xlarge", "Unknown parameter"),
    (f"{HEAD}.InstanceType", "m7i.xlagre", "is not a InstanceType"),
    (f"{HEAD}.ImageId", "latest_dlami", "ImageId is not pinned"),
    (f"{HEAD}.MetadataOptions.HttpTokens", "optional", "without a session token"),
    (f"{HEAD}.BlockDeviceMappings.0.Ebs.VolumeSize", "150 GB", "Invalid type"),
    (f"{HEAD}.BlockDeviceMappings.0.Ebs.VolumeTyp", "gp3", "Unknown parameter"),
    (f"{HEAD}.BlockDeviceMappings.0.Ebs.VolumeType", "gp4", "is not a VolumeType"),
    (f"{SPOT}.node_config.InstanceMarketOptions.MarketType", "sopt", "is not a MarketType"),
    (f"{SPOT}.min_workers", 1, "keeps GPU workers"),
    (f"{SPOT}.priority", 0, "before on-demand"),
    ("head_start_ray_commands.0", "ray stop", "no token export"),
    ("worker_start_ray_commands.1", "ray start --address=$RAY_HEAD_IP:6379", "no token export"),
    ("head_start_ray_commands.1", f"{EXPORT} ray start --head --dashboard-host=0.0.0.0", "not on the loopback"),
    ("file_mounts", {"/home/ray/zerosweep": "."}, "token is not mounted"),
    ("provider.security_group", {"IpPermissions": [{"FromPort": 8265, "ToPort": 8265}]}, "group is opened"),
    ("provider.cache_stopped_nodes", True, "keep their disks"),
    ("idle_timeout_minutes", 600, "idle workers stay"),
    (f"{HEAD}.IamInstanceProfile", {}, "no instance profile"),
    (f"{SPOT}.node_config.IamInstanceProfile", {"Nam": "zerosweep-worker"}, "Unknown parameter"),
    ("setup_commands", ["pip install -e ."], "install at every start"),
    ("docker.run_options", [], "not on S3"),
    ("provider.aws_credentials", {"aws_secret_access_key": "x"}, "looks like a secret"),
]


@pytest.mark.parametrize(("path", "value", "finding"), MISTAKES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_mistake_is_found(path: str, value: Any, finding: str, run_instances: StructureShape) -> None:
    config = copy.deepcopy(load())
    *parents, last = path.split(".")
    place: Any = config
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    assert [p for p in problems(config, run_instances) if finding in p]


# --- what Ray's scheduler makes of the types -------------------------------------------------------------------------


def launched(config: Config, gpus: int, **request: Any) -> dict[str, int]:
    """Workers that Ray's autoscaler would start for packs of one GPU each, on a cluster without any node."""
    config = prepare_config(copy.deepcopy(config))
    node_types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=kind["min_workers"],
            max_worker_nodes=kind["max_workers"],
            priority=kind.get("priority", 0),
            resources={"CPU": 4} if name == config["head_node_type"] else {"CPU": 4, "GPU": 1},  # as AWS describes them
            launch_config_hash=hash_launch_conf(kind["node_config"], config["auth"]),
        )
        for name, kind in config["available_node_types"].items()
    }
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=node_types,
            max_num_nodes=config["max_workers"],  # Ray counts one more, for the head
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make({"CPU": 1, "GPU": 1}) for _ in range(gpus)]
            ),
            **request,
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_no_worker_without_demand() -> None:
    assert launched(load(), gpus=0) == {}


def test_spot_comes_first_and_on_demand_takes_the_rest() -> None:
    config = load()
    limits = {name: config["available_node_types"][name]["max_workers"] for name in ("gpu_spot", "gpu_on_demand")}
    assert launched(config, gpus=2) == {"gpu_spot": 2}
    assert launched(config, gpus=100) == limits
    assert sum(limits.values()) == config["max_workers"]


def test_on_demand_stands_in_for_spot_machines_that_did_not_come_up() -> None:
    unavailable = {"gpu_spot": 0.0}
    assert launched(load(), gpus=2, recoverable_resource_availabilities=unavailable) == {"gpu_on_demand": 2}
