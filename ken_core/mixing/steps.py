"""Decode steps that hold texts of many tasks.

A step is one pass over the tokens of all its texts, one behind the other (`ken_core.decoding.packed`): decoded tokens,
and chunks of prompts. Each text attends to its own keys and values, which its own task's weights have made. So the only
difference to a padded batch is that every token is a row, with a task of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.utils.generic import ModelOutput

from ken_core.decoding.decoder import Chunk
from ken_core.decoding.few_rows import few_rows
from ken_core.decoding.key_values import KeyValues
from ken_core.decoding.packed import PackedDecoder
from ken_core.delta import Delta
from ken_core.heads import Grafted
from ken_core.kernels import few_tokens
from ken_core.mixing.layout import ROWS, TOKENS, layouts_of, of_a_step, watched_batch
from ken_core.mixing.mixer import Mixer, Mixture
from ken_core.mixing.model import MixedModel, check, mixture_of, why_not
from ken_core.mixing.tied import Tie, UnmixableHeadError, giving, tie_of, tied_outputs
from ken_core.mixing.trial import StepPass, mixable
from ken_core.resident import Attached, ResidentModel


@dataclass(frozen=True)
class TaskChunks:
    """Chunks of one task in a step.

    Attributes:
        attached: its delta, as `MixedModel.attach` has made it.
        model: its model around the resident backbone.
        wanted: the chunks whose last token's logits are wanted, by their number among `chunks`.
    """

    attached: Attached
    model: Grafted
    chunks: Sequence[Chunk[KeyValues]]
    wanted: Sequence[int]


class MixedSteps:
    """Runs mixed decode steps on a resident model, which holds the base meanwhile.

    Made on the thread that owns the weights, before any delta is active: every parameter is tried.

    Attributes:
        refused: why a tensor cannot be changed by a mixed step, by name.
    """

    def __init__(self, resident: ResidentModel, mixed: MixedModel, decoder: PackedDecoder) -> None:
        resident.revert()
        self._resident = resident
        self._decoder = decoder
        self._kernels = mixed.kernels
        self._few = resident.device.type == "cpu" and few_tokens.is_usable()
        self._mixtures: dict[str, tuple[list[Attached], list[int], Mixture]] = {}
        """Of the last step, by what they are for: as a rule the next one consists of the same tasks and texts."""
        self._ties: WeakKeyDictionary[Grafted, Tie | None] = WeakKeyDictionary()
        backbone = resident.backbone
        texts = watched_batch(int(resident.checkpoint.config.get_text_config().vocab_size), resident.device)
        ids = texts["input_ids"].tolist()
        assert (len(ids), len(ids[0])) == (ROWS, TOKENS)
        with torch.inference_mode():
            self._kind = type(decoder.run([Chunk(ids[0], decoder.start())]))
            layouts = layouts_of(backbone, lambda: decoder.run([Chunk(one, decoder.start()) for one in ids]), of_a_step)
            self._mixer = Mixer(backbone, layouts, mixed.kernels, self._few)
            self.refused: Mapping[str, str] = mixable(
                backbone, self._mixer, layouts, StepPass(decoder, self._mixer, ids)
            )

    def why_not(self, delta: Delta, model: Grafted) -> str:
        """Why a delta's texts cannot take part in mixed steps, empty where they can."""
        try:
            self._tie(model)
        except UnmixableHeadError as error:
            return str(error)
        return why_not(delta, self._resident, self.refused)

    def forget(self) -> None:
        """Let go of the tasks of the last step."""
        self._mixtures.clear()

    def step(self, tasks: Sequence[TaskChunks]) -> list[torch.Tensor]:
        """Run chunks of different texts.

        Returns:
            Of each task the logits of its wanted chunks, (wanted, vocabulary).

        Raises:
            ExchangeError: the weights are not the base's, or a delta's values are not its own.
            Whatever the model raises. Then the texts begin anew: if a head failed, their pasts hold the step's tokens.
        """
        check(self._resident, [task.attached for task in tasks])
        chunks = [chunk for task in tasks for chunk in task.chunks]
        groups = [(task.attached, sum(len(chunk.ids) for chunk in task.chunks)) for task in tasks]
        with self._mixer.mixing(self._mixture("step", groups)):
            output = self._decoder.step(chunks)
        return self._logits(tasks, output)

    def _mixture(self, use: str, groups: Sequence[tuple[Attached, int]]) -> Mixture:
        attached, rows = [one for one, _ in groups], [count for _, count in groups]
        found = self._mixtures.get(use)
        same = found is not None and len(found[0]) == len(attached) and all(map(is_, found[0], attached))
        if found is None or not same or found[1] != rows:
            found = self._mixtures[use] = attached, rows, mixture_of(groups)
        return found[2]

    def _logits(self, tasks: Sequence[TaskChunks], output: ModelOutput) -> list[torch.Tensor]:
        starts, at = [], 0
        for task in tasks:
            starts.append(at)
            at += len(task.chunks)
        rows = [[start + number for number in task.wanted] for task, start in zip(tasks, starts, strict=True)]
        given = [output[0][:, some] for some in rows]
        ties = [self._tie(task.model) if task.wanted else None for task in tasks]
        tied = self._tied(tasks, ties, given)
        return [self._head(*one) for one in zip(tasks, given, ties, tied, strict=True)]

    def _tie(self, model: Grafted) -> Tie | None:
        if model not in self._ties:
            self._ties[model] = tie_of(model, self._kind)
        return self._ties[model]

    def _tied(
        self, tasks: Sequence[TaskChunks], ties: Sequence[Tie | None], given: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """What tied output layers compute, of each task that has one."""
        places = [place for place, tie in enumerate(ties) if tie is not None]
        found: list[torch.Tensor | None] = [None] * len(tasks)
        if not places:
            self._mixtures.pop("head", None)
            return found
        name = next(tie.embedding for tie in ties if tie is not None)
        weight = self._resident.backbone.get_parameter(f"{name}.weight")
        mixture = self._mixture("head", [(tasks[place].attached, given[place].shape[1]) for place in places])
        states = torch.cat([given[place][0] for place in places])
        made = tied_outputs(mixture, name, weight, states, self._kernels[weight.dtype], self._few)
        for place, output in zip(places, made, strict=True):
            found[place] = output
        return found

    def _head(self, task: TaskChunks, states: torch.Tensor, tie: Tie | None, made: torch.Tensor | None) -> torch.Tensor:
        """Transformers' own code of a head, on its rows of the backbone's output."""
        if not task.wanted:
            return torch.empty(0)
        ids = torch.tensor([[task.chunks[i].ids[-1] for i in task.wanted]], device=states.device)
        output, inputs = self._kind(last_hidden_state=states), {"input_ids": ids}
        if tie is None:
            with few_rows(_output_layers(task.model)):
                answered: Any = task.model(output, inputs)
        else:
            assert made is not None
            with giving(tie.layer, states, made):
                answered = task.model(output, inputs)
        logits: torch.Tensor = answered.logits[0]
        return logits


def _output_layers(model: Grafted) -> list[torch.nn.Module]:
    found = getattr(model.whole, "get_output_embeddings", lambda: None)()
    return [] if found is None else [found]
