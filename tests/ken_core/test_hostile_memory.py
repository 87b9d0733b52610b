"""The memory that reading a delta may cost: a small multiple of the base's bytes and its own, whatever it claims."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from ken_core.checkpoint import open_base, open_tuned
from ken_core.deltafile import write
from ken_core.extraction import extract
from ken_core.selection import Budget, Selection

Manifest = dict[str, Any]
Streams = dict[str, np.ndarray]
Edit = Callable[[Manifest, Streams], object]
WORDS, WIDTH = 4096, 64
EMBEDDING = "embeddings.word_embeddings.weight"

SCRIPT = """
import json, resource, sys
from pathlib import Path
from ken_core import deltafile, open_base
from ken_core.errors import KenError
from ken_core.fingerprint import fingerprint

base = open_base(sys.argv[1])
identity = fingerprint(base.backbone_tensors).digest
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def cost(path):
    before, said = peak(), "read"
    try:
        deltafile.read(deltafile.open_file(Path(path)), base, identity, 1)
    except KenError as error:
        said = str(error)[:300]
    return peak() - before, said

first, *others = sys.argv[2:]
cost(first)
print(json.dumps([cost(path) for path in others]))
"""
"""For each file: the bytes that reading it adds to the process's largest size so far, and the error's message."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base of a few megabytes, and a sound delta of it."""
    folder = tmp_path_factory.mktemp("memory")
    config = BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "base")
    tuned = BertForSequenceClassification.from_pretrained(folder / "base")
    tuned.bert.encoder.layer[0].attention.self.query.bias.data += 1
    tuned.save_pretrained(folder / "tuned")
    base = open_base(str(folder / "base"))
    write(
        extract(base, open_tuned(str(folder / "tuned")), Selection(budget=Budget(fraction=0.1))), base, folder / "sound"
    )
    return folder


def stream(data: bytes) -> tuple[Manifest, np.ndarray]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, np.frombuffer(data, np.uint8)


def zeros(count: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(count))


def whole(part: str, name: str, *shape: int) -> Edit:
    """A tensor of compressed zeros."""

    def edit(manifest: Manifest, streams: Streams) -> None:
        described, data = stream(zeros(4 * int(np.prod(shape))))
        streams[f"{part}/{name}"] = data
        manifest[part][name] = {"shape": list(shape), "dtype": "float32", "codec": "zstd", "data": described}

    return edit


def labels(count: int) -> Edit:
    def edit(manifest: Manifest, streams: Streams) -> None:
        manifest["config"]["id2label"] = {str(i): "" for i in range(count)}
        whole("head", "classifier.weight", count, WIDTH)(manifest, streams)
        whole("head", "classifier.bias", count)(manifest, streams)

    return edit


def vocabulary(count: int) -> Edit:
    def edit(manifest: Manifest, streams: Streams) -> None:
        manifest["config"]["vocab_size"] = count
        whole("dense", EMBEDDING, count, WIDTH)(manifest, streams)

    return edit


def file(name: str, before: bytes, repeated: bytes, times: int, after: bytes) -> Edit:
    def edit(manifest: Manifest, streams: Streams) -> None:
        manifest["files"][name], streams[f"files/{name}"] = stream(before + repeated * times + after)

    return edit


def gaps(manifest: Manifest, streams: Streams) -> None:
    count = WORDS * WIDTH
    mask, streams[f"sparse/{EMBEDDING}/mask"] = stream(zeros(400 << 20))
    values, streams[f"sparse/{EMBEDDING}/values"] = stream(zeros(4 * count))
    claims = {"shape": [WORDS, WIDTH], "dtype": "float32", "selected": count, "stored": count, "mask_coding": "gaps"}
    manifest["sparse"][EMBEDDING] = {**claims, "mask": mask, "values": values}


def config(**keys: Any) -> Edit:
    return lambda manifest, streams: manifest["config"].update(keys)


def junk(count: int) -> Edit:
    return lambda manifest, streams: manifest["config"].update(junk=[[] for _ in range(count)])


BOMBS: dict[str, tuple[Edit, str]] = {
    "a head nobody asked for": (whole("head", "nowhere", 100, 1 << 20), "has no 'nowhere'"),
    "a head of another shape": (whole("head", "classifier.weight", 1 << 20, 100), "its config asks for"),
    "a head of a great many labels": (labels(130_000), "at most"),
    "more labels than any task has": (labels(300_000), "300000 labels"),
    "a vocabulary of a million": (vocabulary(1_000_000), "at most"),
    "a vocabulary of a hundred million": (config(vocab_size=100_000_000), "vocab_size"),
    "a million layers": (config(num_hidden_layers=1_000_000), "num_hidden_layers"),
    "layers of another architecture": (config(model_type="qwen2", num_hidden_layers=10**6), "qwen2"),
    "a mask of gaps": (gaps, "at most"),
    "millions of values in the config": (junk(3_000_000), "values"),
    "a tokenizer of millions of values": (file("tokenizer.json", b'{"a":[', b"[],", 5_000_000, b"[]]}"), "values"),
    "a tokenizer of a hundred megabytes": (file("tokenizer.json", b'{"a":"', b"x", 100 << 20, b'"}'), "at most"),
}


@pytest.fixture(scope="module")
def costs(folder) -> dict[str, tuple[int, str, int]]:
    """For each bomb: the bytes by which reading it grew a process of its own, the refusal, and the file's size."""
    paths = [folder / f"bomb-{i}" for i in range(len(BOMBS))]
    for path, (edit, _) in zip(paths, BOMBS.values(), strict=True):
        with safe_open(folder / "sound", "np") as container:
            manifest = json.loads(container.metadata()["ken"])
            streams = {name: container.get_tensor(name) for name in container.keys()}  # noqa: SIM118
        edit(manifest, streams)
        save_file(streams, path, {"ken": json.dumps(manifest)})
    arguments = map(str, (folder / "base", folder / "sound", *paths))
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = zip(BOMBS, json.loads(ended.stdout), paths, strict=True)
    return {what: (grown, said, path.stat().st_size) for what, (grown, said), path in found}


@pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux does")
@pytest.mark.parametrize("what", BOMBS)
def test_a_file_costs_no_more_than_a_small_multiple_of_the_base_and_itself(folder, costs, what):
    grown, said, size = costs[what]
    assert BOMBS[what][1] in said
    assert grown < 8 * (folder / "base/model.safetensors").stat().st_size + 8 * size + (32 << 20)
