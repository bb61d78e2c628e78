"""Push an adapter to a hub: a server on this machine that answers as the Hugging Face hub's API does."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

from data_prep.errors import UserError
from data_prep.storage import locate
from study.outputs.hub import check_push, push_adapter


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub with the repositories that were made, and the files that were committed."""
    state = SimpleNamespace(made=[], files={}, refuse=False)

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Authorization"] == "Bearer hf_of_this_test"
            if state.refuse:
                return self.answer({"error": "You do not have the rights"}, 403)
            if self.path == "/api/repos/create":
                state.made.append(json.loads(body))
                return self.answer({"url": f"{address}/someone/adapter"})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if self.path == "/api/models/someone/adapter/preupload/main":
                files = [f["path"] for f in json.loads(body)["files"]]
                modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in files]
                return self.answer({"files": modes})
            assert self.path == "/api/models/someone/adapter/commit/main"
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    state.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(
                {"success": True, "commitUrl": f"{address}/someone/adapter/commit/1", "commitOid": "1" * 40}
            )

        def answer(self, content: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()


def test_the_selected_adapter_is_pushed_whole_with_a_card_that_the_hub_reads(
    small_study: Path, hub: SimpleNamespace
) -> None:
    check_push("someone/adapter")
    push_adapter(locate(str(small_study)), "adapters/selected", "someone/adapter")
    assert [(made["name"], made["visibility"]) for made in hub.made] == [("adapter", "private")]
    folder = small_study / "adapters" / "selected"
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    card = ModelCard(hub.files["README.md"].decode()).data
    assert card.license == "other" and card.metrics == ["accuracy"] and "zero-shot" in card.tags
    row = json.loads((folder / "config.json").read_text())["leaderboard"]
    assert row["selected"] and card.eval_results[0].dataset_name == "icons2emoji"
    assert [r.metric_name for r in card.eval_results] == ["S", "U", "H"]
    head = yaml.safe_load(hub.files["README.md"].decode().split("---")[1])
    assert "base_model" not in head and "datasets" not in head  # neither is on the hub
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        assert file.metadata()["config_id"] == row["config_id"] and file.metadata()["method"] == "SREConfig"


def test_what_cannot_be_pushed_is_one_line(
    small_study: Path, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="push must be USER/NAME of the Hugging Face hub; got 'adapter'"):
        check_push("adapter")
    with pytest.raises(UserError, match="push must be USER/NAME of the Hugging Face hub; got 'a b/c'"):
        check_push("a b/c")
    with pytest.raises(UserError, match="push must have an adapter to push; .* has none"):
        push_adapter(locate(str(small_study)), "adapters/none", "someone/adapter")
    hub.refuse = True
    with pytest.raises(UserError, match="push someone/adapter cannot be written on the Hugging Face hub: "):
        push_adapter(locate(str(small_study)), "adapters/selected", "someone/adapter")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="push needs a login: run hf auth login, or set HF_TOKEN"):
        check_push("someone/adapter")
