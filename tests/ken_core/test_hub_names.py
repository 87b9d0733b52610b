"""Checkpoints named as on the Hugging Face hub: found in its cache, or fetched into it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest
import torch
from architectures import BY_NAME, HEADS
from round_trip import EVERYTHING, answers_of_folder, round_trip, same_answers
from safetensors.torch import load_file
from stored_forms import FORMS
from transformers import AutoModel

import ken_core
from ken_core.bits import same_bits
from ken_core.checkpoint import open_base, open_tuned
from ken_core.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {"one-safetensors": shutil.copytree, **FORMS}


@pytest.fixture(scope="module")
def folders(save_random, save_noisy) -> dict[str, Path]:
    """A base and a fine-tune of it, in bfloat16, which their configs do not say."""
    base = save_random(AutoModel.from_config, BY_NAME["bert"].config(), dtype=torch.bfloat16)
    tuned = save_noisy(HEADS["sequence"], base, dtype=torch.bfloat16)
    for folder in (base, tuned):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
    return {"base": base, "tuned": tuned}


# found in the cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache that the hub's client looks into."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache: Path, name: str, folder: Path, form: str) -> str:
    """Lay a repository out as the hub's client does: blobs by hash, links to them by name. Gives its name."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    REPOSITORIES[form](folder, repository / "source")
    for file in (repository / "source").iterdir():
        blob = repository / "blobs" / f"{file.name}-hash"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return name


@pytest.mark.parametrize("form", REPOSITORIES)
def test_a_name_in_the_cache_opens_as_its_folder_does(cache, folders, form):
    for opener, role in ((open_base, "base"), (open_tuned, "tuned")):
        found = opener(cached(cache, f"some-one/{role}.v1", folders[role], form))
        expected = opener(str(folders[role]))
        assert found.folder.is_relative_to(cache)
        for part in ("backbone_tensors", "head_tensors"):
            ours, theirs = getattr(found, part), getattr(expected, part)
            assert ours.keys() == theirs.keys()
            assert all(same_bits(ours[n], t) for n, t in theirs.items())


@pytest.mark.parametrize("form", REPOSITORIES)
def test_a_delta_of_names_is_served_as_it_is_applied(cache, folders, form, tmp_path, batch):
    base = cached(cache, "some-one/base", folders["base"], form)
    tuned = cached(cache, "tuned-by-none", folders["tuned"], form)
    trip = round_trip(base, tuned, EVERYTHING, out=tmp_path)
    assert trip.delta.base_name == "some-one/base"
    expected = answers_of_folder(HEADS["sequence"], trip.applied, batch, dtype=torch.bfloat16)
    assert same_answers(trip.served(trip.packed, batch), expected)


def test_a_name_that_is_not_in_the_cache_is_refused_while_offline(cache):
    with pytest.raises(CheckpointError, match="'some-one/nothing' is no folder here"):
        open_base("some-one/nothing")


# fetched from the hub


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that fetching a public repository needs."""

    repositories: dict[str, Path]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/").removeprefix("api/models/").split("/")
        name, action, file = "/".join(path[:2]), path[2], path[-1]
        folder = self.repositories[name]
        if action == "revision":
            data = json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode()
        elif action == "tree":
            sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
            data = json.dumps([{"type": "file", "path": n, "size": s, "oid": n} for n, s in sizes.items()]).encode()
        else:
            data = (folder / file).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json" if action != "resolve" else "application/octet-stream")
        self.send_header("ETag", f'"{name}-{file}"'.replace("/", "-"))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    """A fetch opens many connections at once; one for which there is no place is tried again seconds later."""


_UNWANTED = {"training_args.bin", "optimizer.bin", "tf_model.h5", "rust_model.ot", "flax_model.msgpack"}
_FETCH = """
import json, sys
from ken_core.checkpoint import open_base
from ken_core.errors import CheckpointError
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = len(open_base(name).backbone_tensors)
    except CheckpointError as error:
        found[name] = f"{error} ({error.__cause__})"
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Fetched:
    """The result of opening a repository: the folder in the cache, and the number of tensors or an error."""

    folder: Path
    tensors: int | str

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture(scope="module")
def fetched(folders, tmp_path_factory) -> dict[str, Fetched]:
    """Repositories of a hub on this machine, by form; each also has files that nobody reads.

    In a process of its own, for the hub's client reads its settings once.
    """
    root = tmp_path_factory.mktemp("hub")
    sources = {form: root / form for form in (*REPOSITORIES, "both")}
    for form, write in REPOSITORIES.items():
        write(folders["base"], sources[form])
    FORMS["one-pickle"](folders["base"], sources["both"])
    shutil.copy(folders["base"] / "model.safetensors", sources["both"])
    for source in sources.values():
        for name in _UNWANTED:
            (source / name).write_bytes(b"nobody reads this")
    names = {f"some-one/{form}": source for form, source in sources.items()}
    server = Server(("127.0.0.1", 0), type("OwnHub", (Hub,), {"repositories": names}))
    Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(root / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "120",
        "HF_HUB_DOWNLOAD_TIMEOUT": "120",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(ken_core.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", _FETCH, *names], env={**os.environ, **settings}, capture_output=True, text=True
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    tensors = json.loads(done.stdout.splitlines()[-1])
    snapshot = Path("snapshots") / COMMIT
    return {
        form: Fetched(root / "cache" / f"models--some-one--{form}" / snapshot, tensors[f"some-one/{form}"])
        for form in sources
    }


@pytest.mark.parametrize("form", [*REPOSITORIES, "both"])
def test_a_name_is_fetched_and_opens_with_all_its_tensors(fetched, folders, form):
    assert fetched[form].tensors == len(load_file(folders["base"] / "model.safetensors"))


@pytest.mark.parametrize("form", [*REPOSITORIES, "both"])
def test_what_nobody_reads_is_not_fetched(fetched, form):
    assert not fetched[form].files & _UNWANTED


def test_pickles_are_not_fetched_where_there_are_safetensors(fetched):
    assert "model.safetensors" in fetched["both"].files
    assert "pytorch_model.bin" not in fetched["both"].files
