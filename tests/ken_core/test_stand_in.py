"""Heads that answer from an output which the backbone has computed before: all heads, their rows alone, on threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import BY_NAME, HEADS
from transformers import BertForSequenceClassification, BertModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from ken_core.bits import same_bits
from ken_core.configs import portable
from ken_core.errors import WholeModelNeededError
from ken_core.heads import Grafted, graft_split
from ken_core.stand_in import StandIn, cut

Batch = dict[str, torch.Tensor]
LABELS = {"sequence": 3, "tokens": 3}


def backbone_of(architecture: str, **config: Any) -> PreTrainedModel:
    torch.manual_seed(5)
    model: PreTrainedModel = HEADS["features"].from_config(BY_NAME[architecture].config(**config)).eval()
    return model


def grafted_on(backbone: PreTrainedModel, architecture: str, head: str, seed: int = 6, **config: Any) -> Grafted:
    """A random head on a backbone."""
    torch.manual_seed(seed)
    labels = {"num_labels": LABELS[head]} if head in LABELS else {}
    model = HEADS[head].from_config(BY_NAME[architecture].config(**labels, **config))
    tensors: dict[str, torch.Tensor] = {}
    if model.base_model is not model:
        inside, ties = f"{model.base_model_prefix}.", model.get_expanded_tied_weights_keys(all_submodels=True)
        state = model.state_dict()
        tensors = {n: t for n, t in state.items() if not n.startswith(inside) and n not in ties}
    return graft_split(backbone, type(model).__name__, portable(model.config), tensors)


def tensors_of(answer: Any) -> dict[str, torch.Tensor]:
    return {name: found for name, found in answer.items() if isinstance(found, torch.Tensor)}


def run(backbone: PreTrainedModel, batch: Batch) -> ModelOutput:
    output: ModelOutput = backbone(**batch, return_dict=True)
    return output


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return backbone_of("bert")


# Every architecture


@pytest.mark.parametrize("architecture", BY_NAME)
def test_every_head_answers_bit_for_bit_as_its_whole_model(architecture: str, batch: Batch) -> None:
    backbone = backbone_of(architecture)
    output = run(backbone, batch)
    for head in BY_NAME[architecture].heads:
        model = grafted_on(backbone, architecture, head)
        assert model.splits, head
        expected = tensors_of(model.whole(**batch))
        found = tensors_of(model(output, batch))
        assert expected
        assert found.keys() == expected.keys()
        assert all(same_bits(found[name], tensor) for name, tensor in expected.items()), head


@pytest.mark.parametrize("architecture", BY_NAME)
def test_heads_answer_their_own_rows_of_one_output_as_if_these_had_run_alone(architecture: str, batch: Batch) -> None:
    backbone = backbone_of(architecture)
    output = run(backbone, batch)
    rows, longest = slice(1, 3), int(batch["attention_mask"][1:].sum(dim=1).max())
    own = {name: tensor[rows, :longest] for name, tensor in batch.items()}
    assert longest < batch["input_ids"].shape[1]
    for head in set(BY_NAME[architecture].heads) - {"causal-lm"}:
        model = grafted_on(backbone, architecture, head)
        expected = tensors_of(model.whole(**own))
        found = tensors_of(model(cut(output, rows, longest), own))
        real = own["attention_mask"].bool()
        for name, tensor in expected.items():
            at_tokens = tensor.shape[:2] == real.shape and head != "sequence"
            assert found[name].shape == tensor.shape
            torch.testing.assert_close(
                found[name][real] if at_tokens else found[name], tensor[real] if at_tokens else tensor,
                atol=1e-5, rtol=1e-5,
            )  # fmt: skip


def test_an_architecture_without_a_head_answers_with_the_output_itself(bert: PreTrainedModel, batch: Batch) -> None:
    model, output = grafted_on(bert, "bert", "features"), run(bert, batch)
    assert model.whole is bert
    assert model(output, batch) is output


def test_a_pooler_inside_the_backbone_answers_from_the_output(bert: PreTrainedModel, batch: Batch) -> None:
    model, output = grafted_on(bert, "bert", "sequence"), run(bert, batch)
    other = type(output)(last_hidden_state=output["last_hidden_state"], pooler_output=-output["pooler_output"])
    assert not same_bits(model(other, batch).logits, model(output, batch).logits)


def test_the_head_shares_its_tensors_with_the_whole_model(bert: PreTrainedModel) -> None:
    model = grafted_on(bert, "bert", "sequence")
    assert model._head is not None
    assert model.whole.bert is bert
    assert isinstance(model._head.bert, StandIn)
    assert model._head.classifier is model.whole.classifier


# Heads that need more


def test_a_head_that_reads_a_part_of_its_backbone_needs_its_whole_model(bert: PreTrainedModel, batch: Batch) -> None:
    model = grafted_on(bert, "bert", "sequence")
    assert model._head is not None
    with pytest.raises(WholeModelNeededError, match="reads 'encoder'"):
        _ = model._head.bert.encoder
    unsplit = Grafted(model.whole, splits=False)
    with pytest.raises(WholeModelNeededError, match="BertForSequenceClassification needs its whole model"):
        unsplit(run(bert, batch), batch)
    assert same_bits(unsplit(None, batch).logits, model.whole(**batch).logits)


def test_what_the_probe_could_not_see_is_an_error_the_first_time_and_known_from_then_on(batch: Batch) -> None:
    """GPT-NeoX's token classifier takes segment ids, and does not hand them on."""
    backbone = backbone_of("gpt_neox")
    model = grafted_on(backbone, "gpt_neox", "tokens")
    assert model.splits
    with_types = {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}
    with pytest.raises(WholeModelNeededError, match="without token_type_ids"):
        model(run(backbone, batch), with_types)
    assert not model.splits
    assert same_bits(model(None, with_types).logits, model.whole(**with_types).logits)


@pytest.fixture
def stand_in(batch: Batch) -> Callable[..., Any]:
    """``stand_in(*args, **kwargs)``: what a head gets that calls it so; the output of `batch` was given."""
    one, output = StandIn(BertModel), ModelOutput(last_hidden_state=torch.zeros(3, 9, 4))

    def call(*args: Any, **kwargs: Any) -> Any:
        with one.giving(output, batch):
            return one(*args, **kwargs)

    return call


def test_the_same_question_gets_the_output_however_it_is_put(stand_in: Callable[..., Any], batch: Batch) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    nothing = {"output_hidden_states": False, "output_attentions": None, "past_key_values": None, "use_cache": True}
    for found in (
        stand_in(ids, mask),
        stand_in(ids, attention_mask=mask, return_dict=True),
        stand_in(attention_mask=mask, input_ids=ids, position_ids=None, **nothing),
    ):
        assert isinstance(found, ModelOutput)
    assert [t.shape for t in stand_in(ids, mask, return_dict=False)] == [(3, 9, 4)]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"output_hidden_states": True}, "output_hidden_states=True"),
        ({"output_attentions": True}, "output_attentions=True"),
        ({"position_ids": torch.zeros(3, 9)}, r"position_ids=a tensor of shape \[3, 9\]"),
        ({"inputs_embeds": torch.zeros(3, 9, 4)}, "inputs_embeds="),
        ({"is_causal": True}, "is_causal=True"),
        ({"attention_mask": torch.ones(3, 9)}, "attention_mask=a tensor"),
        ({"attention_mask": None}, "without attention_mask"),
        ({"input_ids": torch.zeros(3, 9)}, "input_ids=a tensor"),
    ],
)
def test_any_other_question_is_an_error_that_names_it(
    stand_in: Callable[..., Any], batch: Batch, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(WholeModelNeededError, match=named):
        stand_in(**{**batch, **asked})


def test_more_arguments_than_the_backbone_has_are_an_error(stand_in: Callable[..., Any]) -> None:
    with pytest.raises(WholeModelNeededError, match="40 arguments"):
        stand_in(*[None] * 40)


def test_whatever_else_is_read_of_the_backbone_is_an_error() -> None:
    with pytest.raises(WholeModelNeededError, match="'embeddings'"):
        StandIn(BertModel).embeddings  # noqa: B018


def test_without_an_output_there_is_no_answer(batch: Batch) -> None:
    one = StandIn(BertModel)
    with pytest.raises(WholeModelNeededError, match="no output was given"):
        one(**batch)
    with one.giving(ModelOutput(last_hidden_state=torch.zeros(3, 9, 4)), batch):
        one(**batch)
    with pytest.raises(WholeModelNeededError, match="no output was given"):
        one(**batch)


def test_an_output_of_another_shape_cannot_be_cut() -> None:
    output = ModelOutput(last_hidden_state=torch.zeros(3, 9, 4), router=torch.zeros(27, 4))
    with pytest.raises(WholeModelNeededError, match=r"router has shape \[27, 4\]"):
        cut(output, slice(0, 1), 5)


# Threads


def test_heads_of_one_and_of_different_tasks_answer_their_own_rows_on_several_threads(
    bert: PreTrainedModel, batch: Batch
) -> None:
    models = [grafted_on(bert, "bert", "sequence", seed) for seed in range(2)]
    batches = [{n: t[i : i + 1] for n, t in batch.items()} for i in range(3)]
    outputs = [run(bert, one) for one in batches]
    expected = {(m, b): models[m].whole(**batches[b]).logits for m in range(2) for b in range(3)}
    wrong: list[tuple[int, int]] = []
    asked: list[tuple[int, int]] = []
    start = threading.Barrier(6)

    def ask(m: int, b: int) -> None:
        start.wait()
        with torch.inference_mode():
            answers = (models[m](outputs[b], batches[b]).logits for _ in range(200))
            wrong.extend((m, b) for found in answers if not same_bits(found, expected[m, b]))
        asked.append((m, b))

    threads = [threading.Thread(target=ask, args=pair) for pair in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == sorted(expected)
    assert not wrong
    assert len({t.numpy().tobytes() for t in expected.values()}) == 6


def test_a_head_that_raises_leaves_nothing_behind(bert: PreTrainedModel, batch: Batch) -> None:
    model, output = grafted_on(bert, "bert", "sequence"), run(bert, batch)
    assert isinstance(model.whole, BertForSequenceClassification)
    broken = model.whole.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(output, batch)
    broken.remove()
    assert model.splits
    assert same_bits(model(output, batch).logits, model.whole(**batch).logits)
    assert model._stand_in._of_thread.given is None
