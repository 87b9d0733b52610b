"""How tasks generate: as their fine-tune's own folder does, or they are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import ken_core
from ken_core import Budget, Checkpoint, Delta, Selection, deltafile, open_base, open_tuned
from ken_core.errors import CheckpointError, DeltaFormatError
from ken_core.generation_settings import FILE, GenerationSettings, settings_of
from ken_core.manifest import Manifest
from tests.tiny_language_models import write_language_model

OWN = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 12,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.2,
    "eos_token_id": [2, 0],
    "bos_token_id": 1,
    "pad_token_id": 2,
    "max_new_tokens": 7,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_base(str(write_language_model(tmp_path_factory.mktemp("language") / "base")))


def tuned(base: Checkpoint, to: Path, settings: Mapping[str, Any] | None, **config: Any) -> Path:
    """A fine-tune of the base, with its own generation_config.json; None: without one."""
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.config.update(config)
    model.save_pretrained(to)
    for path in base.folder.glob("*token*"):
        shutil.copyfile(path, to / path.name)
    (to / FILE).unlink(missing_ok=True)
    if settings is not None:
        (to / FILE).write_text(json.dumps(settings))
    return to


def extracted(base: Checkpoint, folder: Path) -> Delta:
    return ken_core.extract(base, open_tuned(str(folder)), Selection(budget=Budget(fraction=1.0)))


def texts(folder: Path, **options: Any) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = torch.tensor([[5, 9, 30, 41], [7, 7, 60, 3]])
    torch.manual_seed(0)
    found: list[list[int]] = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options).tolist()
    return found


@pytest.mark.parametrize("settings", [OWN, {**OWN, "do_sample": False, "num_beams": 3}, {"eos_token_id": 11}, {}, None])
def test_the_applied_folder_generates_as_the_fine_tunes(
    settings: Mapping[str, Any] | None, base: Checkpoint, tmp_path: Path
) -> None:
    folder = tuned(base, tmp_path / "tuned", settings, eos_token_id=17)
    file = deltafile.write(extracted(base, folder), base, tmp_path / "d.ken")
    read = deltafile.read(file, base, base.identity.digest)
    ken_core.apply(base, read, tmp_path / "applied")
    options = {} if settings == OWN else {"max_new_tokens": 20}
    assert texts(tmp_path / "applied", **options) == texts(folder, **options)
    theirs, applied = (
        AutoModelForCausalLM.from_pretrained(at).generation_config for at in (folder, tmp_path / "applied")
    )
    for found in (theirs, applied):
        found._from_model_config = None
    assert applied.to_diff_dict() == theirs.to_diff_dict()


def test_only_what_differs_is_carried(base: Checkpoint, tmp_path: Path) -> None:
    same = tuned(base, tmp_path / "same", settings_of(base))
    assert extracted(base, same).generation is None
    assert settings_of(base)["eos_token_id"] == 2
    other = extracted(base, tuned(base, tmp_path / "other", OWN))
    assert other.generation == OWN
    assert GenerationSettings.of(other.generation, 400) == GenerationSettings(
        (2, 0), True, temperature=0.6, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.2
    )


def test_a_task_that_brings_none_has_its_bases_settings(base: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base.folder, tmp_path / "base"))
    (folder / FILE).write_text(json.dumps(OWN))
    own = open_base(str(folder))
    delta = extracted(own, tuned(own, tmp_path / "tuned", OWN))
    assert delta.generation is None
    ken_core.apply(own, delta, tmp_path / "applied")
    assert json.loads((tmp_path / "applied" / FILE).read_text()) == OWN


def test_a_folder_without_the_file_generates_by_its_config(base: Checkpoint, tmp_path: Path) -> None:
    """The base's own file must not be used then: Transformers would not either."""
    folder = tuned(base, tmp_path / "tuned", None, eos_token_id=[17, 18])
    delta = extracted(base, folder)
    assert delta.generation is not None
    assert GenerationSettings.of(delta.generation, 400).end_ids == (17, 18)
    bare = Path(shutil.copytree(base.folder, tmp_path / "bare"))
    (bare / FILE).unlink()
    assert settings_of(open_base(str(bare))) == settings_of(base)


def test_an_empty_file_sets_nothing_whatever_the_config_says(base: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base.folder, tmp_path / "base"))
    (folder / FILE).write_text("{}")
    assert settings_of(open_base(str(folder))) == settings_of(open_tuned(str(folder))) == {}


def test_keys_that_transformers_does_not_know_are_left_out(base: Checkpoint, tmp_path: Path) -> None:
    folder = tuned(base, tmp_path / "tuned", {**OWN, "chat_format": "chatml"})
    assert extracted(base, folder).generation == OWN


def test_a_damaged_file_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base.folder, tmp_path / "base"))
    (folder / FILE).write_text('{"eos_token_id": ')
    with pytest.raises(CheckpointError, match=r"generation_config\.json of .* cannot be used"):
        settings_of(open_base(str(folder)))


def test_deltas_of_earlier_formats_generate_as_the_base_does(base: Checkpoint, tmp_path: Path) -> None:
    delta = extracted(base, tuned(base, tmp_path / "tuned", OWN))
    plain = deltafile.write(delta, base, tmp_path / "d.ken").manifest.plain()
    assert plain.pop("generation") == OWN
    for version in (4, 5):
        assert Manifest.model_validate({**plain, "format": version}).generation is None


# What is refused


REFUSED: dict[str, Any] = {
    "num_beams": 4, "no_repeat_ngram_size": 3, "suppress_tokens": [3], "begin_suppress_tokens": [3],
    "forced_bos_token_id": 4, "forced_eos_token_id": 4, "typical_p": 0.9, "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.5}, "stop_strings": ["x"], "penalty_alpha": 0.6, "min_length": 5,
    "min_new_tokens": 5, "bad_words_ids": [[3]], "sequence_bias": [[[3], 1.5]], "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1, "top_h": 0.4, "token_healing": True, "dola_layers": "high", "constraints": [1],
    "exponential_decay_length_penalty": [5, 1.1], "encoder_repetition_penalty": 1.1, "force_words_ids": [[3]],
    "diversity_penalty": 0.5, "num_beam_groups": 2, "encoder_no_repeat_ngram_size": 2,
    "assistant_ensemble_weight": 0.5, "of_a_later_release": 1,
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_change_texts_otherwise_are_refused_by_name(key: str) -> None:
    with pytest.raises(DeltaFormatError, match=f"has {key} .*, which changes its texts and is not served"):
        GenerationSettings.of({**OWN, key: REFUSED[key]}, 400)


def test_every_setting_of_transformers_is_known() -> None:
    """A setting that is neither honoured, harmless nor refused above would come with a new release: decide about it."""
    undecided = []
    for key in vars(GenerationConfig()):
        try:
            GenerationSettings.of({key: 0.123}, 400)
        except DeltaFormatError as error:
            if "not served" in str(error) and key not in REFUSED:
                undecided.append(key)
    assert undecided == []


def test_settings_that_change_nothing_are_accepted() -> None:
    plain = {**GenerationConfig._get_default_generation_params(), "eos_token_id": None, "guidance_scale": 1.0}
    assert GenerationSettings.of(plain, 400) == GenerationSettings(
        temperature=1.0, top_k=50, top_p=1.0, repetition_penalty=1.0
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", -1),
        ("eos_token_id", "2"),
        ("eos_token_id", True),
        ("eos_token_id", [2] * 99),
        ("do_sample", "yes"),
        ("temperature", -0.5),
        ("temperature", "hot"),
        ("top_k", 2.5),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("num_beams", 0),
        ("guidance_scale", 0),
        ("min_length", True),
    ],
)
def test_impossible_values_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(DeltaFormatError, match=f"has {key} "):
        GenerationSettings.of({key: value}, 400)


def test_an_end_token_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(DeltaFormatError, match=r"ends texts at token 400 \(eos_token_id\), but its model has 400"):
        GenerationSettings.of({"eos_token_id": [2, 400]}, 400)


def test_extraction_warns_of_a_task_that_no_server_takes(base: Checkpoint, tmp_path: Path) -> None:
    delta = extracted(base, tuned(base, tmp_path / "tuned", {"num_beams": 3}))
    assert any("can be applied, but no server takes it" in w and "num_beams 3" in w for w in delta.warnings)


def test_a_delta_without_a_language_model_head_brings_no_settings(base: Checkpoint, tmp_path: Path) -> None:
    delta = extracted(base, tuned(base, tmp_path / "tuned", OWN))
    with pytest.raises(DeltaFormatError, match="generates nothing"):
        deltafile.write(replace(delta, architecture="LlamaModel"), base, tmp_path / "d.ken")
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    with pytest.raises(DeltaFormatError, match="nested in more than 8 levels"):
        deltafile.write(replace(delta, generation={"sequence_bias": deep}), base, tmp_path / "e.ken")
