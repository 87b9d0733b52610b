"""Steps of many sequences give what plain passes of each of them give."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from ken_core.decoding.alone import AloneDecoder
from ken_core.decoding.choice import decoder_of
from ken_core.decoding.decoder import Chunk
from ken_core.decoding.few_rows import few_rows, linear, mkl_is_fast
from ken_core.decoding.key_values import BLOCK, KeyValues
from ken_core.decoding.packed import PackedDecoder
from ken_core.errors import UndecodableError
from ken_core.kernels import few_tokens
from tests.decoder_architectures import ALONE, PACKED, POSITIONS, REFUSED, WINDOW, config_of


def backbone_of(model_type: str, sizes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(5)
    backbone = AutoModel.from_config(config_of(model_type, sizes))
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    return backbone.eval().to(dtype)


def plain(backbone: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = backbone(input_ids=torch.tensor([list(ids)])).last_hidden_state
    return states


@pytest.mark.parametrize("model_type", PACKED)
def test_chunks_of_sequences_that_share_a_pass(model_type: str) -> None:
    backbone = backbone_of(model_type, PACKED[model_type])
    decoder = decoder_of(backbone)
    assert isinstance(decoder, PackedDecoder)
    draw = random.Random(1)
    sequences = [[draw.randrange(3, 400) for _ in range(length)] for length in (5, 3 * WINDOW, 70, 2 * WINDOW + 1)]
    pasts = [decoder.start() for _ in sequences]
    with torch.inference_mode():
        while any(past.length < len(ids) for past, ids in zip(pasts, sequences, strict=True)):
            chunks, ends = [], []
            for past, ids in zip(pasts, sequences, strict=True):
                tokens = min(draw.choice((0, 1, 1, 2, 9, 17)), len(ids) - past.length)
                if tokens:
                    chunks.append(Chunk(ids[past.length : past.length + tokens], past))
                    ends.append(ids[: past.length + tokens])
            if chunks:
                states = decoder.step(chunks)[0]
                for row, ids in enumerate(ends):
                    torch.testing.assert_close(states[0, row], plain(backbone, ids)[0, -1], rtol=1e-4, atol=1e-4)
    assert backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model_type", ALONE)
def test_chunks_of_sequences_that_run_one_by_one(model_type: str) -> None:
    backbone = backbone_of(model_type, ALONE[model_type])
    decoder = decoder_of(backbone)
    assert isinstance(decoder, AloneDecoder)
    draw = random.Random(2)
    ids = [draw.randrange(3, 400) for _ in range(3 * WINDOW)]
    past = decoder.start()
    with torch.inference_mode():
        for start, end in ((0, 7), (7, 2 * WINDOW), (2 * WINDOW, 2 * WINDOW + 1), (2 * WINDOW + 1, 3 * WINDOW)):
            states = decoder.step([Chunk(ids[start:end], past)])[0]
            torch.testing.assert_close(states[0, 0], plain(backbone, ids[:end])[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_backbone_that_cannot_generate_is_refused_by_name(model_type: str) -> None:
    sizes, why = REFUSED[model_type]
    with pytest.raises(UndecodableError, match=why):
        decoder_of(AutoModel.from_config(config_of(model_type, sizes)).eval())


def test_half_precision_is_packed_too() -> None:
    assert isinstance(decoder_of(backbone_of("llama", PACKED["llama"], torch.bfloat16)), PackedDecoder)


@pytest.mark.parametrize("first", [POSITIONS, POSITIONS // 2])
def test_positions_that_change_with_the_length_are_refused_where_a_text_can_be_so_long(first: int) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    backbone = backbone_of(
        "phi3", {**PACKED["phi3"], "rope_parameters": rope, "original_max_position_embeddings": first}
    )
    if first == POSITIONS:
        assert isinstance(decoder_of(backbone), PackedDecoder)
    else:
        with pytest.raises(UndecodableError, match="'longrope', which change with the length"):
            decoder_of(backbone)


def test_a_layer_that_does_not_say_its_window_is_not_packed() -> None:
    """A window larger than the trial's sequences changes nothing there, so what the layers ask for is compared."""
    backbone = backbone_of("mistral", {**PACKED["mistral"], "sliding_window": 100})
    assert isinstance(decoder_of(backbone), PackedDecoder)
    for layer in backbone.layers:
        layer.self_attn.config = copy.copy(backbone.config)
        layer.self_attn.config.sliding_window = None
    assert isinstance(decoder_of(backbone), AloneDecoder)


def test_a_pass_that_fails_leaves_a_sequence_as_it_was() -> None:
    backbone = backbone_of("llama", PACKED["llama"])
    decoder = decoder_of(backbone)
    assert isinstance(decoder, PackedDecoder)
    past, ids = decoder.start(), [5, 6, 7, 8, 9]
    broken = backbone.layers[1].mlp.register_forward_hook(_failing)
    with torch.inference_mode():
        decoder_step = [Chunk(ids[:3], past)]
        with pytest.raises(RuntimeError, match="out of order"):
            decoder.step(decoder_step)
        assert past.length == 0
        assert backbone.config._attn_implementation == "sdpa"
        broken.remove()
        decoder.step([Chunk(ids[:4], past)])
        states = decoder.step([Chunk(ids[4:], past)])[0]
    torch.testing.assert_close(states[0, 0], plain(backbone, ids)[0, -1], rtol=1e-4, atol=1e-4)


def _failing(*_: object) -> None:
    raise RuntimeError("out of order")


def test_keys_and_values_grow_by_blocks_and_keep_what_they_hold() -> None:
    past = KeyValues()
    kept = torch.randn(1, 2, 3 * BLOCK, 4)
    for start in range(0, 3 * BLOCK, 7):
        chunk = kept[:, :, start : start + 7]
        keys, values = past.put(0, chunk, 2 * chunk)
        past.advance(chunk.shape[2])
        assert torch.equal(keys, kept[:, :, : past.length])
        assert torch.equal(values, 2 * keys)
        assert past.nbytes == 2 * 2 * 4 * 4 * -(-past.length // BLOCK) * BLOCK


@pytest.fixture
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that is not Intel's, whatever this one is."""
    monkeypatch.setattr("ken_core.decoding.few_rows.mkl_is_fast", lambda: False)


@pytest.mark.parametrize("fast", [True, False], ids=["as on Intel's", "as on others"])
@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5, 16, 17, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", [48, 128])
def test_few_rows_are_the_same_product(
    rows: int, bias: bool, features: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ken_core.decoding.few_rows.mkl_is_fast", lambda: fast)
    layer = torch.nn.Linear(features, 80, bias=bias)
    inputs = torch.randn(1, rows, features)
    before = layer.forward
    with torch.inference_mode():
        expected = layer(inputs)
        with few_rows([layer, torch.nn.ReLU()]):
            found = layer(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert layer.forward == before


@pytest.mark.usefixtures("slow_mkl")
def test_what_stood_before_a_layer_stands_there_again() -> None:
    layer = torch.nn.Linear(4, 4)
    own = layer.forward
    layer.forward = lambda *given: own(*given) + 1
    mine = layer.forward
    with few_rows([layer]):
        assert layer.forward is not mine
    assert layer.forward is mine


@pytest.mark.parametrize(
    ("fast", "rows"), [(True, range(2, 17)), (False, range(2, 13))], ids=["on Intel's", "on others"]
)
@pytest.mark.skipif(not few_tokens.is_usable(), reason="the processor has no AVX-512")
def test_the_kernel_multiplies_as_many_rows_as_it_is_faster_for(
    fast: bool, rows: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ken_core.decoding.few_rows.mkl_is_fast", lambda: fast)
    multiplied, product = [], few_tokens.product
    monkeypatch.setattr(few_tokens, "product", lambda x, *more: (multiplied.append(len(x)), product(x, *more))[1])
    layer = torch.nn.Linear(64, 8)
    with few_rows([layer]), torch.inference_mode():
        for count in range(20):
            layer(torch.randn(1, count, 64))
    assert multiplied == list(rows)


def test_where_mkl_is_fast_other_rows_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ken_core.decoding.few_rows.mkl_is_fast", lambda: True)
    narrow = torch.nn.Linear(48, 8)  # the kernel does not take it
    own = narrow.forward
    with few_rows([narrow]):
        assert narrow.forward == own
    for rows in (1, 17, 40):
        layer, inputs = torch.nn.Linear(64, 8), torch.randn(1, rows, 64)
        assert torch.equal(linear(layer, inputs), torch.nn.functional.linear(inputs, layer.weight, layer.bias))


@pytest.mark.parametrize(("vendor", "fast"), [("GenuineIntel", True), ("AuthenticAMD", False), (None, False)])
def test_intels_processors_are_known_by_their_name(
    vendor: str | None, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if vendor is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr("ken_core.decoding.few_rows.Path", lambda path: tmp_path / "cpuinfo")
    assert mkl_is_fast.__wrapped__() == fast


def test_the_kernel_refuses_what_it_would_read_beyond() -> None:
    weight = torch.randn(4, 128)
    tiles = few_tokens.plain_tiles(2)
    for x in (torch.ones(2, 64), torch.ones(2, 128, dtype=torch.float64), torch.ones(128), torch.ones(3, 128)):
        with pytest.raises(ValueError, match=r"expected float32|other than 3 tokens"):
            few_tokens.product(x, weight, tiles)
