"""What a task's answers depend on beside its weights is the task's own, or else its base's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import ken_core
from ken_core import Delta, ResidentModel, open_base, open_tuned
from ken_core.errors import DeltaFormatError
from ken_core.generation_settings import FILE, GenerationSettings
from serving.tiers.device_memory import DeviceMemory
from serving.tiers.preparation import Preparation
from tests.tiny_language_models import write_language_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "base")


@pytest.fixture(scope="module")
def delta(folder: Path) -> Delta:
    return ken_core.extract(open_base(str(folder)), open_tuned(str(folder)))


def preparation(folder: Path) -> Preparation:
    resident = ResidentModel(open_base(str(folder)))
    return Preparation(resident, DeviceMemory(resident, 1 << 20, 0), None)


def test_a_language_model_generates_as_its_delta_says_or_as_its_base_does(folder: Path, delta: Delta) -> None:
    prepared = preparation(folder)
    assert prepared.spec(delta).generation == GenerationSettings(end_ids=(2,))
    own = replace(delta, generation={"eos_token_id": [0, 2], "do_sample": True, "temperature": 0.5})
    assert prepared.spec(own).generation == GenerationSettings((0, 2), samples=True, temperature=0.5)


def test_a_language_model_whose_settings_are_not_served_is_refused(folder: Path, delta: Delta) -> None:
    prepared = preparation(folder)
    with pytest.raises(DeltaFormatError, match=f"{FILE} has num_beams 4, which changes its texts and is not served"):
        prepared.spec(replace(delta, generation={"num_beams": 4}))


def test_other_tasks_have_no_settings_of_generation_whatever_their_base_has(folder: Path, delta: Delta) -> None:
    spec = preparation(folder).spec(replace(delta, architecture="LlamaModel"))
    assert spec.generation == GenerationSettings()
