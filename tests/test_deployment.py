"""Dockerfile, constraints, the Kubernetes manifest and the Slurm script: valid, and in agreement with the project.

Nothing is started here: `tests/cluster/` has the scripts that run them. KubeRay's own schema of a RayJob is 1.4 MB, and
is not kept here; `RAYJOB` below is what the manifest uses of it, after the custom resource definition `rayjobs.ray.io`
of KubeRay 1.7.0 (Apache-2.0, github.com/ray-project/kuberay), whose versions 1.5.1 and 1.6.2 the manifest fits, too.
"""

import copy
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from study.options import Options

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SBATCH = ROOT / "study/cluster/slurm.sbatch"
IN_THE_IMAGE = "/home/ray/zerosweep"

Document = dict[str, Any]


def pins() -> dict[str, Version]:
    """The versions in constraints.txt by the packages' normalised names."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def rayjob() -> tuple[Document, Document]:
    """The manifest's two documents: the claim of a volume, and the job."""
    claim, job = yaml.safe_load_all((ROOT / "study/cluster/rayjob.yaml").read_text())
    return claim, job


# --- constraints and image -------------------------------------------------------------------------------------------


def test_constraints_pin_each_direct_dependency_to_a_version_that_the_project_accepts() -> None:
    versions = pins()
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert versions.pop(requirement.name.replace("_", "-").lower()) in requirement.specifier, line
    assert set(versions) == {"boto3", "psycopg"}  # what the Dockerfile installs beside them


def test_dockerfile_has_the_project_s_python_and_installs_what_it_copies() -> None:
    python = PROJECT["requires-python"].removeprefix(">=")
    assert re.search(rf"^FROM python:{re.escape(python)}-slim-", DOCKERFILE, re.MULTILINE)
    assert f"WORKDIR {IN_THE_IMAGE}\n" in DOCKERFILE
    copied = {path for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]}
    packages = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists() and p.name != "tests"}
    assert packages <= copied
    assert all((ROOT / path).exists() for path in copied)
    assert PROJECT["readme"] in copied


def test_cluster_yaml_and_manifest_run_the_dockerfile_s_image() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    image = f"zerosweep:{PROJECT['version']}"
    assert cluster["docker"]["image"].endswith(f"/{image}")
    assert f"REGISTRY/{image} ." in DOCKERFILE
    pods = pods_of(rayjob()[1])
    assert {container["image"] for pod in pods for container in pod["containers"]} == {f"CHANGE/{image}"}
    # today's code covers the image's, at the same path
    assert cluster["file_mounts"][IN_THE_IMAGE] == "."
    assert cluster["setup_commands"] == []


def test_images_named_instead_of_our_own_have_the_pinned_ray() -> None:
    ray, python = pins()["ray"], PROJECT["requires-python"].removeprefix(">=").replace(".", "")
    text = (ROOT / "cluster.yaml").read_text()
    assert set(re.findall(r"rayproject/ray:\S+", text)) == {f"rayproject/ray:{ray}-py{python}{x}" for x in ("", "-gpu")}
    assert f'"ray[default]=={ray}"' in text  # on the machine that calls `ray up`


# --- the manifest ----------------------------------------------------------------------------------------------------

QUANTITY = {"type": "string", "pattern": r"^\d+(m|Mi|Gi)?$"}
INTEGER = {"type": "integer", "minimum": 0}
STRING = {"type": "string"}


def record(required: str = "", **properties: Document) -> Document:
    """A schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": required.split(),
    }


def sequence(items: Document) -> Document:
    return {"type": "array", "items": items, "minItems": 1}


def quantities(*names: str) -> Document:
    return record(**dict.fromkeys(names, QUANTITY))


RESOURCES = record(
    "requests limits",
    requests=quantities("cpu", "memory", "nvidia.com/gpu"),
    limits=quantities("cpu", "memory", "nvidia.com/gpu"),
)
POD = record(
    "containers",
    containers=sequence(
        record(
            "name image resources",
            name={"type": "string", "pattern": "^[a-z0-9-]+$"},
            image=STRING,
            resources=RESOURCES,
            volumeMounts=sequence(record("name mountPath", name=STRING, mountPath=STRING)),
            securityContext=record(
                allowPrivilegeEscalation={"type": "boolean"}, capabilities=record(drop=sequence(STRING))
            ),
        )
    ),
    securityContext=record(runAsNonRoot={"type": "boolean"}, runAsUser=INTEGER, fsGroup=INTEGER),
    tolerations=sequence(
        record(
            key=STRING,
            operator={"enum": ["Exists", "Equal"]},
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    volumes=sequence(
        record(
            "name",
            name=STRING,
            persistentVolumeClaim=record("claimName", claimName=STRING),
            emptyDir=record(medium={"enum": ["Memory"]}, sizeLimit=QUANTITY),
        )
    ),
)
TEMPLATE = record("spec", spec=POD)
PARAMETERS = {"type": "object", "additionalProperties": STRING}  # of `ray start`: numbers must be quoted
RAYJOB = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record("name", name=STRING),
    spec=record(
        "entrypoint rayClusterSpec",
        entrypoint=STRING,
        backoffLimit=INTEGER,
        activeDeadlineSeconds=INTEGER,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=INTEGER,
        rayClusterSpec=record(
            "headGroupSpec",
            rayVersion=STRING,
            authOptions=record(mode={"enum": ["disabled", "token"]}),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=record(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=INTEGER, resources=RESOURCES),
            headGroupSpec=record("template", rayStartParams=PARAMETERS, template=TEMPLATE),
            workerGroupSpecs=sequence(
                record(
                    "groupName maxReplicas minReplicas template",
                    groupName=STRING,
                    replicas=INTEGER,
                    minReplicas=INTEGER,
                    maxReplicas=INTEGER,
                    rayStartParams=PARAMETERS,
                    template=TEMPLATE,
                )
            ),
        ),
    ),
)


def pods_of(job: Document) -> list[Document]:
    """The pods' specifications: the head's, then each group's of workers."""
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def problems(job: Document) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(RAYJOB).iter_errors(job)]


def test_manifest_has_known_fields_alone() -> None:
    assert problems(rayjob()[1]) == []


@pytest.mark.parametrize(
    ("path", "value", "finding"),
    [
        ("spec.ttlSecondsAfterFinish", 5, "unexpected"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "not one of"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "not of type 'string'"),
        ("spec.rayClusterSpec.autoscalerOptions.idleTimeoutSeconds", "5m", "not of type 'integer'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", 5, "unexpected"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.template.spec.toleration", [], "unexpected"),
    ],
)
def test_a_mistake_in_the_manifest_is_found(path: str, value: Any, finding: str) -> None:
    job = copy.deepcopy(rayjob()[1])
    *parents, last = path.split(".")
    place: Any = job
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    assert [problem for problem in problems(job) if finding in problem]


def test_manifest_s_cluster_is_closed_small_and_temporary() -> None:
    claim, job = rayjob()
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert Version(cluster["rayVersion"]) == pins()["ray"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    assert cluster["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert {(g["replicas"], g["minReplicas"]) for g in groups.values()} == {(0, 0)}
    for pod in pods_of(job):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts["/data"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["containers"][0]["resources"]["requests"] == pod["containers"][0]["resources"]["limits"]
    gpus = groups["gpu"]["template"]["spec"]
    assert gpus["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # caches are written by all nodes


def test_manifest_s_command_is_one_that_the_project_takes() -> None:
    python, script, *arguments = shlex.split(rayjob()[1]["spec"]["entrypoint"])
    assert (python, script) == ("python", f"{IN_THE_IMAGE}/study/run.py")
    options = tyro.cli(Options, args=arguments)
    assert options.resources.address == "auto" and options.output.resume and options.output.name
    assert options.output.storage.startswith("/data/") and str(options.output.cache).startswith("/data/")


# --- the Slurm script and the others ---------------------------------------------------------------------------------

SCRIPTS = [SBATCH, *sorted((ROOT / "tests/cluster").glob("*.sh"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_slurm_s_job_is_told_of_its_end_and_queued_again() -> None:
    directives = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SBATCH.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert directives["signal"] == "B:TERM@60"
    assert "requeue" in directives and directives["open-mode"] == "append"
    assert directives["ntasks-per-node"] == "1"


def test_slurm_s_command_has_options_that_the_project_takes() -> None:
    line = next(line for line in SBATCH.read_text().splitlines() if line.startswith("python study/run.py"))
    given = re.findall(r"--[a-z-]+", line)
    assert given == ["--address", "--storage", "--name", "--resume"]
    options = tyro.cli(Options, args=[*(word for option in given[:3] for word in (option, "x")), "--resume"])
    assert options.output.resume
