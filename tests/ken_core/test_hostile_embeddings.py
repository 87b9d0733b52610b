"""A delta file's embeddings and tokenizer files are read as hostile, like the rest of the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer, BertConfig, BertModel

from ken_core import Budget, Checkpoint, Delta, DeltaFormatError, Selection, deltafile, extract, open_base, open_tuned
from ken_core.bits import same_bits
from ken_core.embedding import Dense, Embedding
from ken_core.fingerprint import fingerprint

Manifest = dict[str, Any]
Streams = dict[str, np.ndarray]

EMBEDDING = Embedding(
    pooling=("cls", "mean"),
    modules=(
        Dense(inputs=16, outputs=5, bias=True, activation="GELU", residual=True),
        "normalize",
        Dense(inputs=5, outputs=3, bias=False, activation="Identity"),
    ),
    include_prompt=False,
    max_length=11,
    lowercase=True,
    prompts={"query": "what is ", "document": ""},
    default_prompt="query",
    dimensions=2,
    similarity="dot",
)


@pytest.fixture(scope="module")
def small_base(save_random) -> Checkpoint:
    config = BertConfig(
        vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    return open_base(str(save_random(BertModel, config)))


@pytest.fixture(scope="module")
def delta(small_base, save_noisy, tiny_base) -> Delta:
    folder = save_noisy(BertModel, small_base.folder, resize=27)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    plain = extract(small_base, open_tuned(str(folder)), Selection("random", Budget("row", 0.5)))
    torch.manual_seed(1)
    return replace(plain, embedding=EMBEDDING, projections={n: torch.randn(s) for n, s in EMBEDDING.shapes.items()})


@pytest.fixture(scope="module", params=["zstd", "raw", "int8"])
def file(request, small_base, delta, tmp_path_factory) -> deltafile.DeltaFile:
    return deltafile.write(delta, small_base, tmp_path_factory.mktemp("sound") / "d.ken", request.param)


@pytest.fixture
def attempt(small_base) -> Callable[[Path], Delta]:
    identity = fingerprint(small_base.backbone_tensors).digest
    return lambda path: deltafile.read(deltafile.open_file(path), small_base, identity)


@pytest.fixture
def edited(file, tmp_path) -> Callable[..., Path]:
    """``edited(change)``: the file with its manifest and streams changed."""

    def edit(change: Callable[[Manifest, Streams], object]) -> Path:
        with safe_open(file.path, "np") as container:
            manifest = json.loads(container.metadata()["ken"])
            streams = {name: container.get_tensor(name).copy() for name in container.keys()}  # noqa: SIM118
        change(manifest, streams)
        save_file(streams, tmp_path / "edited.ken", {"ken": json.dumps(manifest)})
        return tmp_path / "edited.ken"

    return edit


def stream(data: bytes) -> tuple[Manifest, np.ndarray]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, np.frombuffer(data, np.uint8).copy()


def test_a_sound_file_gives_back_what_was_written(attempt, file, delta):
    found = attempt(file.path)
    assert found.embedding == delta.embedding
    assert found.files == delta.files
    assert found.projections.keys() == delta.projections.keys()
    assert all(same_bits(found.projections[name], tensor) for name, tensor in delta.projections.items())


def module(i: int, **changes: Any) -> Callable[[Manifest], object]:
    return lambda manifest: manifest["embedding"]["modules"][i].update(changes)


def told(**changes: Any) -> Callable[[Manifest], object]:
    return lambda manifest: manifest["embedding"].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (told(pooling=[]), "embedding.pooling"),
        (told(pooling=["median"]), "embedding.pooling"),
        (told(pooling=["mean"] * 9), "embedding.pooling"),
        (told(pooling=["mean"]), "takes 16 numbers; pooling gives 1 times the 8"),
        (told(pooling=["mean"] * 3), "takes 16 numbers; pooling gives 3 times the 8"),
        (told(modules=["normalize"] * 9), "embedding.modules"),
        (told(modules=["normalize"]), "projections have the shapes"),
        (told(modules=[{"import": "os"}]), "embedding.modules"),
        (told(max_length=0), "embedding.max_length"),
        (told(max_length=-1), "embedding.max_length"),
        (told(max_length=1 << 60), "embedding.max_length"),
        (told(max_length=float("nan")), "cannot be read as JSON"),
        (told(dimensions=0), "embedding.dimensions"),
        (told(prompts={f"p{i}": "" for i in range(65)}), "embedding.prompts"),
        (told(prompts={"query": "x" * 5000}), "embedding.prompts"),
        (told(prompts={"query": "\ud800"}), "surrogate"),
        (told(prompts={"\udfff": ""}), "surrogate"),
        (told(prompts={"": "x"}), "embedding.prompts"),
        (told(default_prompt="title"), "'title' is not among the prompts"),
        (told(similarity="maxsim"), "embedding.similarity"),
        (told(trust_remote_code=True), "embedding.trust_remote_code"),
        (module(0, activation="os.system"), "activation"),
        (module(0, activation="PReLU"), "activation"),
        (module(0, inputs=1 << 40), "inputs"),
        (module(0, outputs=0), "outputs"),
        (module(0, outputs=6), "takes 5 numbers, the one before it gives 6"),
        (module(0, bias=False), "projections have the shapes"),
        (module(0, residual=False), "projections have the shapes"),
        (lambda manifest: manifest.update(embedding=None), "projections have the shapes"),
        (lambda manifest: manifest.update(pooling="mean"), "pooling"),
        (lambda manifest: manifest["projections"].pop("2.linear.weight"), "projections have the shapes"),
        (lambda manifest: manifest["projections"]["0.linear.bias"].update(shape=[1 << 39]), "projections have the sh"),
        (lambda manifest: manifest["projections"]["0.linear.bias"].update(dtype="int64"), "expected a float dtype"),
        (lambda manifest: manifest["projections"]["0.linear.bias"].update(dtype="float64"), "bytes"),
        (lambda manifest: manifest["files"]["tokenizer.json"].update(plain=0), "plain"),
        (lambda manifest: manifest["files"]["tokenizer.json"].update(plain=1 << 40), "plain"),
        (lambda manifest: manifest["files"]["tokenizer.json"].update(plain=5 << 20), "at most 64 times as many"),
        (
            lambda manifest: manifest["files"]["tokenizer.json"].update(plain=77),
            r"tokenizer\.json: a compressed stream",
        ),
    ],
    ids=range(38),
)
def test_a_manifest_that_lies_about_embeddings_or_files_is_refused(edited, attempt, change, said):
    with pytest.raises(DeltaFormatError, match=said):
        attempt(edited(lambda manifest, streams: change(manifest)))


def test_a_classifier_with_embeddings_is_refused(edited, attempt):
    def change(manifest, streams):
        manifest.update(architecture="BertForSequenceClassification", kind="text-classification")

    with pytest.raises(DeltaFormatError, match="a text-classification task gives no embeddings"):
        attempt(edited(change))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_projections_that_hold_no_numbers_are_refused(edited, attempt, number):
    def change(manifest, streams):
        data = np.full(5, number, np.float32).tobytes()
        entry = manifest["projections"]["0.linear.bias"]
        entry["codec"] = "raw"
        entry["data"], streams["projections/0.linear.bias"] = stream(data)

    with pytest.raises(DeltaFormatError, match="NaN or infinity"):
        attempt(edited(change))


@pytest.mark.parametrize("claimed", [300, 80_000])
def test_a_tokenizer_file_that_unpacks_to_more_than_it_claims_is_refused(edited, attempt, claimed):
    def change(manifest, streams):
        bomb = zstandard.ZstdCompressor().compress(b"[" * (50 << 20))
        described, streams["files/tokenizer.json"] = stream(bomb)
        manifest["files"]["tokenizer.json"] = {**described, "plain": claimed}

    with pytest.raises(DeltaFormatError, match=r"tokenizer\.json: a compressed stream claims"):
        attempt(edited(change))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_format_3_said_of_embeddings_is_read(edited, attempt, pooling, normalize):
    def as_before(manifest, streams):
        manifest |= {"format": 3, "pooling": pooling, "normalize": normalize}
        del manifest["embedding"]
        for name in manifest.pop("projections"):
            del streams[f"projections/{name}"]
        for name, entry in manifest["files"].items():
            if entry.pop("plain"):
                data = zstandard.ZstdDecompressor().decompress(streams[f"files/{name}"].tobytes())
                manifest["files"][name], streams[f"files/{name}"] = stream(data)

    found = attempt(edited(as_before))
    modules = ("normalize",) if normalize else ()
    assert found.embedding == Embedding(pooling=(pooling,), modules=modules)


def test_a_pooling_that_format_3_did_not_know_is_refused(edited, attempt):
    with pytest.raises(DeltaFormatError, match=r"embedding\.pooling"):
        attempt(edited(lambda manifest, streams: manifest.update(format=3, pooling=["mean"])))
