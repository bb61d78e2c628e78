"""What a study listens on, what it reads, and where it writes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from small import run

import search_spaces
from data_prep.errors import UserError
from study.pipeline.candidates import candidate_of_row
from study.run import main

ROOT = Path(__file__).parents[2]

LISTENING = """
import ipaddress
import psutil
from study.run import listen_on_loopback

listen_on_loopback()
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
ray.get(ray.remote(lambda: 1).remote())
own = [psutil.Process(), *psutil.Process().children(recursive=True)]
hosts = [c.laddr.ip for p in own for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
assert len(hosts) >= 3, hosts
print({h for h in hosts if not ipaddress.ip_address(h.removeprefix("::ffff:")).is_loopback})
"""


def test_nothing_listens_beyond_loopback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], capture_output=True, text=True, timeout=200, cwd=ROOT, env=_environment()
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/usr/sbin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(Path.home())}


def test_token_authentication_is_never_switched_off() -> None:
    for path in [p for folder in ("study", "data_prep", "models") for p in (ROOT / folder).rglob("*.py")]:
        assert "RAY_AUTH_MODE" not in path.read_text(), path


def test_no_file_is_unpickled() -> None:
    """Safetensors, JSON, CSV, Parquet and Arrow only: reading a file must not run code."""
    for path in [p for folder in ("study", "data_prep", "models") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"torch.load", "pd.read_pickle", "eval", "exec"}, (path, called)
                assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs 2", "--name must be new or --resume given"),
        ("--epochs 3 --resume", "--resume must repeat the study's options"),
        ("--space sre-ablation --resume", "space was 'sre', now 'sre-ablation'"),
        ("--space sre-ablation", "already holds a study"),
        ("--rotation all --resume", "rotation was 0, now 'all'"),
        ("--name ../small", "--name must be letters"),
    ],
)
def test_another_studys_folder_is_refused(
    arguments: str, message: str, small_study: Path, embedded_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in small_study.rglob("*") if p.is_file()}
    assert run(small_study.parent, embedded_cache, "--name", "small", *arguments.split()) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert {p: p.read_bytes() for p in small_study.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("option", ["--storage", "--cache"])
def test_credentials_in_an_address_are_refused_before_any_work(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--storage": str(tmp_path / "results"), option: "s3://AKIA:s3cret@bucket/folder"}
    assert main([word for pair in given.items() for word in pair]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith(f"error: {option} must be a URI without credentials") and "s3cret" not in error
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("config_id", ["../../stolen", "a/b", "..", "", "/etc/x", 3])
def test_a_crafted_row_cannot_name_a_file_outside_the_study(config_id: object) -> None:
    space = search_spaces.load("sre")
    assert isinstance(space, search_spaces.Space)
    row = {"params": {}, "method": "SRE-CLIP", "config_id": config_id, "val_criterion": "h", "pareto": False}
    row |= {"val_h_mean": 0.5, "val_h_std": 0.1}
    with pytest.raises(UserError, match="^rerun must be a row"):
        candidate_of_row(space, row)
    assert candidate_of_row(space, row | {"config_id": "sre-0003"}).entry.config_id == "sre-0003"
