"""A random base and fine-tune in the shapes of a given architecture, written shard by shard.

Neither model is ever held whole: a pair of 1.7 billion parameters takes a few hundred megabytes to write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BloomConfig, PretrainedConfig, PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomForSequenceClassification, BloomModel

BLOOM_1B7 = BloomConfig(hidden_size=2048, n_layer=24, n_head=16, vocab_size=250_880, num_labels=4, pad_token_id=3)
_SHARD_BYTES = 400_000_000


def write_pair(folder: Path, config: BloomConfig = BLOOM_1B7, shard_bytes: int = _SHARD_BYTES) -> tuple[Path, Path]:
    """Write `folder`/base and `folder`/tuned in bfloat16; every weight of the fine-tune has moved a little."""
    base, tuned = folder / "base", folder / "tuned"
    _write(base, config, BloomModel, shard_bytes, moved=False)
    _write(tuned, config, BloomForSequenceClassification, shard_bytes, moved=True)
    return base, tuned


def _write(
    folder: Path, config: PretrainedConfig, model_class: type[PreTrainedModel], shard_bytes: int, *, moved: bool
) -> None:
    folder.mkdir(parents=True)
    config.architectures = [model_class.__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(config, model_class, shard_bytes, moved=moved)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
        total += sum(t.nbytes for t in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(
    config: PretrainedConfig, model_class: type[PreTrainedModel], shard_bytes: int, *, moved: bool
) -> Iterator[dict[str, torch.Tensor]]:
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in model_class(config).named_parameters()}
    shard: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        shard[name] = _random(name.removeprefix("transformer."), shape, moved=moved)
        if sum(t.nbytes for t in shard.values()) > shard_bytes:
            yield shard
            shard = {}
    yield shard


def _random(name: str, shape: torch.Size, *, moved: bool) -> torch.Tensor:
    """Random values in blocks of rows, always the same for the same name; plus a shift of a tenth of them."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    out = torch.empty(shape, dtype=torch.bfloat16)
    for rows in out.reshape(shape[0], -1).split(4096):
        block = torch.randn(rows.shape, generator=generator) * 0.02
        if moved:
            block += 0.002 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(rows.numel()))
        rows.copy_(block)
    return out
