"""Uploading an encoder with its card: the hub's own client against a hub of ours on this machine."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimbench.jobs.cli.hub import push
from tests.jobs.published import Published
from tests.jobs.test_cli import mimbench


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what the client asks when it makes a repository and commits small files to it."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = (
            self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._parts()
        )
        server.asked.append((self.path, self.headers.get("Authorization"), body))
        if server.refuses:
            return self._answer(403, {"error": "You do not own someone/encoder"})
        address = f"http://127.0.0.1:{server.server_port}/someone/encoder"
        if "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return self._answer(200, {"files": [{**one, "shouldIgnore": False} for one in files]})
        commit = {"commitUrl": f"{address}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
        return self._answer(200, {"url": address, "name": "someone/encoder", **commit})

    def _parts(self) -> bytes:
        whole = b""
        while length := int(self.rfile.readline(), 16):
            whole += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.refuses = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    yield server
    server.shutdown()


def test_the_encoder_and_its_card_go_up_in_one_commit(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Published(tmp_path / "runs")
    run = runs.pretraining("pretrain/crossmae_vitb_800ep")
    monkeypatch.setenv("MIMBENCH_RUNS", str(runs.root))
    refused = mimbench("card", run.path.name, "--push", "someone/encoder")
    assert (refused.exit_code, hub.asked) == (1, [])  # nobody said yes
    done = mimbench("card", run.path.name, "--push", "someone/encoder", "--yes")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].endswith("/commit/" + "1" * 40)
    asked = {path: (who, body) for path, who, body in hub.asked}
    who, made = asked["/api/repos/create"]
    assert who == "Bearer hf_made_up"
    assert json.loads(made)["visibility"] == "private"
    lines = [json.loads(line) for line in asked["/api/models/someone/encoder/commit/main"][1].splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert sent["encoder.safetensors"] == run.encoder.read_bytes()
    assert sent["README.md"].decode() == mimbench("card", run.path.name).stdout


def test_what_the_hub_refuses_is_said_in_a_line(tmp_path: Path, hub: Any) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"weights")
    hub.refuses = True
    with pytest.raises(OSError, match=r"someone/encoder was not uploaded: .*do not own") as told:
        push("card", tmp_path / "encoder.safetensors", "someone/encoder")
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="--push encoder is not OWNER/NAME"):
        push("card", tmp_path / "encoder.safetensors", "encoder")


def test_no_hub_no_upload(tmp_path: Path, hub: Any) -> None:
    hub.shutdown()
    hub.server_close()
    (tmp_path / "encoder.safetensors").write_bytes(b"weights")
    with pytest.raises(OSError, match="was not uploaded"):
        push("card", tmp_path / "encoder.safetensors", "someone/encoder")
