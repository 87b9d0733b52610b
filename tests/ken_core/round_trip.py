"""A fine-tune's way through a delta file, and the two places its answers come from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ken_core import deltafile
from ken_core.bits import same_bits
from ken_core.checkpoint import open_base, open_tuned
from ken_core.delta import Delta, apply
from ken_core.extraction import extract
from ken_core.heads import Grafted, graft_split
from ken_core.resident import Attached, ResidentModel
from ken_core.selection import Budget, Selection

EVERYTHING = Selection(budget=Budget(fraction=1.0))
Answers = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RoundTrip:
    """A delta read back from its file, the folder `apply` wrote of it, and a resident base it takes turns on."""

    delta: Delta
    applied: Path
    resident: ResidentModel
    grafted: Grafted
    packed: Attached
    materialised: Attached

    @property
    def model(self) -> PreTrainedModel:
        return self.grafted.whole

    def served(self, attached: Attached | None, batch: dict[str, torch.Tensor]) -> Answers:
        """The resident model's answers while `attached` is active; None stands for the base with the delta's head."""
        self.resident.activate(attached)
        return answers(self.model, batch)

    def served_by_the_head(self, attached: Attached | None, batch: dict[str, torch.Tensor]) -> Answers:
        """The same, where the head answers from an output that the backbone has computed before."""
        self.resident.activate(attached)
        with torch.no_grad():
            output = self.resident.backbone(**batch, return_dict=True)
            answer = self.grafted(output, batch)
        return {name: found for name, found in answer.items() if isinstance(found, torch.Tensor)}


def round_trip(
    base: Path | str,
    tuned: Path | str,
    selection: Selection | None = None,
    *,
    out: Path,
    dtype: torch.dtype | None = None,
) -> RoundTrip:
    """Extract, write, open, read, apply and attach; each step that opens the base opens it anew.

    Args:
        out: where the delta file and the applied folder go.
        dtype: the serving dtype; None keeps the checkpoint's.
    """
    opened = open_base(str(base))
    written = deltafile.write(extract(opened, open_tuned(str(tuned)), selection), opened, out / "delta.ken")
    resident = ResidentModel(open_base(str(base)), dtype=dtype)
    delta = deltafile.read(deltafile.open_file(written.path), resident.checkpoint, resident.fingerprint.digest)
    applied = out / "applied"
    apply(open_base(str(base)), delta, applied)
    packed = resident.attach(delta)
    return RoundTrip(
        delta=delta,
        applied=applied,
        resident=resident,
        grafted=graft_split(resident.backbone, delta.architecture, delta.config, packed.head),
        packed=packed,
        materialised=resident.attach(delta, materialised=True),
    )


def answers_of_folder(
    auto_class: Any, folder: Path, batch: dict[str, torch.Tensor], *, dtype: torch.dtype, cast: bool = False
) -> Answers:
    """The answers of a model that transformers opened in `dtype`.

    The weights are copied off the mapped file and want no gradients: for weights that lie unaligned or want gradients
    torch takes products whose additions have another order.

    Args:
        cast: also change the weights that transformers keeps in another dtype.
    """
    model = copy.deepcopy(auto_class.from_pretrained(folder, dtype=dtype)).requires_grad_(False).eval()
    return answers(model.to(dtype) if cast else model, batch)


def answers(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Answers:
    """Every tensor in a model's answer, by its name in transformers."""
    with torch.no_grad():
        output = model(**batch)
    return {name: found for name, found in output.items() if isinstance(found, torch.Tensor)}


def same_answers(found: Answers, expected: Answers) -> bool:
    """Whether all expected tensors were found, bit for bit; a resident base's pooler may give one more."""
    return bool(expected) and all(n in found and same_bits(found[n], t) for n, t in expected.items())


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters and persistent buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(same_bits(found[n], t) for n, t in expected.items())
