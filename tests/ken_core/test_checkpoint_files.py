"""The forms in which a checkpoint's weights lie in its folder: safetensors or pickles, whole or in shards."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, DTYPES, HEADS
from round_trip import EVERYTHING, answers_of_folder, round_trip, same_answers
from stored_forms import FORMS, PICKLES, one_pickle, without_weights
from transformers import AutoModel

from ken_core import deltafile
from ken_core.bits import same_bits
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.errors import CheckpointError
from ken_core.extraction import extract

Files = tuple[Path, Path]
"""Folders of a base and of a fine-tune."""

Subject = tuple[str, str, str]
"""An architecture, a head and a dtype."""


# forms

SUBJECTS = [("bert", "sequence", dtype) for dtype in DTYPES] + [("gpt2", "causal-lm", "float16")]


@pytest.fixture(scope="module", params=SUBJECTS, ids="-".join)
def subject(request) -> Subject:
    return request.param


@pytest.fixture(scope="module")
def dtype(subject) -> torch.dtype:
    return DTYPES[subject[2]]


@pytest.fixture(scope="module")
def whole(subject, dtype, save_random, save_noisy, tmp_path_factory) -> Files:
    """Base and fine-tune, one safetensors file each."""
    name, head, _ = subject
    made = save_random(AutoModel.from_config, BY_NAME[name].config(), dtype=dtype)
    folder = tmp_path_factory.mktemp("whole")
    tuned = save_noisy(HEADS[head], made, dtype=dtype)
    return Path(shutil.copytree(made, folder / "base")), Path(shutil.copytree(tuned, folder / "tuned"))


@pytest.fixture(scope="module", params=FORMS)
def formed(request, whole, tmp_path_factory) -> Files:
    """Base and fine-tune in another form, in folders of the same names."""
    folder = tmp_path_factory.mktemp("formed")
    for source in whole:
        FORMS[request.param](source, folder / source.name)
        assert not (folder / source.name / "model.safetensors").exists()
    return folder / "base", folder / "tuned"


def tensors(opened: Checkpoint) -> dict[str, torch.Tensor]:
    return {**opened.backbone_tensors, **opened.head_tensors}


def same_tensors(one: Checkpoint, other: Checkpoint) -> bool:
    found, expected = tensors(one), tensors(other)
    return found.keys() == expected.keys() and all(same_bits(found[n], t) for n, t in expected.items())


def test_a_checkpoint_has_the_same_bits_in_every_form(whole, formed):
    assert same_tensors(open_base(str(formed[0])), open_base(str(whole[0])))
    assert same_tensors(open_tuned(str(formed[1])), open_tuned(str(whole[1])))


def test_a_delta_is_the_same_file_whatever_form_it_came_from(whole, formed, tmp_path):
    digests = set()
    for files in (whole, formed):
        base = open_base(str(files[0]))
        delta = extract(base, open_tuned(str(files[1])))
        digests.add(deltafile.write(delta, base, tmp_path / "delta.ken").digest)
    assert len(digests) == 1


def test_a_delta_is_served_as_it_is_applied_in_every_form(formed, subject, dtype, batch, tmp_path):
    """With all changed weights kept, the answers are those of the fine-tune itself."""
    trip = round_trip(*formed, EVERYTHING, out=tmp_path)
    for folder in (trip.applied, formed[1]):
        expected = answers_of_folder(HEADS[subject[1]], folder, batch, dtype=dtype)
        for attached in (trip.packed, trip.materialised):
            assert same_answers(trip.served(attached, batch), expected)
    assert trip.resident.verify() == []


# dtypes

ANOTHER = {"float32": "float16", "bfloat16": "float32", "float16": "bfloat16"}


@pytest.mark.parametrize("claimed", ["another", "none"])
def test_the_dtype_of_the_files_counts_whatever_the_config_claims(whole, formed, subject, claimed, tmp_path):
    for opener, files, plain in zip((open_base, open_tuned), formed, whole, strict=True):
        folder = Path(shutil.copytree(files, tmp_path / files.name))
        config = json.loads((folder / "config.json").read_text()) | {"dtype": ANOTHER[subject[2]]}
        if claimed == "none":
            del config["dtype"]
        (folder / "config.json").write_text(json.dumps(config))
        assert same_tensors(opener(str(folder)), opener(str(plain)))


@pytest.fixture
def bert(save_random, save_noisy, tmp_path) -> Files:
    """A whole base and fine-tune in bfloat16, to be changed."""
    made = save_random(AutoModel.from_config, BY_NAME["bert"].config(), dtype=torch.bfloat16)
    tuned = save_noisy(HEADS["sequence"], made, dtype=torch.bfloat16)
    return Path(shutil.copytree(made, tmp_path / "base")), Path(shutil.copytree(tuned, tmp_path / "tuned"))


def test_integers_in_a_pickle_do_not_count_as_its_dtype(bert, tmp_path):
    """Old checkpoints carry their position ids."""
    out = tmp_path / "out"
    state = without_weights(bert[0], out) | {"embeddings.position_ids": torch.arange(40)[None]}
    torch.save(state, out / "pytorch_model.bin")
    assert same_tensors(open_base(str(out)), open_base(str(bert[0])))


def test_of_several_dtypes_in_pickles_the_widest_counts(bert, tmp_path):
    out = tmp_path / "out"
    state = without_weights(bert[0], out)
    state["pooler.dense.bias"] = torch.linspace(-1, 1, 32)
    torch.save(state, out / "pytorch_model.bin")
    opened = open_base(str(out)).backbone_tensors
    assert {t.dtype for t in opened.values()} == {torch.float32}
    assert same_bits(opened["pooler.dense.bias"], state["pooler.dense.bias"])


def test_names_of_old_pickles_are_understood(bert, tmp_path):
    out = tmp_path / "out"
    state = without_weights(bert[0], out)
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): n for n in state
    }
    torch.save({name: state[new] for name, new in old.items()}, out / "pytorch_model.bin")
    assert set(old) != set(state)
    assert same_tensors(open_base(str(out)), open_base(str(bert[0])))


# pickles are data, never code


class Payload:
    """A pickle that runs code as it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "ran"


def test_the_payload_does_run_where_pickles_are_trusted(mark, tmp_path):
    torch.save({"weight": Payload(mark)}, tmp_path / "trusted.bin")
    torch.load(tmp_path / "trusted.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("role", [0, 1], ids=["base", "tuned"])
@pytest.mark.parametrize("form", PICKLES)
def test_a_pickle_that_would_run_code_is_refused_and_does_not(bert, tmp_path, mark, form, role):
    out = tmp_path / "out"
    FORMS[form](bert[role], out)
    last = sorted(out.glob("*.bin"))[-1]
    state = torch.load(last, weights_only=True)
    torch.save({**state, "extra": Payload(mark)}, last, _use_new_zipfile_serialization=form != "one-old-pickle")
    with pytest.raises(CheckpointError, match=str(out)):
        (open_base, open_tuned)[role](str(out))
    assert not mark.exists()


@pytest.mark.parametrize("opener", [open_base, open_tuned])
def test_a_bare_pickle_in_place_of_weights_is_refused_and_does_not_run(bert, tmp_path, mark, opener):
    out = tmp_path / "out"
    without_weights(bert[1], out)
    (out / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark), protocol=2))
    with pytest.raises(CheckpointError, match=str(out)):
        opener(str(out))
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 3, 700, -1])
@pytest.mark.parametrize("opener", [open_base, open_tuned])
def test_a_truncated_pickle_is_refused(bert, tmp_path, opener, keep):
    out = tmp_path / "out"
    one_pickle(bert[1], out)
    weights = out / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=str(out)):
        opener(str(out))


# which file counts


@pytest.mark.parametrize("form", PICKLES)
def test_safetensors_count_where_pickles_lie_beside_them(bert, tmp_path, form):
    for opener, folder in zip((open_base, open_tuned), bert, strict=True):
        other = tmp_path / f"other-{folder.name}"
        FORMS[form](folder, other)
        for file in other.glob("*.bin"):
            torch.save({n: t.float() + 1 for n, t in torch.load(file, weights_only=True).items()}, file)
        expected = tensors(opener(str(folder)))
        for file in other.glob("pytorch_model*"):
            shutil.copy(file, folder)
        found = tensors(opener(str(folder)))
        assert all(same_bits(found[n], t) for n, t in expected.items())


def test_a_pickle_beside_safetensors_is_not_even_read(bert, mark):
    torch.save({"weight": Payload(mark)}, bert[0] / "pytorch_model.bin")
    open_base(str(bert[0]))
    assert not mark.exists()


@pytest.mark.parametrize("form", ["sharded-safetensors", "sharded-pickles"])
@pytest.mark.parametrize("opener", [open_base, open_tuned])
def test_a_missing_shard_is_refused(bert, tmp_path, form, opener):
    out = tmp_path / "out"
    FORMS[form](bert[1], out)
    sorted(p for p in out.iterdir() if "-of-" in p.name)[-1].unlink()
    with pytest.raises(CheckpointError, match=str(out)):
        opener(str(out))
