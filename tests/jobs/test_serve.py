"""The live view: what it shows, what it refuses, and that it writes nothing."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimbench.cls.recipes.published import knn_handwritten
from mimbench.jobs.cli.serve import Server
from tests.jobs.runs import Runs


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Runs, int]]:
    """Some runs, and the port of a server that shows them."""
    runs = Runs(tmp_path / "runs")
    pretrained = runs.pretrain()
    pretrained.log.write_text("reading <b>images</b>\ndone\n")
    lines = [{"step": step, "loss": 1 / step, "memory": 2**30} for step in (1, 2, 3)]
    pretrained.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pretrained.plots.mkdir()
    (pretrained.plots / "a b.png").write_bytes(b"a picture")
    (pretrained.plots / "notes.txt").write_text("not given out")
    runs.evaluate("cls/linear_handwritten", {"linear_top1": 75.9}, pretrained)
    failed = runs.new("cls/knn_handwritten", knn_handwritten())
    failed.end_attempt(failed.begin_attempt(), "failed", "the data are no good")
    with Server(runs.root, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield runs, server.server_address[1]
        server.shutdown()
        thread.join()


def _get(port: int, path: str, host: str = "localhost", method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_runs_states_curves_logs_and_tables(site: tuple[Runs, int]) -> None:
    runs, port = site
    before = {path: path.stat().st_mtime_ns for path in runs.root.rglob("*") if path.is_file()}
    code, page, headers = _get(port, "/")
    assert code == 200
    assert page.count("/run/") == 3
    assert "the data are no good" in page
    assert "1 failed" in page
    assert "<script" not in page
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert _get(port, "/?state=failed")[1].count("/run/") == 1
    [name] = [f"pretrain/{path.parent.name}" for path in runs.root.glob("pretrain/*/run.json")]
    code, page, _ = _get(port, f"/run/{name}")
    assert code == 200
    assert page.count("<svg") == 2, "loss and memory"
    assert "memory (MiB)" in page
    assert "reading &lt;b&gt;images" in page
    assert "a%20b.png" in page
    assert _get(port, f"/picture/{name}/a%20b.png")[1] == "a picture"
    assert "75.9" in _get(port, "/tables")[1]
    assert "crossmae/table2" in _get(port, "/tables")[1]
    assert "52.1" in _get(port, "/paper/crossmae/table2")[1]
    assert {row["state"] for row in json.loads(_get(port, "/api/runs")[1])} == {"done", "failed"}
    assert {path: path.stat().st_mtime_ns for path in runs.root.rglob("*") if path.is_file()} == before


def test_nothing_else_is_given_out(site: tuple[Runs, int]) -> None:
    runs, port = site
    [name] = [f"pretrain/{path.parent.name}" for path in runs.root.glob("pretrain/*/run.json")]
    for path in (
        f"/picture/{name}/notes.txt", f"/picture/{name}/..%2Fconfig.txt", "/../../etc/passwd", "/run/x/y", "/paper/x",
        "/run/cls/..%2f..", "/picture/cls/../../../etc/passwd",
    ):  # fmt: skip
        assert _get(port, path)[0] == 404, path
    assert _get(port, "/", host="attacker.example")[0] == 403
    assert _get(port, "/", method="POST")[0] == 501
    assert _get(port, "/", method="HEAD")[:2] == (200, "")
