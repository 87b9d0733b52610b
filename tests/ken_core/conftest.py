"""Fixtures of the ken_core tests: opened checkpoints, random models of other architectures, a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta
from ken_core.heads import graft
from ken_core.resident import ResidentModel

Save = Callable[..., Path]

_INITIALISED = 100.0
"""What every weight that a class sets is below."""


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _single_threaded() -> None:
    """Set torch's number of threads for each test anew: numba resets it when it first starts its OpenMP threads."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Checkpoint:
    """The tiny BERT, opened for reading only; a `ResidentModel` would take over its parameters (use `fresh_base`)."""
    return open_base(str(tiny_base))


@pytest.fixture(scope="session")
def tuned(tiny_tuned: dict[str, Path]) -> Checkpoint:
    return open_tuned(str(tiny_tuned["topics"]))


@pytest.fixture
def fresh_base(tiny_base: Path) -> Checkpoint:
    """The tiny BERT, opened for this test alone."""
    return open_base(str(tiny_base))


@pytest.fixture(scope="session")
def batch() -> dict[str, torch.Tensor]:
    """Three token sequences of different lengths, padded with 0."""
    ids = torch.randint(5, 90, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 3:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(scope="session")
def answers() -> Callable[..., torch.Tensor]:
    """``answers(folder_or_checkpoint, batch)``: logits of a checkpoint as transformers opens it.

    The weights are copied off the mapped file first: on a file they lie unaligned, and torch's product of a matrix
    with the vectors of a single sequence then takes another order of additions (seen on 40 of 200 batches).
    """

    def answer(checkpoint: Checkpoint | Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        opened = open_tuned(str(checkpoint)) if isinstance(checkpoint, Path) else checkpoint
        with torch.no_grad():
            logits: torch.Tensor = copy.deepcopy(opened.model)(**batch)[0]
        return logits

    return answer


@pytest.fixture(scope="session")
def served() -> Callable[..., torch.Tensor]:
    """``served(base_folder, delta, batch)``: logits of a resident base with the delta injected, its head grafted on."""

    def answer(folder: Path, delta: Delta, batch: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        resident = ResidentModel(open_base(str(folder)))
        attached = resident.attach(delta, **options)
        model = graft(resident.backbone, delta.architecture, delta.config, attached.head)
        resident.activate(attached)
        with torch.no_grad():
            logits: torch.Tensor = model(**batch)[0]
        return logits

    return answer


@pytest.fixture(scope="session")
def save_random(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """``save_random(model_class, config, dtype=…)``: a folder of a randomly initialised model."""

    def save(model_class: type[PreTrainedModel], config: PretrainedConfig, *, dtype: Any = None, seed: int = 5) -> Path:
        folder = tmp_path_factory.mktemp("random") / config.model_type
        torch.manual_seed(seed)
        model_class(config).to(dtype or torch.float32).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def save_noisy(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """``save_noisy(model_class, base, resize=…, dtype=…, **config)``: a 'fine-tune' whose every weight has moved."""

    def save(
        model_class: type[PreTrainedModel],
        base: Path,
        *,
        resize: int | None = None,
        dtype: Any = "auto",
        seed: int = 6,
        scale: float = 0.05,
        edit: Callable[[PreTrainedModel], None] = lambda model: None,
        **config: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("noisy") / "tuned"
        torch.manual_seed(seed)
        model = model_class.from_pretrained(base, dtype=dtype, **config)
        if resize is not None:
            model.resize_token_embeddings(resize, mean_resizing=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter[~(parameter.abs() < _INITIALISED)] = 0  # some classes leave one as the memory was
                parameter += (scale * torch.randn(parameter.shape)).to(parameter.dtype)
            edit(model)
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def left_in_tmp_path(tmp_path: Path) -> Callable[[], list[str]]:
    """``left_in_tmp_path()``: names of what lies in `tmp_path` now, hidden files included."""
    return lambda: sorted(p.name for p in tmp_path.iterdir())
