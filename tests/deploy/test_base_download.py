"""The Job's script downloads a checkpoint complete or not at all, here from a hub of this test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/helm/ken-serve/files/download_base.py"
REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 64,
    "vocab.txt": b"[PAD]\n",
    "pytorch_model.bin": b"not asked for",
}


class Hub(ThreadingHTTPServer):
    """What a download asks a hub, for one repository. Files in `broken` end half-way."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.files = dict(FILES)
        self.broken: set[str] = set()


class Request(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        if self.path.startswith("/api/models/team/base/tree/"):
            tree = [
                {"type": "file", "path": name, "oid": name, "size": len(b)} for name, b in self.server.files.items()
            ]
            self.send(json.dumps(tree).encode(), with_body, {"Content-Type": "application/json"})
        elif self.path.startswith("/api/models/team/base/"):
            found = {
                "id": "team/base",
                "sha": REVISION,
                "siblings": [{"rfilename": name} for name in self.server.files],
            }
            self.send(json.dumps(found).encode(), with_body, {"Content-Type": "application/json"})
        elif self.path.startswith("/team/base/resolve/"):
            name = self.path.rpartition("/")[2]
            named = {"ETag": f'"{name}"', "X-Repo-Commit": REVISION}
            self.send(self.server.files[name], with_body, named, name in self.server.broken)
        else:
            self.send_error(404)

    def send(self, body: bytes, with_body: bool, headers: dict[str, str], broken: bool = False) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if broken else body)
        if broken:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "base/0a1b"


def download(hub: Hub, target: Path) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **outside,
        "HF_ENDPOINT": address,
        "HF_HOME": str(target.parents[1] / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "120",
        "HF_HUB_DOWNLOAD_TIMEOUT": "120",
    }
    command = [sys.executable, "-c", SCRIPT.read_text(), "team/base", REVISION, str(target)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_of_the_checkpoint_arrive_and_nothing_else(hub: Hub, target: Path) -> None:
    done = download(hub, target)
    assert done.returncode == 0, done.stderr
    assert content(target) == {name: data for name, data in FILES.items() if name != "pytorch_model.bin"}
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_download_that_breaks_off_leaves_no_folder_and_the_next_one_completes_it(hub: Hub, target: Path) -> None:
    hub.broken = {"model.safetensors"}
    assert download(hub, target).returncode != 0
    assert not target.exists()
    hub.broken = set()
    assert download(hub, target).returncode == 0
    assert content(target)["model.safetensors"] == FILES["model.safetensors"]


def test_a_folder_that_is_there_is_left_alone(hub: Hub, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    done = download(hub, target)
    assert (done.returncode, content(target)) == (0, {"config.json": b"{}"})
    assert "is there already" in done.stdout


def test_a_repository_without_weights_is_refused_by_name(hub: Hub, target: Path) -> None:
    del hub.files["model.safetensors"]
    done = download(hub, target)
    assert done.returncode != 0
    assert f"team/base at {REVISION} is no checkpoint: found .cache, config.json, vocab.txt; expected" in done.stderr
    assert not target.exists()
