"""What a delta of unknown origin must do before it becomes a version, and what becomes of those that slipped in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard
from problems import is_problem
from transformers import BertForQuestionAnswering
from uploading import publish as publish_over_http
from uploading import upload

from ken_core import DeltaFile, ResidentModel, deltafile, extract, open_base, open_tuned
from ken_core.checkpoint import TOKENIZER_FILES
from serving.engine.engine import Engine
from serving.engine.fitness import Fitness
from serving.errors import InvalidInputError, OverloadedError, UnfitDeltaError, UnsupportedKindError
from serving.service import Service
from serving.store import Store
from serving.store.deltas import Deltas as StoredDeltas
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.files import DeltaFiles
from tests.fuzzing.mutations import Draft
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny, scores, write_tuned

Edit = Callable[[Draft], object]


def changed(file: DeltaFile, tiny: Tiny, edit: Edit) -> bytes:
    """A delta with tokenizer files of its own, changed."""
    draft = Draft.of(file)
    for name in TOKENIZER_FILES:
        draft.manifest["files"][name] = {}
        draft.replace(f"files/{name}", (tiny.base_folder / name).read_bytes())
    edit(draft)
    return draft.bytes()


def config(**keys: Any) -> Edit:
    return lambda draft: draft.manifest["config"].update(keys)


def manifest(**keys: Any) -> Edit:
    return lambda draft: draft.manifest.update(keys)


def tokenizer(change: Callable[[dict[str, Any]], object], name: str = "tokenizer.json") -> Edit:
    def edit(draft: Draft) -> None:
        plain = draft.text(name)
        change(plain)
        draft.replace(f"files/{name}", json.dumps(plain).encode())

    return edit


def tokenizer_config(**keys: Any) -> Edit:
    return tokenizer(lambda plain: plain.update(keys), "tokenizer_config.json")


def step(part: str, **keys: Any) -> Edit:
    return tokenizer(lambda plain: plain.update({part: keys}))


def template(*tokens: dict[str, Any], ids: list[int]) -> Edit:
    special = {"[X]": {"id": "[X]", "ids": ids, "tokens": ["[X]"] * len(ids)}}
    pair = [*tokens, {"Sequence": {"id": "B", "type_id": 1}}]
    return step("post_processor", type="TemplateProcessing", single=list(tokens), pair=pair, special_tokens=special)


def added(token_id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": f"[NEW{token_id}]", "special": True, **flags}


def panic_at(beginning: str) -> Edit:
    """A tokenizer that panics on texts that begin so: byte-level offsets of what a normalizer put in."""
    replace = {"type": "Replace", "pattern": {"Regex": f"^(?={beginning})"}, "content": "b"}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return tokenizer(lambda plain: plain.update(normalizer=replace, pre_tokenizer=split))


def head_of(value: float) -> Edit:
    """A head whose every weight is one number."""

    def edit(draft: Draft) -> None:
        entry = draft.manifest["head"]["classifier.weight"]
        entry["codec"] = "raw"
        draft.replace("head/classifier.weight", np.full(entry["shape"], value, np.float32).tobytes())

    return edit


def head_in_float64(draft: Draft) -> None:
    entry = draft.manifest["head"]["classifier.weight"]
    entry.update(codec="zstd", dtype="float64")
    zeros = bytes(8 * int(np.prod(entry["shape"])))
    draft.replace("head/classifier.weight", zstandard.ZstdCompressor().compress(zeros))


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
X = {"SpecialToken": {"id": "[X]", "type_id": 0}}
NEW = [added(150 + i) for i in range(9)]
NEW_PADDING = tokenizer_config(extra_special_tokens=["[NEW1]", "[NEW2]", "[NEW3]"], pad_token="[NEW]")
UNFIT: dict[str, tuple[Edit, str]] = {
    "a dropout that is no number": (config(hidden_dropout_prob=float("nan")), "JSON"),
    "an infinite dropout": (config(attention_probs_dropout_prob=float("inf")), "JSON"),
    "half a surrogate pair in a label": (config(id2label={"0": "a\ud800", "1": "b"}), "surrogate"),
    "half a surrogate pair in a name": (lambda d: d.manifest["base"].update(name="\udfff"), "surrogate"),
    "half a surrogate pair as a key": (config(**{"\ud83d": 1}), "surrogate"),
    "a seed of 65 bits": (manifest(seed=1 << 65), "64 bits"),
    "a token of 100 bits": (config(eos_token_id=1 << 100), "64 bits"),
    "a budget of 65 bits": (lambda d: d.manifest["budget"].update(k=-(1 << 65)), "64 bits"),
    "a token larger than any vocabulary": (config(bos_token_id=1 << 40), "bos_token_id"),
    "a token id beyond the embedding": (tokenizer(lambda p: p["model"]["vocab"].update(rain=5000)), "ids up to 5000"),
    "an added token beyond the embedding": (
        tokenizer(lambda p: p["added_tokens"].extend(added(150 + i) for i in range(9))),
        "ids up to",
    ),
    "a special token around texts beyond it": (template(X, TEXT, ids=[4000]), "ids up to 4000"),
    "padding beyond it": (NEW_PADDING, "ids up to"),
    "a segment its model does not have": (template({"Sequence": {"id": "A", "type_id": 7}}, ids=[2]), "segment 7"),
    "a tokenizer that panics when it is made": (
        step("normalizer", type="Precompiled", precompiled_charsmap=""),
        "charsmap",
    ),
    "a tokenizer that panics on any text": (step("pre_tokenizer", type="FixedLength", length=0), "chunk size"),
    "a tokenizer that panics on some": (panic_at("x"), "out of bounds"),
    "a tokenizer without its unknown token": (tokenizer(lambda p: p["model"].update(unk_token="[GONE]")), "UNK"),
    "a tokenizer that finds no tokens": (step("normalizer", type="Replace", pattern={"Regex": "."}, content=""), "'a'"),
    "a tokenizer that multiplies text": (
        step("normalizer", type="Replace", pattern={"String": "a"}, content="a" * 5000),
        "5000 characters of one",
    ),
    "a tokenizer of code of its own": (tokenizer_config(auto_map={"AutoTokenizer": ["t.T", None]}), "auto_map"),
    "a tokenizer from another file": (tokenizer_config(gguf_file="/etc/passwd"), "gguf_file"),
    "a tokenizer in Python": (tokenizer_config(tokenizer_class="CanineTokenizer"), "no fast tokenizer"),
    "no room for a text": (tokenizer_config(model_max_length=4), "cuts texts at 4 tokens"),
    "a length that is none": (tokenizer_config(model_max_length="long"), "tokenizer"),
    "a head in another precision": (head_in_float64, "float64"),
    "answers that are infinite": (head_of(3e38), "not a number"),
}


@pytest.fixture(scope="module")
def check(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], DeltaFile]]:
    """Try a file's bytes on a running engine."""
    folder = tmp_path_factory.mktemp("fitness")
    resident = ResidentModel(open_base(str(tiny.base_folder)))
    files = DeltaFiles(folder / "deltas", 1 << 30, None)
    engine = Engine(resident, DeltaCache(files, 0, resident.checkpoint, resident.fingerprint.digest), Metrics("fit"))
    engine.start()
    fitness = Fitness(resident, engine)

    def run(data: bytes) -> DeltaFile:
        path = folder / "uploaded.partial"
        path.write_bytes(data)
        try:
            return fitness.check(path)
        finally:
            assert engine.tiers.held() == []
            assert engine.call(lambda: resident.active).result(20) is None
            assert engine.verify().result(20) == []

    yield run
    engine.stop()


@pytest.mark.parametrize("what", UNFIT)
def test_what_cannot_be_served_is_refused_with_the_reason(
    what: str, check: Callable[[bytes], DeltaFile], tiny: Tiny, deltas: Deltas
) -> None:
    edit, reason = UNFIT[what]
    with pytest.raises(InvalidInputError, match=reason) as refused:
        check(changed(deltas.spam, tiny, edit))
    assert str(tiny.base_folder) not in str(refused.value)
    assert ".partial" not in str(refused.value)


FIT: dict[str, Edit] = {
    "as it is": lambda draft: None,
    "that asks for tuples": config(return_dict=False),
    "that asks for all states": config(output_hidden_states=True),
    "that asks for attentions": config(output_attentions=True),
    "without a cache": config(use_cache=False),
    "with the length that means none": tokenizer_config(model_max_length=10**30),
    "whose tokenizer pads to a length": tokenizer(
        lambda plain: plain.update(
            padding={
                "strategy": {"Fixed": 4000}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]",
            }
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FIT)
def test_what_changes_no_answer_is_accepted_and_answers_as_ever(
    what: str, service: Service, tiny: Tiny, deltas: Deltas, publish: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(changed(deltas.spam, tiny, FIT[what]))
    odd = service.vetting.fitness.check(path)
    publish("odd", odd)

    async def ask(digest: str) -> list[Any]:
        return (await service.predict(digest, TEXTS, {}, 20)).outputs

    found, expected = asyncio.run(ask(odd.digest)), asyncio.run(ask(deltas.spam.digest))
    assert [scores(rows) for rows in found] == [pytest.approx(scores(rows), abs=1e-6) for rows in expected]


def test_a_model_whose_forward_pass_fails_is_refused(
    check: Callable[[bytes], DeltaFile], tiny: Tiny, tmp_path: Path
) -> None:
    three = write_tuned(
        tiny.base_folder, tmp_path / "three", ["a", "b", "c"], 90, architecture=BertForQuestionAnswering
    )
    with pytest.raises(InvalidInputError, match="its model fails on text: too many values to unpack"):
        check(tiny.delta(three).path.read_bytes())


def test_deltas_are_tried_while_requests_flow_and_no_answer_is_another(
    service: Service, tiny: Tiny, deltas: Deltas, dedicated: Callable[..., dict[str, float]], tmp_path: Path
) -> None:
    files = []
    for i, edit in enumerate((lambda draft: None, head_of(3e38), head_of(1.0), NEW_PADDING)):
        files.append(tmp_path / f"candidate-{i}")
        files[-1].write_bytes(changed(deltas.spam_2, tiny, edit))
    outcomes: list[str] = []
    done = threading.Event()

    def try_all() -> None:
        for path in files * 3:
            try:
                service.vetting.fitness.check(path)
                outcomes.append("fit")
            except InvalidInputError:
                outcomes.append("unfit")
        done.set()

    async def ask_meanwhile() -> int:
        asked = 0
        while not done.is_set() or asked < 30:
            name = ("emotion", "topic", "spam")[asked % 3]
            file, text = getattr(deltas, name), TEXTS[asked % len(TEXTS)]
            answer = await service.predict(file.digest, [text], {}, 20)
            assert answer.digest == file.digest
            assert scores(answer.outputs[0]) == pytest.approx(dedicated(file, text), abs=1e-5)
            asked += 1
        return asked

    trying = threading.Thread(target=try_all)
    trying.start()
    assert asyncio.run(ask_meanwhile()) >= 30
    trying.join()
    assert outcomes == ["fit", "unfit", "fit", "unfit"] * 3
    assert {loaded.digest for loaded in service.engine.tiers.held()} == {
        file.digest for file in (deltas.emotion, deltas.topic, deltas.spam)
    }
    assert service.engine.verify().result(20) == []


def test_an_upload_is_refused_with_the_reason_and_never_seen(
    make_service: Callable[..., Service], talk: Callable[..., Any], tiny: Tiny, deltas: Deltas
) -> None:
    empty = make_service()

    async def conversation(client: httpx.AsyncClient) -> None:
        for what in ("a tokenizer that panics on any text", "half a surrogate pair in a label", "a seed of 65 bits"):
            edit, reason = UNFIT[what]
            digest = await upload(client, changed(deltas.spam, tiny, edit))
            assert is_problem(await publish_over_http(client, "spam", digest), 422, "cannot be served here", reason)
        assert (await client.get("/v1/tasks")).json() == []

    talk(empty, conversation)


def test_what_came_straight_to_the_store_is_tried_when_it_is_published_over_http(
    make_service: Callable[..., Service],
    talk: Callable[..., Any],
    embedded_url: str,
    namespace: str,
    tiny: Tiny,
    deltas: Deltas,
    tmp_path: Path,
) -> None:
    edit, reason = UNFIT["a tokenizer that panics on any text"]
    (tmp_path / "unfit.ken").write_bytes(changed(deltas.spam, tiny, edit))
    unfit, store = deltafile.open_file(tmp_path / "unfit.ken"), Store(embedded_url, namespace)
    for file in (unfit, deltas.spam):
        store.deltas.put(file)

    async def conversation(client: httpx.AsyncClient) -> None:
        assert is_problem(await publish_over_http(client, "spam", unfit.digest), 422, "cannot be served here", reason)
        assert (await publish_over_http(client, "spam", deltas.spam.digest)).status_code == 200

    talk(make_service(), conversation)


def test_fewer_rows_than_the_bases_tokenizer_has_ids_are_refused(service: Service, tiny: Tiny, tmp_path: Path) -> None:
    """Though no text that it is tried with has a token beyond them."""
    model = BertForQuestionAnswering.from_pretrained(tiny.base_folder)
    model.resize_token_embeddings(service.engine.tiers.base_encoder.largest_ids[0], mean_resizing=False)
    model.save_pretrained(tmp_path / "shrunken")
    delta = extract(tiny.base, open_tuned(str(tmp_path / "shrunken")))
    file = deltafile.write(delta, tiny.base, tmp_path / "shrunken.ken")
    with pytest.raises(InvalidInputError, match="gives ids up to"):
        service.vetting.fitness.check(file.path)


def test_an_upload_that_there_was_no_time_to_try_is_kept(
    embedded_url: str, namespace: str, deltas: Deltas, tmp_path: Path
) -> None:
    store = Store(embedded_url, namespace)
    store.uploads.put_chunk(deltas.spam.digest, 0, deltas.spam.path.read_bytes())

    def busy(path: Path) -> DeltaFile:
        raise OverloadedError("the queue is full", 1.0)

    with pytest.raises(OverloadedError):
        store.uploads.commit(deltas.spam.digest, busy, tmp_path)
    assert store.uploads.progress(deltas.spam.digest).received == (0,)
    store.uploads.commit(deltas.spam.digest, deltafile.open_file, tmp_path)
    assert store.deltas.has(deltas.spam.digest)


# What was published past the server, on the store itself


def published(data: bytes, deltas: Deltas, folder: Path, publish: Callable[..., None]) -> str:
    path = folder / "direct"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    publish("direct", DeltaFile(path, deltas.spam.manifest, len(data), digest))
    return digest


def test_a_delta_that_can_never_be_served_is_found_out_once(
    service: Service, tiny: Tiny, deltas: Deltas, publish: Callable[..., None], tmp_path: Path, embedded_url: str,
    namespace: str,
) -> None:  # fmt: skip
    edit, reason = UNFIT["a token id beyond the embedding"]
    digest = published(changed(deltas.spam, tiny, edit), deltas, tmp_path, publish)
    with pytest.raises(UnfitDeltaError, match=reason) as first:
        asyncio.run(service.predict(digest, TEXTS, {}, 20))
    assert first.value.retry_after is None
    (service.cache.files.folder / digest).unlink()
    store = Store(embedded_url, namespace)
    store.tasks.delete("direct", force=True)
    store.garbage.collect()
    assert not store.deltas.has(digest)
    with pytest.raises(UnfitDeltaError, match=reason):  # and not that the store does not hold it
        asyncio.run(service.predict(digest, TEXTS, {}, 20))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the deltas that were fetched from a store."""
    found: list[str] = []
    fetch = StoredDeltas.fetch

    def fetching(store: StoredDeltas, digest: str, path: Path) -> None:
        found.append(digest)
        fetch(store, digest, path)

    monkeypatch.setattr(StoredDeltas, "fetch", fetching)
    return found


def test_a_tokenizer_that_is_none_is_the_deltas_fault(
    service: Service, tiny: Tiny, deltas: Deltas, publish: Callable[..., None], tmp_path: Path, fetched: list[str]
) -> None:
    edit, reason = UNFIT["a tokenizer that panics on any text"]
    digest = published(changed(deltas.spam, tiny, edit), deltas, tmp_path, publish)
    for _ in range(2):
        with pytest.raises(UnfitDeltaError, match=reason):
            asyncio.run(service.predict(digest, TEXTS, {}, 20))
    assert fetched == [digest]


def test_a_kind_that_is_not_served_is_found_out_once_too(
    service: Service, tiny: Tiny, publish: Callable[..., None], fetched: list[str]
) -> None:
    file = tiny.delta(tiny.filling("words-once", seed=53))
    publish("words", file)
    for _ in range(2):
        with pytest.raises(UnsupportedKindError, match="fill-mask"):
            asyncio.run(service.predict(file.digest, TEXTS, {}, 20))
        (service.cache.files.folder / file.digest).unlink(missing_ok=True)
    assert fetched == [file.digest]


def test_a_tokenizer_that_panics_on_one_text_fails_that_request_alone(
    service: Service, tiny: Tiny, deltas: Deltas, publish: Callable[..., None], tmp_path: Path,
    talk: Callable[..., Any], check: Callable[[bytes], DeltaFile],
) -> None:  # fmt: skip
    data = changed(deltas.spam, tiny, panic_at("xyzzy"))
    check(data)  # no text of the trial begins so
    published(data, deltas, tmp_path, publish)

    async def conversation(client: httpx.AsyncClient) -> None:
        for _ in range(40):  # more than there are threads to kill
            response = await client.post("/v1/tasks/direct/predict", json={"inputs": "xyzzy"})
            assert is_problem(response, 422, "tokenizer cannot read")
        assert (await client.post("/v1/tasks/direct/predict", json={"inputs": "rain"})).status_code == 200
        assert (await client.post("/v1/tasks/emotion/predict", json={"inputs": "xyzzy"})).status_code == 200

    talk(service, conversation)
