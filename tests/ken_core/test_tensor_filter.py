from __future__ import annotations

import pytest
from transformers import AutoModel

from ken_core.errors import SelectionError
from ken_core.tensor_filter import EVERYTHING, PRESETS, TensorFilter
from tests.ken_core.architectures import ARCHITECTURES


def names_of(architecture) -> list[str]:
    return [n for n, _ in AutoModel.from_config(architecture.config()).named_parameters()]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_the_attention_preset_covers_projections_of_every_layer_and_neither_norms_embeddings_nor_feed_forward(
    architecture,
):
    names = names_of(architecture)
    covered = [n for n in names if PRESETS["attention"].covers(n)]
    assert covered
    assert not [n for n in covered if "norm" in n.lower() or "embed" in n or "mlp" in n or "intermediate" in n]
    left = [n for n in names if n not in covered]
    assert not [n for n in left if "query" in n or "q_proj" in n or "q_lin" in n or "Wqkv" in n or "c_attn" in n]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_the_preset_without_embeddings_leaves_out_the_word_vectors_and_keeps_every_layer(architecture):
    model = AutoModel.from_config(architecture.config())
    words = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        covered = PRESETS["no-embeddings"].covers(name)
        assert not (parameter is words and covered)
        assert covered or "embed" in name or name.startswith(("wte", "wpe"))


def test_exclusion_wins_over_inclusion_and_globs_are_case_sensitive():
    chosen = TensorFilter(("layer.*.query", "pooler*"), ("*.0.*",))
    assert chosen.covers("layer.1.query")
    assert chosen.covers("pooler.dense")
    assert not chosen.covers("layer.0.query")
    assert not chosen.covers("layer.1.key")
    assert not chosen.covers("Pooler.dense")


def test_everything_covers_everything():
    assert all(EVERYTHING.covers(n) for n in ("a", "embeddings.word_embeddings.weight", "h.0.attn"))


def test_a_filter_that_covers_nothing_is_refused_with_names_there_are():
    with pytest.raises(
        SelectionError, match=r"include \*qkv\* and exclude \*bias.*2 tensors.*'a\.weight' and 'b\.bias'"
    ):
        TensorFilter(("*qkv*",), ("*bias",)).check(["b.bias", "a.weight"])
    TensorFilter(("a*",)).check(["a.weight"])
    TensorFilter(("a*",)).check([])


@pytest.mark.parametrize(
    ("changes", "message"), [({"outside": "drop"}, "'reset' or 'keep'"), ({"include": ()}, "at least one glob")]
)
def test_senseless_filters_are_refused(changes, message):
    with pytest.raises(SelectionError, match=message):
        TensorFilter(**changes)
