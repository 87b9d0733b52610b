"""Checks of what a delta file claims about its tensors, against the base and the head, before any stream is read.

A compressed tensor may claim any size. So a reader allocates nothing for a tensor until its shape is known to be the
base's, the head's, or that of an embedding of the config's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import nn
from transformers import PretrainedConfig

from ken_core import manifest as m
from ken_core.checkpoint import Checkpoint, weights
from ken_core.errors import DeltaFormatError
from ken_core.fingerprint import dtype_name
from ken_core.foreign_tokenizer import check_size
from ken_core.heads import Claim, check_head

_EXPANSION, _SLACK_BYTES = 16, 8 << 20
"""Trained float32 weights compress to a third of their size at best; 16 leaves room for untrained weights."""


def check_claims(described: m.Manifest, base: Checkpoint, config: PretrainedConfig) -> int:
    """Check what a manifest says about tensors and files.

    Args:
        config: the delta's config, restored.

    Returns:
        The number of tokens of the delta's model.

    Raises:
        DeltaFormatError: a name, shape, dtype or size is impossible for the base or the head.
    """
    ours = base.backbone_tensors
    check_head(base.backbone, described.architecture, config, _claims(described))
    _check_against_base(described, ours)
    _check_lowrank(described, ours)
    _check_dense(described, base, config)
    _check_projections(described, config)
    _check_head_dtypes(described, base)
    _check_expansion(described, ours)
    vocabulary = _vocabulary(config, base)
    for name, listed in described.files.items():
        check_size(name, listed.plain or listed.bytes, vocabulary)
    return vocabulary


def _check_against_base(described: m.Manifest, ours: Mapping[str, torch.Tensor]) -> None:
    for name, entry in described.sparse.items():
        if name not in ours:
            raise DeltaFormatError(f"the delta changes {name!r}, which the base does not have")
        found, expected = (entry.dtype, entry.shape), (dtype_name(ours[name].dtype), tuple(ours[name].shape))
        if found != expected:
            raise DeltaFormatError(
                f"the delta's {name!r} is {found[0]} {list(found[1])}, the base's is {expected[0]} {list(expected[1])}"
            )
        if not 0 < entry.stored <= entry.selected <= ours[name].numel():
            raise DeltaFormatError(
                f"the delta claims {entry.stored} stored of {entry.selected} selected elements in {name!r}, "
                f"which has {ours[name].numel()}"
            )


def _check_lowrank(described: m.Manifest, ours: Mapping[str, torch.Tensor]) -> None:
    """A low-rank shift must be of a matrix of the base, and its rank no higher than this matrix allows."""
    for name, entry in described.lowrank.items():
        if name not in ours or name in described.sparse or name in described.dense:
            raise DeltaFormatError(f"the delta shifts {name!r}, which the base lacks or the delta changes twice")
        found, shape = ours[name], tuple(ours[name].shape)
        if entry.shape != shape or not found.is_floating_point():
            raise DeltaFormatError(
                f"the delta shifts {name!r} as a matrix {list(entry.shape)}, but the base's tensor is "
                f"{dtype_name(found.dtype)} {list(shape)}"
            )
        if entry.rank > min(shape):
            raise DeltaFormatError(
                f"the delta's shift of {name!r} claims rank {entry.rank}; {list(shape)} has at most {min(shape)}"
            )


def _claims(described: m.Manifest) -> dict[str, Claim]:
    return {name: Claim(entry.shape, entry.dtype in get_args(m.FloatName)) for name, entry in described.head.items()}


def _check_head_dtypes(described: m.Manifest, base: Checkpoint) -> None:
    expected = dtype_name(base.dtype)
    for name, entry in described.head.items():
        if entry.dtype in get_args(m.FloatName) and entry.dtype != expected:
            raise DeltaFormatError(f"the delta's {name!r} is {entry.dtype}; a head on this base must be {expected}")


def _check_dense(described: m.Manifest, base: Checkpoint, config: PretrainedConfig) -> None:
    """A whole backbone tensor must be absent from the base's files, or have another number of rows (added tokens)."""
    parameters = weights(base.backbone)
    for name, entry in described.dense.items():
        if name in described.sparse or name not in parameters:
            raise DeltaFormatError(f"the delta brings {name!r} whole, which the base lacks or the delta changes twice")
        ours = base.backbone_tensors.get(name)
        shape = tuple((parameters[name] if ours is None else ours).shape)  # a parameter may point at a delta's tensor
        dtype = dtype_name(base.dtype_of(name))
        rows = getattr(config, "vocab_size", None)
        resized = _is_by_token(name, base) and entry.shape != shape and entry.shape == (rows, *shape[1:])
        if entry.dtype != dtype or 0 in entry.shape or not (resized or (ours is None and entry.shape == shape)):
            raise DeltaFormatError(
                f"the delta's {name!r} is {entry.dtype} {list(entry.shape)}; expected {dtype} {list(shape)} "
                "that the base lacks, or an embedding with as many rows as the vocabulary"
            )


def _is_by_token(name: str, base: Checkpoint) -> bool:
    """Whether a tensor of the base has a row for each token."""
    ours, module = base.backbone_tensors.get(name), base.backbone.get_submodule(name.rpartition(".")[0])
    return ours is not None and isinstance(module, nn.Embedding) and len(ours) == _vocabulary(base.config, base)


def _vocabulary(config: PretrainedConfig, base: Checkpoint) -> int:
    """The number of tokens of a model with this config."""
    named = getattr(config, "vocab_size", None)
    return named if isinstance(named, int) else max((len(t) for t in base.backbone_tensors.values()), default=0)


def _check_projections(described: m.Manifest, config: PretrainedConfig) -> None:
    """The first projection must take what pooling gives. The manifest itself checks that the others fit."""
    if described.embedding is None:
        return
    width, takes, poolings = (
        getattr(config, "hidden_size", None),
        described.embedding.takes,
        described.embedding.pooling,
    )
    if not isinstance(width, int) or takes not in (None, width * len(poolings)):
        raise DeltaFormatError(
            f"the delta's first projection takes {takes} numbers; pooling gives {len(poolings)} times the {width} of "
            "the model's token vectors"
        )


def _check_expansion(described: m.Manifest, ours: Mapping[str, torch.Tensor]) -> None:
    """The backbone's bytes and the stored bytes limit the size of decompressed tensors."""
    whole = [entry for part in described.whole.values() for entry in part.values()]
    shifts = described.lowrank.values()
    claimed = sum(e.nbytes for e in whole) + sum(n for e in shifts for n in e.nbytes.values())
    stored = sum(e.data.bytes for e in whole) + sum(e.a.bytes + e.b.bytes for e in shifts)
    limit = _SLACK_BYTES + sum(t.nbytes for t in ours.values()) + _EXPANSION * stored
    if claimed > limit:
        raise DeltaFormatError(
            f"the delta's whole tensors and factors claim {claimed} bytes; for {stored} stored bytes and this base, at "
            f"most {limit} are accepted"
        )
