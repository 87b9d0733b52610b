"""The two ways to run a step of texts, and what they cost: one task in the weights, or many tasks beside the base's.

By exchange, tasks take turns: each runs a quantum of steps, and the next one costs a switch. A mixed step holds texts
of many tasks, reads the base's weights once for all of them, and takes longer than a step of one task. Which way gets
more tokens a second done follows from what steps and switches have taken so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ken_core.decoding.choice import AnyDecoder
from ken_core.decoding.decoder import Chunk
from ken_core.mixing.steps import MixedSteps, TaskChunks
from serving.engine.costs import BatchCost, MixedCost
from serving.tiers.loaded import Loaded

TaskPart = tuple[Loaded, Sequence[Chunk], Sequence[int]]  # type: ignore[type-arg]
"""A task's chunks in a step, and those of them whose last token's logits are wanted, by number."""
_SWITCHES = 9
"""A quantum lasts as long as so many switches, so that a tenth of the time goes into switching."""
_WAYS = 4
"""A task that runs alone after mixed steps is put into the weights once its corrections have cost as much as so many
switches: soon it may have neighbours again."""


@dataclass
class StepCosts:
    """What steps take, learned from those that ran. Pure: seconds in, seconds out.

    Attributes:
        quantum: seconds that a task generates at most by exchange while others wait.
        step: of the base's pass for so many tokens.
        extra: of a mixed step beside that.
        switch: seconds of the last switch.
    """

    quantum: float

    def __post_init__(self) -> None:
        self.step = BatchCost()
        self.extra = MixedCost()
        self.switch = 0.0
        self._spent = float("inf")
        """Seconds that corrections took since two tasks last shared a step; none did: an exchange comes first."""

    @property
    def turn(self) -> float:
        """Seconds that a task's turn lasts."""
        return min(self.quantum, max(_SWITCHES * self.switch, self.step.usual))

    def prefers_mixed(self, texts: Mapping[Loaded, int]) -> bool:
        """Whether mixed steps of these tasks, each with so many texts, get more done than turns by exchange.

        All of them mix. One that cannot be exchanged leaves no choice.
        """
        if not all(task.attached.expanded for task in texts):
            return True
        if len(texts) == 1:
            return self._spent < _WAYS * self.switch
        return self._rate_mixed(texts) > self._rate_by_turns(texts)

    def token(self, tasks: Sequence[Loaded]) -> float:
        """Seconds of one more token in a step of these tasks; of one task by exchange, where there is none."""
        return self.step.token + self.extra.product * max((task.attached.products for task in tasks), default=0)

    def learn(self, tokens: int, seconds: float) -> None:
        """Take in what a step of one task took, by exchange."""
        self.step.learn(tokens, seconds)

    def learn_mixed(self, tokens: Mapping[Loaded, int], seconds: float) -> float:
        """Take in what a mixed step took; the seconds of it that are expected to be corrections."""
        products, total = _products(tokens), sum(tokens.values())
        extra = self.extra.of(products, len(tokens))
        self.extra.learn(products, len(tokens), seconds - self.step.of(total))
        self.step.learn(total, max(seconds - extra, 0.0))
        self._spent = 0.0 if len(tokens) > 1 else self._spent + extra
        return extra

    def _rate_mixed(self, texts: Mapping[Loaded, int]) -> float:
        """Tokens a second."""
        total = sum(texts.values())
        return total / (self.step.of(total) + self.extra.of(_products(texts), len(texts)))

    def _rate_by_turns(self, texts: Mapping[Loaded, int]) -> float:
        seconds = generated = 0.0
        for count in texts.values():
            step = self.step.of(count)
            steps = max(1.0, self.turn / step)
            generated += steps * count
            seconds += steps * step + self.switch
        return generated / seconds


def _products(tokens: Mapping[Loaded, int]) -> float:
    return sum(count * task.attached.products for task, count in tokens.items())


class StepRunner:
    """Runs chunks of texts on the resident model. Whoever calls it has the weights alone.

    Args:
        decoder: of the resident backbone.
        steps: runs mixed steps; None: there are none.
    """

    def __init__(self, decoder: AnyDecoder, steps: MixedSteps | None) -> None:
        self._decoder = decoder
        self._steps = steps

    def alone(self, task: Loaded, chunks: Sequence[Chunk], wanted: Sequence[int]) -> torch.Tensor:  # type: ignore[type-arg]
        """Logits of the wanted chunks of the task that is in the weights: float32 on the CPU, (wanted, vocabulary)."""
        output = self._decoder.step(chunks)
        if not wanted:
            return torch.empty(0)
        ids = torch.tensor([[chunks[i].ids[-1] for i in wanted]], device=output[0].device)
        states = type(output)(last_hidden_state=output[0][:, list(wanted)])
        logits: torch.Tensor = task.model(states, {"input_ids": ids}).logits[0]
        return logits.float().cpu()

    def mixed(self, parts: Sequence[TaskPart]) -> list[torch.Tensor]:
        """The same of several tasks, while the weights are the base's."""
        assert self._steps is not None
        tasks = [TaskChunks(task.attached, task.model, chunks, wanted) for task, chunks, wanted in parts]
        return [logits.float().cpu() for logits in self._steps.step(tasks)]

    def rest(self) -> None:
        """Let go of the tasks of the last mixed step."""
        if self._steps is not None:
            self._steps.forget()
