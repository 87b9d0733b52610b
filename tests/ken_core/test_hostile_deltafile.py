"""Delta files that are damaged or lie: each is refused with a `DeltaFormatError`, and nothing else is raised."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from ken_core.bits import as_bits, same_bits
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta
from ken_core.deltafile import MAX_HEADER_BYTES, DeltaFile, open_file, read, write
from ken_core.errors import BaseMismatchError, ConfigMismatchError, DeltaFormatError
from ken_core.extraction import extract
from ken_core.fingerprint import fingerprint
from ken_core.selection import Budget, Selection

Manifest = dict[str, Any]
Streams = dict[str, np.ndarray]

QUERY = "encoder.layer.0.attention.self.query.weight"
REFUSALS = (DeltaFormatError, BaseMismatchError, ConfigMismatchError)


@pytest.fixture(scope="module")
def small_base(save_random) -> Checkpoint:
    config = BertConfig(
        vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    return open_base(str(save_random(BertModel, config)))


@pytest.fixture(scope="module")
def small_identity(small_base) -> str:
    return fingerprint(small_base.backbone_tensors).digest


@pytest.fixture(scope="module")
def small_delta(small_base, save_noisy, tiny_base) -> Delta:
    """A delta with sparse entries in every tensor but one, a dense (resized) embedding, a head and tokenizer files."""
    folder = save_noisy(BertForSequenceClassification, small_base.folder, resize=27, num_labels=3)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return extract(small_base, open_tuned(str(folder)), Selection("random", Budget("row", 0.5)))


@pytest.fixture(scope="module")
def whole(small_base, small_delta, tmp_path_factory) -> DeltaFile:
    """A sound file."""
    return write(small_delta, small_base, tmp_path_factory.mktemp("whole") / "d.safetensors")


@pytest.fixture(scope="module", params=["zstd", "raw", "int8", "int4", "sign"])
def either(request, small_base, small_delta, tmp_path_factory) -> DeltaFile:
    """A sound file, in one codec after the other."""
    return write(small_delta, small_base, tmp_path_factory.mktemp("either") / "d.safetensors", request.param)


@pytest.fixture
def attempt(small_base, small_identity) -> Callable[[Path], Delta]:
    return lambda path: read(open_file(path), small_base, small_identity)


@pytest.fixture
def rewritten(whole, tmp_path) -> Callable[..., Path]:
    """``rewritten(edit)``: the file with its manifest and streams changed, digests of changed streams corrected."""

    def rewrite(edit: Callable[[Manifest, Streams], object], file: DeltaFile = whole) -> Path:
        with safe_open(file.path, "np") as container:
            manifest = json.loads(container.metadata()["ken"])
            streams = {name: container.get_tensor(name).copy() for name in container.keys()}  # noqa: SIM118
        before = dict(streams)
        edit(manifest, streams)
        for name, data in streams.items():
            if data is not before.get(name) and data.dtype == np.uint8:
                _describe(manifest, name, data)
        save_file(streams, tmp_path / "edited.safetensors", {"ken": json.dumps(manifest)})
        return tmp_path / "edited.safetensors"

    return rewrite


def _describe(manifest: Manifest, stream: str, data: np.ndarray) -> None:
    """Give the manifest the true length and sha256 of a stream, where it lists that stream."""
    part, _, rest = stream.partition("/")
    entry = manifest.get(part, {}).get(rest.removesuffix("/mask").removesuffix("/values") if part == "sparse" else rest)
    if entry is None:
        return
    described = entry if part == "files" else entry["data"] if part != "sparse" else entry[rest.rpartition("/")[2]]
    described.update(bytes=data.size, sha256=hashlib.sha256(data.tobytes()).hexdigest())


def whole_entry(tensor: torch.Tensor) -> tuple[Manifest, np.ndarray]:
    data = as_bits(tensor).view(np.uint8).copy()
    digest = hashlib.sha256(data.tobytes()).hexdigest()
    dtype = str(tensor.dtype).removeprefix("torch.")
    stream = {"bytes": data.size, "sha256": digest}
    return {"shape": list(tensor.shape), "dtype": dtype, "data": stream, "codec": "raw"}, data


def same_tensors(a: Delta, b: Delta) -> bool:
    return (
        a.sparse.keys() == b.sparse.keys()
        and all(np.array_equal(a.sparse[n].mask, s.mask) for n, s in b.sparse.items())
        and all(np.array_equal(a.sparse[n].values, s.values) for n, s in b.sparse.items())
        and a.dense.keys() == b.dense.keys()
        and a.head.keys() == b.head.keys()
        and all(same_bits(t, b.dense[n]) for n, t in a.dense.items())
        and all(same_bits(t, b.head[n]) for n, t in a.head.items())
        and a.files == b.files
    )


def test_the_sound_file_and_a_mere_rewrite_of_it_are_read(either, attempt, rewritten, small_delta):
    found = attempt(either.path)
    assert same_tensors(found, small_delta) == (either.manifest.codec in ("raw", "zstd"))
    assert same_tensors(attempt(rewritten(lambda manifest, streams: None, either)), found)


@pytest.mark.parametrize("shape", [[1 << 30, 1 << 30], [1 << 36]])
def test_a_compressed_head_of_a_shape_its_config_does_not_ask_for_is_refused_before_it_is_allocated(
    rewritten, attempt, shape
):
    def inflate(manifest, streams):
        bomb = zstandard.ZstdCompressor().compress(bytes(1 << 20))
        streams["head/classifier.weight"] = np.frombuffer(bomb, np.uint8).copy()
        manifest["head"]["classifier.weight"]["shape"] = shape

    with pytest.raises(DeltaFormatError, match=r"'classifier\.weight' is .*its config asks for .* \[3, 8\]"):
        attempt(rewritten(inflate))


def test_a_compressed_head_of_another_size_than_its_shape_is_refused(rewritten, attempt):
    def shrink(manifest, streams):
        streams["head/classifier.weight"] = encoded("zstd", np.zeros(16, np.float32))

    with pytest.raises(DeltaFormatError, match=r"claims 64 bytes, expected 96"):
        attempt(rewritten(shrink))


def test_sizes_that_reach_past_the_dtype_are_cut_to_its_range(rewritten, attempt, small_delta, small_base, tmp_path):
    file = write(small_delta, small_base, tmp_path / "lossy", "sign")

    def enlarge(manifest, streams):
        stream = streams[f"sparse/{QUERY}/values"].copy()
        stream[:16] = np.array([1e300, 0.0]).view(np.uint8)
        streams[f"sparse/{QUERY}/values"] = stream

    found = attempt(rewritten(enlarge, file))
    assert np.isfinite(found.sparse[QUERY].values.view(np.float32)).all()


def test_a_mask_read_as_the_other_coding_is_refused(rewritten, attempt):
    def relabel(manifest, streams):
        entry = manifest["sparse"][QUERY]
        entry["mask_coding"] = {"bitmap": "gaps", "gaps": "bitmap"}[entry["mask_coding"]]

    with pytest.raises(DeltaFormatError, match=QUERY):
        attempt(rewritten(relabel))


# damage


@settings(max_examples=150)
@given(cut=st.integers(0, 10**9))
@example(cut=0)
@example(cut=7)
@example(cut=8)
@example(cut=9)
def test_a_truncated_file_is_refused(either, attempt, tmp_path, cut):
    data = either.path.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: cut % len(data)])
    with pytest.raises(DeltaFormatError, match=r"cut\.safetensors"):
        attempt(path)


@given(tail=st.binary(min_size=1, max_size=40))
def test_a_file_with_something_behind_its_end_is_refused(either, attempt, tmp_path, tail):
    path = tmp_path / "long.safetensors"
    path.write_bytes(either.path.read_bytes() + tail)
    with pytest.raises(DeltaFormatError):
        attempt(path)


def flipped(file: DeltaFile, path: Path, place: int, mask: int) -> Path:
    data = bytearray(file.path.read_bytes())
    data[place] ^= mask
    path.write_bytes(data)
    return path


@settings(max_examples=200)
@given(place=st.integers(0, 10**9), mask=st.integers(1, 255))
def test_a_flipped_byte_in_the_header_never_gives_other_tensors(either, attempt, tmp_path, place, mask):
    """A file with a flipped bit is refused, or it has another digest and differs only in words of the manifest."""
    (length,) = struct.unpack("<Q", either.path.read_bytes()[:8])
    path = flipped(either, tmp_path / "flipped.safetensors", place % (8 + length), mask)
    with suppress(*REFUSALS):
        found = attempt(path)
        assert same_tensors(found, attempt(either.path))
        assert open_file(path).digest != either.digest


@settings(max_examples=150)
@given(place=st.integers(0, 10**9), mask=st.integers(1, 255))
def test_a_flipped_byte_in_the_streams_is_refused(either, attempt, tmp_path, place, mask):
    data = either.path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    place = 8 + length + place % (len(data) - 8 - length)
    with pytest.raises(DeltaFormatError, match="sha256"):
        attempt(flipped(either, tmp_path / "flipped.safetensors", place, mask))


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(DeltaFormatError, match="cannot be read"):
            open_file(path)


# the container


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_an_oversized_header_is_refused_by_its_length(whole, tmp_path, length):
    path = tmp_path / "big.safetensors"
    path.write_bytes(struct.pack("<Q", length) + whole.path.read_bytes()[8:])
    with pytest.raises(DeltaFormatError, match=f"would begin with a header of {length} bytes"):
        open_file(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"{}",
        b'{"a": 1}',
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 4]}, "__metadata__": {"ken": "{}"}}',
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}, "__metadata__": {"ken": "{}"}}',
        b'{"a": {"dtype": "U8", "shape": [999999999999], "data_offsets": [0, 999999999999]}}',
        b'{"a": {"dtype": "U8", "shape": [18446744073709551615, 2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U9", "shape": [4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, '
        b'"b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "__metadata__": {"ken": "{}"}}',
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "__metadata__": {"ken": {}}}',
        b'{"__metadata__": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    ids=range(16),
)
def test_a_container_with_a_nonsense_header_is_refused(tmp_path, header):
    path = tmp_path / "nonsense.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(DeltaFormatError, match=r"nonsense\.safetensors"):
        open_file(path)


def test_an_ordinary_weights_file_is_no_delta(small_base):
    with pytest.raises(DeltaFormatError, match="no 'ken' metadata"):
        open_file(small_base.folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.bool_])
def test_streams_that_are_not_bytes_are_refused(rewritten, attempt, dtype):
    def retype(manifest, streams):
        name = f"sparse/{QUERY}/values"
        streams[name] = streams[name][: streams[name].size // 2 * 2].view(dtype)

    with pytest.raises(DeltaFormatError, match="expected bytes"):
        attempt(rewritten(retype))


def test_a_stream_of_two_dimensions_is_refused(rewritten, attempt):
    def reshape(manifest, streams):
        name = "head/classifier.weight"
        streams[name] = streams[name].reshape(1, -1)
        _describe(manifest, name, streams[name])

    with pytest.raises(DeltaFormatError, match="has shape"):
        attempt(rewritten(reshape))


@pytest.mark.parametrize(
    "name", ["sparse/embeddings.LayerNorm.weight/extra", "head/more", "files/vocab.txt", "elsewhere", "dense/x"]
)
def test_an_extra_stream_is_refused_naming_it(rewritten, attempt, name):
    def add(manifest, streams):
        streams[name] = np.zeros(4, np.uint8)

    with pytest.raises(DeltaFormatError, match=f"disagree about stream {name!r}"):
        attempt(rewritten(add))


@pytest.mark.parametrize(
    "name",
    [
        f"sparse/{QUERY}/mask",
        f"sparse/{QUERY}/values",
        "dense/embeddings.word_embeddings.weight",
        "head/classifier.bias",
        "files/tokenizer.json",
    ],
)
def test_a_missing_stream_is_refused_naming_it(rewritten, attempt, name):
    with pytest.raises(DeltaFormatError, match=f"disagree about stream {name!r}"):
        attempt(rewritten(lambda manifest, streams: streams.pop(name)))


# the manifest


def with_manifest(whole: DeltaFile, path: Path, text: str) -> Path:
    with safe_open(whole.path, "np") as container:
        streams = {name: container.get_tensor(name) for name in container.keys()}  # noqa: SIM118
    save_file(streams, path, {"ken": text})
    return path


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"text"', "NaN", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"format": 2}', "\0"],
    ids=lambda t: t[:12],
)
def test_a_manifest_that_is_none_is_refused(whole, tmp_path, text):
    with pytest.raises(DeltaFormatError, match=r"d\.safetensors"):
        open_file(with_manifest(whole, tmp_path / "d.safetensors", text))


@pytest.mark.parametrize("version", [0, 1, 7, 99, -1, 1.5, "1", None, [], {}, 10**18])
def test_another_format_version_is_refused_naming_it(rewritten, version):
    with pytest.raises(DeltaFormatError, match="format version"):
        open_file(rewritten(lambda manifest, streams: manifest.update(format=version)))


REQUIRED = [
    "format", "creator", "base", "architecture", "kind", "method", "budget", "seed", "codec", "candidates", "backbone",
    "config", "sparse", "dense", "head", "files",
]  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_a_manifest_without_a_key_is_refused_naming_it(rewritten, key):
    with pytest.raises(DeltaFormatError, match=key):
        open_file(rewritten(lambda manifest, streams: (manifest.pop(key), streams.clear())))


WRONG_TYPES = [
    (key, value)
    for key in REQUIRED
    for value in (None, [1], {"a": "b"})
    if key != "format" and (key, value) != ("config", {"a": "b"})  # a config is looked at when the delta is read
]


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES, ids=str)
def test_a_manifest_with_a_value_of_the_wrong_type_is_refused_naming_its_key(rewritten, key, value):
    def change(manifest, streams):
        manifest[key] = value
        streams.clear()

    with pytest.raises(DeltaFormatError, match=key):
        open_file(rewritten(change))


PLACES: dict[str, Callable[[Manifest], Manifest]] = {
    "": lambda m: m,
    "base": lambda m: m["base"],
    "budget": lambda m: m["budget"],
    "sparse": lambda m: m["sparse"][QUERY],
    "mask": lambda m: m["sparse"][QUERY]["mask"],
    "head": lambda m: m["head"]["classifier.bias"],
    "data": lambda m: m["head"]["classifier.bias"]["data"],
}


@pytest.mark.parametrize("place", PLACES)
def test_an_unknown_key_anywhere_is_refused_naming_it(rewritten, place):
    with pytest.raises(DeltaFormatError, match="surprise"):
        open_file(rewritten(lambda manifest, streams: PLACES[place](manifest).update(surprise=1)))


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("", "codec", "pickle"),
        ("", "candidates", -1),
        ("", "backbone", 1 << 60),
        ("", "pooling", "max"),
        ("", "files", {"../../etc/passwd": {"bytes": 0, "sha256": "0" * 64}}),
        ("", "files", {"modeling.py": {"bytes": 0, "sha256": "0" * 64}}),
        ("base", "fingerprint", "abc"),
        ("base", "fingerprint", "0" * 64 + "\n"),
        ("budget", "scope", "column"),
        ("sparse", "dtype", "complex64"),
        ("sparse", "dtype", "object"),
        ("sparse", "shape", [-1, -64]),
        ("sparse", "shape", [1 << 50]),
        ("sparse", "stored", -1),
        ("mask", "bytes", -1),
        ("mask", "bytes", 1 << 50),
        ("mask", "sha256", "ABC"),
        ("data", "bytes", "four"),
        ("head", "shape", "3"),
    ],
)
def test_a_value_out_of_range_is_refused(rewritten, place, key, value):
    with pytest.raises(DeltaFormatError, match=key):
        open_file(rewritten(lambda manifest, streams: PLACES[place](manifest).update({key: value})))


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "a\0b", "\u00e9", "x" * 600, "a\n"])
@pytest.mark.parametrize("part", ["sparse", "dense", "head"])
def test_a_tensor_name_with_odd_characters_is_refused(rewritten, part, name):
    def rename(manifest, streams):
        manifest[part][name] = manifest[part].pop(next(iter(manifest[part])))

    with pytest.raises(DeltaFormatError):
        open_file(rewritten(rename))


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("gradient", {"scope": "row", "fraction": 0.5}),
        ("ken", {"scope": "global", "fraction": 0.5}),
        ("magnitude", {"scope": "row", "fraction": 1.5}),
        ("magnitude", {"scope": "row", "fraction": float("nan")}),
        ("magnitude", {"scope": "row", "fraction": 0.5, "k": 3}),
        ("magnitude", {"scope": "row"}),
        ("magnitude", {"scope": "global", "k": 3}),
        ("magnitude", {"scope": "row", "k": -1}),
    ],
    ids=str,
)
def test_a_method_and_budget_that_do_not_go_together_are_refused(rewritten, attempt, method, budget):
    with pytest.raises(DeltaFormatError):
        attempt(rewritten(lambda manifest, streams: manifest.update(method=method, budget=budget)))


@pytest.mark.parametrize("kind", ["feature-extraction", "token-classification", "no-such-kind"])
def test_a_kind_that_is_not_the_architectures_is_refused(rewritten, attempt, kind):
    with pytest.raises(DeltaFormatError, match="kind"):
        attempt(rewritten(lambda manifest, streams: manifest.update(kind=kind)))


@pytest.mark.parametrize("labels", [{"a": "b"}, ["a"], "abc", 3, {"0": "a", "2": "c"}], ids=str)
def test_labels_that_are_no_table_of_numbers_are_refused_or_readable_as_a_list(rewritten, labels):
    """`ken inspect` reads them before any base is at hand."""
    with suppress(DeltaFormatError):
        found = open_file(rewritten(lambda manifest, streams: manifest["config"].update(id2label=labels)))
        assert all(isinstance(label, str) for label in found.manifest.labels)


# lies about tensors


def sparse(**changes) -> Callable[[Manifest, Streams], None]:
    return lambda manifest, streams: manifest["sparse"][QUERY].update(changes)


LIES: dict[str, Callable[[Manifest, Streams], object]] = {
    "a shape of the same size": sparse(shape=[4, 16]),
    "a shape of another size": sparse(shape=[8, 9]),
    "a huge shape": sparse(shape=[1 << 39, 1 << 39]),
    "no shape": sparse(shape=[]),
    "a narrower dtype": sparse(dtype="float16"),
    "another dtype of the same width": sparse(dtype="int32"),
    "nothing stored": sparse(stored=0),
    "fewer stored than the mask has": sparse(stored=31),
    "more stored than the mask has": sparse(stored=33, selected=33),
    "more stored than selected": sparse(stored=32, selected=31),
    "more selected than there are": sparse(selected=65),
    "a length of the mask": lambda m, s: m["sparse"][QUERY]["mask"].update(bytes=3),
    "a length of the values": lambda m, s: m["sparse"][QUERY]["values"].update(bytes=1 << 39),
    "a sha256": lambda m, s: m["sparse"][QUERY]["values"].update(sha256="0" * 64),
    "a sha256 of the head": lambda m, s: m["head"]["classifier.bias"]["data"].update(sha256="0" * 64),
    "a sha256 of a file": lambda m, s: m["files"]["tokenizer.json"].update(sha256="0" * 64),
    "a larger head": lambda m, s: m["head"]["classifier.weight"].update(shape=[4, 8]),
    "a huge head": lambda m, s: m["head"]["classifier.weight"].update(shape=[1 << 39] * 40),
    "a head of another dtype": lambda m, s: m["head"]["classifier.weight"].update(dtype="float64"),
    "a larger dense tensor": lambda m, s: m["dense"]["embeddings.word_embeddings.weight"].update(shape=[28, 8]),
    "the other codec": lambda m, s: m.update(codec="raw" if m["codec"] == "zstd" else "zstd"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_about_a_tensor_is_refused(rewritten, attempt, either, lie):
    with pytest.raises(DeltaFormatError):
        attempt(rewritten(LIES[lie], either))


def test_a_tensor_the_base_does_not_have_is_refused_naming_it(rewritten, attempt):
    def rename(manifest, streams):
        manifest["sparse"]["encoder.layer.9.weight"] = manifest["sparse"].pop(QUERY)
        for part in ("mask", "values"):
            streams[f"sparse/encoder.layer.9.weight/{part}"] = streams.pop(f"sparse/{QUERY}/{part}")

    with pytest.raises(DeltaFormatError, match=r"encoder\.layer\.9\.weight"):
        attempt(rewritten(rename))


def test_a_dense_tensor_of_a_name_no_backbone_has_is_refused(rewritten, attempt):
    def add(manifest, streams):
        manifest["dense"]["nowhere.weight"], streams["dense/nowhere.weight"] = whole_entry(torch.ones(3))

    with pytest.raises(DeltaFormatError, match=r"nowhere\.weight"):
        attempt(rewritten(add))


@pytest.mark.parametrize("shape", [(1,), (9, 8), (8, 8, 1), ()])
def test_a_dense_tensor_of_a_shape_its_config_does_not_ask_for_is_refused(rewritten, attempt, shape):
    def replace(manifest, streams):
        del manifest["sparse"][QUERY], streams[f"sparse/{QUERY}/mask"], streams[f"sparse/{QUERY}/values"]
        manifest["dense"][QUERY], streams[f"dense/{QUERY}"] = whole_entry(torch.ones(shape))

    with pytest.raises(REFUSALS, match=QUERY.replace(".", r"\.")):
        attempt(rewritten(replace))


def test_an_embedding_of_other_rows_than_the_vocabulary_is_refused(rewritten, attempt):
    def shorten(manifest, streams):
        name = "embeddings.word_embeddings.weight"
        manifest["dense"][name], streams[f"dense/{name}"] = whole_entry(torch.ones(26, 8))

    with pytest.raises(REFUSALS):
        attempt(rewritten(shorten))


def test_a_tensor_both_sparse_and_dense_is_refused(rewritten, attempt):
    def add(manifest, streams):
        manifest["dense"][QUERY], streams[f"dense/{QUERY}"] = whole_entry(torch.ones(8, 8))

    with pytest.raises(DeltaFormatError, match=QUERY.replace(".", r"\.")):
        attempt(rewritten(add))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_a_dense_tensor_of_a_dtype_no_weight_has_is_refused(rewritten, attempt, dtype):
    def retype(manifest, streams):
        name = "embeddings.word_embeddings.weight"
        manifest["dense"][name], streams[f"dense/{name}"] = whole_entry(torch.ones(27, 8, dtype=dtype))

    with pytest.raises(DeltaFormatError):
        attempt(rewritten(retype))


@pytest.mark.parametrize("shape", [[0], [0, 8], [8, 0], [1 << 39, 1 << 39, 0]], ids=str)
def test_a_head_without_elements_is_refused(rewritten, attempt, shape):
    def empty(manifest, streams):
        manifest["head"]["classifier.bias"], streams["head/classifier.bias"] = whole_entry(torch.ones(0))
        manifest["head"]["classifier.bias"]["shape"] = shape

    with pytest.raises(DeltaFormatError):
        attempt(rewritten(empty))


def test_a_head_of_more_dimensions_than_torch_knows_is_refused(rewritten, attempt):
    def deepen(manifest, streams):
        manifest["head"]["classifier.bias"]["shape"] = [1] * 99 + [3]

    with pytest.raises(DeltaFormatError):
        attempt(rewritten(deepen))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_in_a_head_or_dense_tensor_are_refused(rewritten, attempt, bad):
    for part, name, shape in (
        ("head", "classifier.bias", (3,)),
        ("dense", "embeddings.word_embeddings.weight", (27, 8)),
    ):

        def spoil(manifest, streams, part=part, name=name, shape=shape):
            manifest[part][name], streams[f"{part}/{name}"] = whole_entry(torch.full(shape, bad))

        with pytest.raises(DeltaFormatError, match=name):
            attempt(rewritten(spoil))


# masks and values


def encoded(codec: str, data: np.ndarray) -> np.ndarray:
    plain = np.ascontiguousarray(data).view(np.uint8)
    return plain if codec == "raw" else np.frombuffer(zstandard.ZstdCompressor().compress(plain.tobytes()), np.uint8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_among_the_values_are_refused(small_base, small_delta, small_identity, tmp_path, bad):
    entry = small_delta.sparse[QUERY]
    values = entry.values.copy()
    values[3] = as_bits(torch.tensor(bad))[0]
    spoiled = {**small_delta.sparse, QUERY: dataclasses.replace(entry, values=values)}
    file = write(dataclasses.replace(small_delta, sparse=spoiled), small_base, tmp_path / "d")
    with pytest.raises(DeltaFormatError, match=QUERY):
        read(file, small_base, small_identity)


@pytest.mark.parametrize("size", [0, 7, 9, 1000])
def test_a_mask_of_another_length_is_refused(rewritten, attempt, either, size):
    def resize(manifest, streams):
        streams[f"sparse/{QUERY}/mask"] = encoded(manifest["codec"], np.full(size, 0x0F, np.uint8))

    with pytest.raises(DeltaFormatError, match=r"expected 8|safetensors"):
        attempt(rewritten(resize, either))


def test_a_mask_with_bits_after_its_last_element_is_refused(rewritten, attempt, either):
    """A bias of 12 elements leaves 4 bits of its second byte unused."""
    name = "encoder.layer.0.intermediate.dense.bias"

    def overflow(manifest, streams):
        assert manifest["sparse"][name]["shape"] == [12]
        population = manifest["sparse"][name]["stored"]
        mask = np.zeros(16, np.bool_)
        mask[: population - 1] = True
        mask[15] = True
        streams[f"sparse/{name}/mask"] = encoded(manifest["codec"], np.packbits(mask, bitorder="little"))

    with pytest.raises(DeltaFormatError, match="bits set"):
        attempt(rewritten(overflow, either))


def test_a_mask_of_another_population_is_refused(rewritten, attempt, either):
    def fill(manifest, streams):
        streams[f"sparse/{QUERY}/mask"] = encoded(manifest["codec"], np.full(8, 0xFF, np.uint8))

    with pytest.raises(DeltaFormatError, match="64 bits set, expected 32"):
        attempt(rewritten(fill, either))


@pytest.mark.parametrize("count", [2, 31, 33, 64])
def test_another_number_of_values_is_refused(rewritten, attempt, either, count):
    def resize(manifest, streams):
        stream = encoded(manifest["codec"], np.zeros(count, np.float32))
        levels = [] if manifest["codec"] in ("raw", "zstd") else [np.zeros(16, np.uint8)]
        streams[f"sparse/{QUERY}/values"] = np.concatenate([*levels, stream])

    with pytest.raises(DeltaFormatError, match=r"expected (128|32|16|4)$"):
        attempt(rewritten(resize, either))


@pytest.mark.parametrize("part", ["mask", "values"])
@pytest.mark.parametrize("claimed", [50_000_000, (1 << 32) - 1])
def test_a_decompression_bomb_is_refused_by_the_size_it_claims(rewritten, attempt, part, claimed):
    def plant(manifest, streams):
        bomb = bytearray(zstandard.ZstdCompressor().compress(bytes(50_000_000)))
        size = bomb.index((50_000_000).to_bytes(4, "little"))
        bomb[size : size + 4] = claimed.to_bytes(4, "little")
        streams[f"sparse/{QUERY}/{part}"] = np.frombuffer(bomb, np.uint8)

    with pytest.raises(DeltaFormatError, match=f"claims {claimed} bytes"):
        attempt(rewritten(plant))


# config and files


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "modeling.M"}},
        {"auto_map": None},
        {"model_type": "no-such"},
        {"model_type": "gpt2"},
        {"hidden_act": "relu"},
        {"num_attention_heads": 4},
        {"id2label": {"a": "b"}},
        {"hidden_size": "wide"},
        {"hidden_size": 1 << 40},
        {"num_hidden_layers": 1 << 40},
        {"dtype": "os"},
        {"to_dict": 1},
        {"attn_implementation": "someone/kernel"},
        {"vocab_size": 1 << 40},
    ],
    ids=str,
)
def test_a_config_that_asks_for_something_else_is_refused(rewritten, attempt, changes):
    with pytest.raises(REFUSALS):
        attempt(rewritten(lambda manifest, streams: manifest["config"].update(changes)))


def test_a_deeply_nested_config_is_refused(rewritten, attempt):
    def nest(manifest, streams):
        value: list = []
        for _ in range(700):
            value = [value]
        manifest["config"]["deep"] = value

    with pytest.raises(REFUSALS):
        attempt(rewritten(nest))


@pytest.mark.parametrize(
    "text",
    [
        '{"auto_map": {"AutoTokenizer": ["tokenization.T", null]}}',
        "[]",
        "null",
        "{",
        "[" * 100_000,
        "9" * 5000,
    ],
    ids=lambda t: t[:20],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_file_that_is_none_or_asks_for_its_own_code_is_refused(rewritten, attempt, name, text):
    def replace(manifest, streams):
        streams[f"files/{name}"] = np.frombuffer(text.encode(), np.uint8)

    with pytest.raises(DeltaFormatError, match=name):
        attempt(rewritten(replace))
