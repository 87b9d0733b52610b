"""The idle base compared with its hashes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ken_core import PoisonedError, ResidentModel, deltafile, open_base
from serving.engine.integrity import IntegrityCheck
from serving.telemetry.metrics import Metrics
from tests.tiny_checkpoints import Deltas, Tiny


class Clock:
    now = 0.0


@pytest.fixture
def resident(tiny: Tiny) -> Iterator[ResidentModel]:
    return ResidentModel(open_base(str(tiny.base_folder)))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("bench")


@pytest.fixture
def check(resident: ResidentModel, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> IntegrityCheck:
    Clock.now = 1000.0
    monkeypatch.setattr("serving.engine.integrity.time.monotonic", lambda: Clock.now)
    return IntegrityCheck(resident, metrics, every=60.0)


def steps_of_a_pass(check: IntegrityCheck) -> int:
    """Steps until a pass ends, at one moment."""
    for steps in range(10_000):
        if check.seconds_until_due(Clock.now):
            return steps
        check.step(Clock.now)
    raise AssertionError("the pass does not end")


def tensors_of_a_pass(resident: ResidentModel) -> int:
    return len(resident.names) + len(resident.checkpoint.backbone_tensors)


def flip_a_bit(tensor: torch.Tensor) -> None:
    tensor.view(-1).view(torch.int32)[7] ^= 1


def test_a_pass_takes_a_step_a_tensor_and_says_when_it_ended(
    check: IntegrityCheck, resident: ResidentModel, metrics: Metrics
) -> None:
    assert metrics.verified._value.get() == 0
    assert steps_of_a_pass(check) == tensors_of_a_pass(resident)
    assert metrics.verified._value.get() > 1e9
    assert metrics.differing._value.get() == 0


def test_the_next_pass_comes_when_it_is_due(check: IntegrityCheck) -> None:
    steps_of_a_pass(check)
    assert check.seconds_until_due(Clock.now) == 60
    Clock.now += 59
    check.step(Clock.now)
    assert check.seconds_until_due(Clock.now) == 1
    Clock.now += 1
    assert steps_of_a_pass(check) > 1


def test_work_puts_a_pass_off_until_it_is_quiet_and_does_not_begin_it_anew(
    check: IntegrityCheck, resident: ResidentModel
) -> None:
    check.step(Clock.now)
    check.disturb(Clock.now)
    assert check.seconds_until_due(Clock.now) == 1
    check.step(Clock.now)
    Clock.now += 1
    assert steps_of_a_pass(check) == tensors_of_a_pass(resident) - 1


def test_an_active_delta_is_taken_out_first(
    check: IntegrityCheck, resident: ResidentModel, deltas: Deltas, metrics: Metrics
) -> None:
    delta = deltafile.read(deltas.spam, resident.checkpoint, resident.fingerprint.digest)
    resident.activate(resident.attach(delta))
    steps_of_a_pass(check)
    assert resident.active is None
    assert resident.poisoned is None


def test_a_flipped_bit_condemns_the_model_and_names_the_tensor(
    check: IntegrityCheck, resident: ResidentModel, metrics: Metrics
) -> None:
    name = resident.names[5]
    flip_a_bit(resident.backbone.get_parameter(name).data)
    steps_of_a_pass(check)
    assert name in str(resident.poisoned)
    assert metrics.differing._value.get() == 1
    assert metrics.poisoned._value.get() == 1
    assert metrics.verified._value.get() == 0
    with pytest.raises(PoisonedError, match="restart this replica"):
        resident.activate(None)
    assert check.seconds_until_due(Clock.now) == 60


def test_verifying_all_at_once_condemns_too(check: IntegrityCheck, resident: ResidentModel) -> None:
    assert check.verify() == []
    flip_a_bit(resident.backbone.get_parameter(resident.names[0]).data)
    assert check.verify() == [resident.names[0]]
    assert resident.poisoned
    with pytest.raises(PoisonedError):
        check.verify()
