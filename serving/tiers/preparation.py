"""From a decoded delta to a task that is ready to run: the same way for every task, within the device's budgets."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from transformers import PretrainedConfig

from ken_core import Attached, CheckpointChangedError, Delta, ResidentModel
from ken_core.configs import restore
from ken_core.embedder import Embedder
from ken_core.errors import CheckpointError, DeltaFormatError
from ken_core.foreign import reading
from ken_core.foreign_tokenizer import check_ids
from ken_core.generation_settings import GenerationSettings, settings_of
from ken_core.heads import graft_split
from ken_core.mixing.model import MixedModel
from ken_core.mixing.steps import MixedSteps
from ken_core.tokenization import Encoder
from serving.pipelines import default_kind
from serving.pipelines.base import TaskSpec
from serving.pipelines.text_generation import TEXT_GENERATION
from serving.tiers.device_memory import DeviceMemory
from serving.tiers.encoders import Encoders
from serving.tiers.loaded import DeviceTier, Loaded

_MIXING_IS_OFF = "mixing is switched off"
_ONE_BY_ONE = "the base's texts are decoded one by one"
_FULL_TENSORS = "it has full tensors, which parameters are pointed at"

Reserve = Callable[[DeviceTier, str, int], float]
"""`DeviceMemory.reserve` or `DeviceMemory.reserve_in_turn`."""


class Preparation:
    """Makes tasks of decoded deltas. May be used from any thread.

    Args:
        mixed, steps: run batches and decode steps that mix tasks; None: none does.
        why_no_texts: why the base generates no texts; empty: it does.
    """

    def __init__(
        self,
        resident: ResidentModel,
        memory: DeviceMemory,
        mixed: MixedModel | None,
        steps: MixedSteps | None = None,
        why_no_texts: str = "",
    ) -> None:
        self._why_no_texts = why_no_texts
        self._resident = resident
        self._memory = memory
        self._mixed = mixed
        self._steps = steps
        self._encoders = Encoders(resident.checkpoint)

    @property
    def base_encoder(self) -> Encoder:
        return self._encoders.of_base

    def spec(self, delta: Delta) -> TaskSpec:
        """Make the part of a task that is not weights: its config, tokenizer and embedder.

        Raises:
            DeltaFormatError: the delta's files make no tokenizer that suits the model, or it generates in a way that is
                not served.
        """
        if delta.kind == TEXT_GENERATION and self._why_no_texts:
            raise DeltaFormatError(f"the delta generates texts, but the base does not: {self._why_no_texts}")
        config = restore(dict(delta.config), self._resident.checkpoint.config)
        try:
            with reading("the delta's tokenizer"):
                encoder = self._encoders.of(delta)
                if encoder is not self.base_encoder or delta.dense:  # an embedding may have fewer rows
                    check_ids(encoder, config)
        except CheckpointChangedError:
            raise
        except CheckpointError as error:
            raise DeltaFormatError(str(error)) from error
        embedder = None if delta.embedding is None else Embedder(delta.embedding, delta.projections)
        return TaskSpec(config, encoder, embedder, self._generation(delta, config))

    def _generation(self, delta: Delta, config: PretrainedConfig) -> GenerationSettings:
        """How a delta's task generates; as the base does, where the delta says nothing."""
        if delta.kind != "text-generation":
            return GenerationSettings()
        plain = self._bases_generation if delta.generation is None else delta.generation
        return GenerationSettings.of(plain, config.get_text_config().vocab_size)

    @cached_property
    def _bases_generation(self) -> dict[str, Any]:
        return settings_of(self._resident.checkpoint)

    def first_tier(self, delta: Delta) -> DeviceTier:
        """The tier that a delta comes into. Low-rank factors cannot be packed: they mix, or become full tensors."""
        return "materialised" if delta.lowrank and self._why_unmixed(delta) else "packed"

    def prepare_task(
        self, name: str, delta: Delta, tier: DeviceTier, reserve: Reserve, spec: TaskSpec | None = None
    ) -> Loaded:
        """Make a task that is ready to run: its tokenizer, its values on the device, its head around the backbone.

        The task's bytes are reserved before its values are attached. They stay reserved until `DeviceMemory.put`. If
        anything fails, they are given back.

        Args:
            name: of the task in its tier.
            tier: where the task will be. A delta with low-rank factors can only be materialised.
            reserve: reserves the task's bytes.
            spec: of the task, if it exists already; None: it is made here.

        Raises:
            DeltaFormatError, UnsupportedKindError, BaseMismatchError: the delta can never be served here.
            CheckpointChangedError: the base's file was written to after it was opened.
            UnavailableError: the server is stopping.
        """
        started = time.perf_counter()
        spec = spec or self.spec(delta)
        kind = default_kind(delta.kind, delta.embedding is not None)
        materialised = tier == "materialised"
        unmixed = self._why_unmixed(delta) or (_FULL_TENSORS if materialised else "")
        needed = self._bytes_to_attach(delta, materialised, unmixed) + spec.nbytes
        waited = reserve(tier, name, needed)
        try:
            attached = self._attach(delta, materialised, unmixed)
            model = graft_split(self._resident.backbone, delta.architecture, delta.config, attached.head)
        except BaseException:
            self._memory.give_back(tier, name)
            raise
        if kind == TEXT_GENERATION and not model.splits:
            self._memory.give_back(tier, name)
            raise DeltaFormatError(f"the head of {delta.architecture} needs its whole model, so no text is generated")
        seconds = time.perf_counter() - started - waited
        return Loaded(name, attached, model, delta.kind, kind, spec, unmixed, seconds)

    def _why_unmixed(self, delta: Delta) -> str:
        if self._mixed is None:
            return _MIXING_IS_OFF
        if delta.kind != TEXT_GENERATION:
            return self._mixed.why_not(delta)
        if self._steps is None:
            return _ONE_BY_ONE
        return self._steps.why_not(
            delta, graft_split(self._resident.backbone, delta.architecture, delta.config, delta.head)
        )

    def _bytes_to_attach(self, delta: Delta, materialised: bool, unmixed: str) -> int:
        if self._mixed is None or unmixed:
            return self._resident.bytes_to_attach(delta, materialised=materialised)
        return self._mixed.bytes_to_attach(delta)

    def _attach(self, delta: Delta, materialised: bool, unmixed: str) -> Attached:
        if self._mixed is None or unmixed:
            return self._resident.attach(delta, materialised=materialised)
        return self._mixed.attach(delta)
