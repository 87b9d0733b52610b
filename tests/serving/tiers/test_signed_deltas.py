"""A replica that trusts only some: what it takes, and what it loads from the store and from its disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from listening import listening
from problems import is_problem

from ken_core import DeltaFile
from serving.api import create_app
from serving.client import ApiError, Client
from serving.config import load_settings
from serving.errors import InvalidInputError, RefusedDeltaError, StartError, StoreError
from serving.security.signature_file import read_signatures, signature_file, write_signatures
from serving.security.signatures import Signature, TrustedKeys, public_key_of, sign
from serving.service import Service
from serving.store import CHUNK_BYTES, Collected, Store
from serving.store.urls import connect
from serving.telemetry.metrics import Metrics
from serving.tiers.files import DeltaFiles
from serving.tiers.signature_check import SignatureCheck
from tests.tiny_checkpoints import Deltas

OURS, THEIRS = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
OPS = f"ops={public_key_of(OURS)}"
LEFT = f"left={public_key_of(THEIRS)}"

MakeService = Callable[..., Service]
Talk = Callable[..., Any]


# Whom a server trusts


def test_trusted_keys_come_from_the_environment_or_yaml_and_reach_every_replica(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ken.yaml").write_text(f"base: b\ntrusted_keys: [{OPS}]\n")
    with monkeypatch.context() as patch:
        patch.setenv("KEN_CONFIG", str(tmp_path / "ken.yaml"))
        assert load_settings().trusted_keys == (OPS,)
    assert load_settings(base="b").trusted_keys is None
    monkeypatch.setenv("KEN_TRUSTED_KEYS", json.dumps([OPS, LEFT]))
    assert load_settings(base="b").shareable()["trusted_keys"] == [OPS, LEFT]


@pytest.mark.parametrize("text", ["", "[]", '["ops"]', OPS], ids=["empty", "none", "no key", "no list"])
def test_a_server_does_not_start_with_keys_that_are_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above all not as one that trusts everybody."""
    monkeypatch.setenv("KEN_TRUSTED_KEYS", text)
    with pytest.raises(StartError, match="trusted_keys"):
        load_settings(base="b")


# The store


def test_signatures_are_stored_with_their_delta_one_a_key(store: Store, deltas: Deltas) -> None:
    ours, theirs = (sign(key, deltas.spam.digest) for key in (OURS, THEIRS))
    store.tasks.publish("spam", deltas.spam)
    assert store.signatures.of(deltas.spam.digest) == ()
    store.tasks.publish("spam", deltas.spam, signatures=[ours])
    store.tasks.publish_digest("spam", deltas.spam.digest, "canary", signatures=[theirs, ours])
    store.deltas.put(deltas.spam)
    assert set(store.signatures.of(deltas.spam.digest)) == {ours, theirs}


def test_a_signature_of_another_delta_is_not_stored_and_nothing_is_published(store: Store, deltas: Deltas) -> None:
    of_topic = sign(OURS, deltas.topic.digest)
    with pytest.raises(InvalidInputError, match="is not of delta"):
        store.tasks.publish("spam", deltas.spam, signatures=[of_topic])
    assert not store.deltas.has(deltas.spam.digest)
    store.deltas.put(deltas.spam)
    with pytest.raises(InvalidInputError, match="is not of delta"):
        store.tasks.publish_digest("spam", deltas.spam.digest, signatures=[of_topic])
    assert store.tasks.table().tasks == {}
    assert store.signatures.of(deltas.spam.digest) == ()


def test_gc_takes_signatures_with_their_delta(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam, signatures=[sign(OURS, deltas.spam.digest)])
    store.tasks.delete("spam", force=True)
    assert store.garbage.collect() == Collected(1, deltas.spam.size)
    with pytest.raises(StoreError, match="does not hold"):
        store.signatures.of(deltas.spam.digest)


def test_what_others_wrote_in_place_of_signatures_is_left_out(
    store: Store, store_url: str, namespace: str, deltas: Deltas
) -> None:
    genuine = sign(OURS, deltas.spam.digest)
    store.tasks.publish("spam", deltas.spam, signatures=[genuine])
    fields = {"signature:nobody": "nothing", b"signature:\xff": b"\xff", f"signature:{public_key_of(THEIRS)}": "x"}
    connect(store_url).hset(f"ken:{namespace}:delta:{{{deltas.spam.digest}}}", mapping=fields)
    assert store.signatures.of(deltas.spam.digest) == (genuine,)


# The disk tier


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("here")


@pytest.fixture
def restarted(store: Store, tmp_path: Path, metrics: Metrics) -> Callable[..., DeltaFiles]:
    """The disk tier of a replica that has just begun, with the keys it trusts."""

    def make(*trusted: str, budget: int = 1 << 30, store: Store = store) -> DeltaFiles:
        signed = SignatureCheck(TrustedKeys.read(trusted), store, metrics) if trusted else None
        return DeltaFiles(tmp_path / "deltas", budget, store, signed)

    return make


Restarted = Callable[..., DeltaFiles]


def signed(store: Store, file: DeltaFile, key: Ed25519PrivateKey = OURS) -> None:
    store.tasks.publish("task", file, signatures=[sign(key, file.digest)])


@pytest.fixture
def away() -> Store:
    return Store("redis://127.0.0.1:1/0", timeout=0.2)


def test_a_signed_delta_is_loaded_and_its_signature_kept_beside_it(
    restarted: Restarted, store: Store, deltas: Deltas, away: Store
) -> None:
    signed(store, deltas.spam)
    file, was_there = restarted(OPS, LEFT).open(deltas.spam.digest)
    assert (file.digest, was_there) == (deltas.spam.digest, False)
    assert read_signatures(file.path) == (sign(OURS, deltas.spam.digest),)
    assert restarted(OPS, store=away).open(deltas.spam.digest)[1] is True


def test_a_signature_that_cannot_be_kept_does_not_mean_that_the_disk_takes_no_deltas(
    restarted: Restarted, store: Store, deltas: Deltas, caplog: pytest.LogCaptureFixture
) -> None:
    signed(store, deltas.spam)
    files = restarted(OPS)
    signature_file(files.folder / deltas.spam.digest).mkdir()
    files.open(deltas.spam.digest)
    assert files.trouble is None
    assert f"signatures of delta {deltas.spam.digest} cannot be kept" in caplog.text


@pytest.mark.parametrize("key", [None, THEIRS], ids=["unsigned", "signed by another"])
def test_what_no_trusted_key_signed_is_not_even_fetched(
    key: Ed25519PrivateKey | None,
    restarted: Restarted,
    store: Store,
    deltas: Deltas,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.tasks.publish("spam", deltas.spam, signatures=[sign(key, deltas.spam.digest)] if key else [])
    files = restarted(OPS)
    for _ in range(3):
        with pytest.raises(RefusedDeltaError, match=f"{deltas.spam.digest} is .*signed") as refused:
            files.open(deltas.spam.digest)
    assert refused.value.status == 500
    assert list(files.folder.iterdir()) == []
    assert metrics.registry.get_sample_value("ken_refused_deltas_total", {"replica": "here"}) == 3
    assert [r.levelno for r in caplog.records if deltas.spam.digest in r.message] == [logging.ERROR]


def test_what_was_signed_meanwhile_is_loaded_without_a_restart(
    restarted: Restarted, store: Store, deltas: Deltas
) -> None:
    store.tasks.publish("spam", deltas.spam)
    files = restarted(OPS)
    with pytest.raises(RefusedDeltaError):
        files.open(deltas.spam.digest)
    signed(store, deltas.spam)
    assert files.open(deltas.spam.digest)[0].digest == deltas.spam.digest


def test_what_came_to_disk_before_keys_were_set_is_loaded_only_if_the_store_has_it_signed(
    restarted: Restarted, store: Store, deltas: Deltas
) -> None:
    for file in (deltas.spam, deltas.spam_2):
        store.tasks.publish("task", file)
        restarted().open(file.digest)
    signed(store, deltas.spam_2)
    files = restarted(OPS)
    with pytest.raises(RefusedDeltaError, match="is not signed"):
        files.open(deltas.spam.digest)
    assert files.open(deltas.spam_2.digest)[1] is True


def test_a_key_that_is_no_longer_trusted_takes_its_deltas_along_though_they_lie_on_disk(
    restarted: Restarted, store: Store, deltas: Deltas
) -> None:
    signed(store, deltas.spam, THEIRS)
    restarted(OPS, LEFT).open(deltas.spam.digest)
    files = restarted(OPS)
    assert files.holds(deltas.spam.digest)
    with pytest.raises(RefusedDeltaError, match="keys that are not trusted"):
        files.open(deltas.spam.digest)
    signed(store, deltas.spam, OURS)
    file, was_there = files.open(deltas.spam.digest)
    assert was_there
    assert len(read_signatures(file.path)) == 2


def another_keys(path: Path, digest: str) -> None:
    write_signatures(path, [sign(THEIRS, digest)])


def another_deltas(path: Path, digest: str) -> None:
    write_signatures(path, [sign(OURS, "0" * 64)])


def our_name_on_their_signature(path: Path, digest: str) -> None:
    write_signatures(path, [Signature(key=public_key_of(OURS), signature=sign(THEIRS, digest).signature)])


def no_json(path: Path, digest: str) -> None:
    signature_file(path).write_bytes(b"\xff")


def nothing(path: Path, digest: str) -> None:
    signature_file(path).unlink()


@pytest.mark.parametrize("tamper", [another_keys, another_deltas, our_name_on_their_signature, no_json, nothing])
def test_signatures_that_were_changed_on_disk_do_not_count(
    tamper: Callable[[Path, str], None],
    restarted: Restarted,
    store: Store,
    store_url: str,
    namespace: str,
    deltas: Deltas,
    away: Store,
) -> None:
    signed(store, deltas.spam)
    path = restarted(OPS).open(deltas.spam.digest)[0].path
    tamper(path, deltas.spam.digest)
    with pytest.raises(StoreError, match="does not answer"):
        restarted(OPS, store=away).open(deltas.spam.digest)
    restarted(OPS).open(deltas.spam.digest)  # the store's are put in their place
    assert read_signatures(path) == (sign(OURS, deltas.spam.digest),)
    tamper(path, deltas.spam.digest)
    key = f"ken:{namespace}:delta:{{{deltas.spam.digest}}}"
    connect(store_url).hdel(key, f"signature:{public_key_of(OURS)}")
    with pytest.raises(RefusedDeltaError):
        restarted(OPS).open(deltas.spam.digest)


def test_a_signed_name_does_not_cover_another_file(
    restarted: Restarted, store: Store, deltas: Deltas, away: Store
) -> None:
    signed(store, deltas.spam)
    path = restarted(OPS).open(deltas.spam.digest)[0].path
    path.write_bytes(deltas.topic.path.read_bytes())
    with pytest.raises(StoreError, match="does not answer"):
        restarted(OPS, store=away).open(deltas.spam.digest)
    file, was_there = restarted(OPS).open(deltas.spam.digest)
    assert not was_there
    assert file.path.read_bytes() == deltas.spam.path.read_bytes()


def test_signatures_leave_the_disk_with_their_deltas(restarted: Restarted, store: Store, deltas: Deltas) -> None:
    for file in (deltas.spam, deltas.spam_2):
        signed(store, file)
    files = restarted(OPS, budget=1)
    for file in (deltas.spam, deltas.spam_2):
        files.open(file.digest)
    assert {p.name for p in files.folder.iterdir()} == {deltas.spam_2.digest, f"{deltas.spam_2.digest}.sig"}
    assert files.nbytes == restarted(OPS).nbytes == deltas.spam_2.size


def test_signatures_that_a_killed_replica_left_without_a_delta_are_cleared_away(
    restarted: Restarted, store: Store, deltas: Deltas
) -> None:
    signed(store, deltas.spam)
    files = restarted(OPS)
    kept = signature_file(files.open(deltas.spam.digest)[0].path)
    left = files.folder / f"{deltas.topic.digest}.sig"
    left.write_text("[]")
    for path in (kept, left):
        os.utime(path, (1000, 1000))
    restarted(OPS)
    assert kept.exists()
    assert not left.exists()


# A replica


def versions(digest: str, *keys: Ed25519PrivateKey, signed: str = "") -> dict[str, Any]:
    """The body that publishes a delta with signatures of it, or of another that is said to be signed."""
    signatures = [sign(key, signed or digest).record() for key in keys]
    return {"digest": digest, "wait": 20, "signatures": signatures}


async def upload(client: httpx.AsyncClient, file: DeltaFile) -> None:
    assert file.size <= CHUNK_BYTES
    sent = await client.put(f"/v1/uploads/{file.digest}/0", content=file.path.read_bytes())
    assert sent.status_code == 200


def test_a_replica_takes_only_what_a_trusted_key_signed(make_service: MakeService, talk: Talk, deltas: Deltas) -> None:
    service = make_service(trusted_keys=(OPS,))
    digest, other = deltas.spam.digest, deltas.topic.digest

    async def conversation(client: httpx.AsyncClient) -> None:
        async def publish(body: dict[str, Any]) -> httpx.Response:
            return await client.post("/v1/tasks/spam/versions", json=body)

        await upload(client, deltas.spam)
        assert is_problem(await publish({"digest": digest}), 403, digest, "is not signed", "ops", "ken sign")
        assert is_problem(await publish(versions(digest, THEIRS)), 403, "not trusted", public_key_of(THEIRS))
        assert is_problem(await publish(versions(digest, OURS, signed=other)), 422, "is not of delta", digest)
        assert is_problem(await publish({"digest": digest, "signatures": [{"key": "x"}]}), 422, "signatures.0")
        assert is_problem(await publish(versions(digest, *[OURS] * 9)), 422, "signatures")
        assert (await client.get("/v1/tasks")).json() == []
        assert (await publish(versions(digest, THEIRS, OURS))).status_code == 200
        assert (await client.post("/v1/tasks/spam/predict", json={"inputs": "rain"})).status_code == 200
        again = await client.post("/v1/tasks/mail/versions", json={"digest": digest})
        assert again.status_code == 200, "the store has it signed already"

    talk(service, conversation)


def test_a_delta_is_not_decoded_before_its_signature_was_found_good(
    make_service: MakeService, talk: Talk, deltas: Deltas
) -> None:
    """What is no delta at all is refused for want of a signature, and its chunks stay: nobody looked at them."""
    service = make_service(trusted_keys=(OPS,))

    async def conversation(client: httpx.AsyncClient) -> None:
        digest = deltas.spam.digest
        await client.put(f"/v1/uploads/{digest}/0", content=b"no delta at all")
        assert is_problem(await client.post("/v1/tasks/spam/versions", json={"digest": digest}), 403, "not signed")
        assert (await client.get(f"/v1/uploads/{digest}")).json()["received"] == [0]

    talk(service, conversation)


def test_a_replica_answers_500_for_what_others_published_unsigned(
    make_service: MakeService,
    publish: Callable[..., None],
    talk: Talk,
    deltas: Deltas,
    metric: Callable[..., float],
    embedded_url: str,
    namespace: str,
) -> None:
    service = make_service(trusted_keys=(OPS,))
    publish("spam", deltas.spam)

    async def conversation(client: httpx.AsyncClient) -> None:
        predict = ("/v1/tasks/spam/predict", {"inputs": "rain"})
        refused = await client.post(predict[0], json=predict[1])
        assert is_problem(refused, 500, deltas.spam.digest, "is not signed")
        assert "retry-after" not in refused.headers
        signature = sign(OURS, deltas.spam.digest)
        Store(embedded_url, namespace).tasks.publish("spam", deltas.spam, signatures=[signature])
        assert (await client.post(predict[0], json=predict[1])).status_code == 200

    talk(service, conversation)
    assert metric(service, "ken_refused_deltas_total") == 1


def test_a_replica_that_trusts_everybody_keeps_signatures_for_those_who_do_not(
    make_service: MakeService, talk: Talk, deltas: Deltas, embedded_url: str, namespace: str
) -> None:
    service = make_service()

    async def conversation(client: httpx.AsyncClient) -> None:
        await upload(client, deltas.spam)
        false = versions(deltas.spam.digest, OURS, signed=deltas.topic.digest)
        assert is_problem(await client.post("/v1/tasks/spam/versions", json=false), 422, "is not of delta")
        good = versions(deltas.spam.digest, OURS)
        assert (await client.post("/v1/tasks/spam/versions", json=good)).status_code == 200

    talk(service, conversation)
    assert Store(embedded_url, namespace).signatures.of(deltas.spam.digest) == (sign(OURS, deltas.spam.digest),)


def test_the_client_sends_the_signatures_that_lie_beside_a_file(
    make_service: MakeService, deltas: Deltas, tmp_path: Path
) -> None:
    service = make_service(trusted_keys=(OPS,))
    file = tmp_path / "spam.ken"
    file.write_bytes(deltas.spam.path.read_bytes())
    with listening(create_app(service)) as url, Client(url) as client:
        with pytest.raises(ApiError, match="is not signed") as refused:
            client.publish("spam", file)
        assert refused.value.status == 403
        write_signatures(file, [sign(OURS, deltas.spam.digest)])
        client.publish("spam", str(file), wait=20)
        assert client.predict("spam", "rain").digest == deltas.spam.digest
        signature_file(file).write_text(json.dumps({"key": "x"}))
        with pytest.raises(InvalidInputError, match=r"spam\.ken\.sig"):
            client.publish("spam", file)


# Merges that requests ask for


def test_every_task_of_a_merge_must_be_signed_and_the_merge_need_not(
    make_service: MakeService, store: Store, deltas: Deltas, talk: Talk
) -> None:
    for task in ("emotion", "spam", "topic"):
        file = getattr(deltas, task)
        store.tasks.publish(task, file, signatures=[sign(THEIRS if task == "topic" else OURS, file.digest)])
    service = make_service(trusted_keys=(OPS,))

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        merges = ({"spam": 0.7, "emotion": 0.3}, {"spam": 0.7, "topic": 0.3})
        bodies = [{"inputs": "rain", "model": {"merge": merge}} for merge in merges]
        return [await client.post("/v1/tasks/spam/predict", json=body) for body in bodies]

    signed, unsigned = talk(service, conversation)
    assert signed.status_code == 200
    assert is_problem(unsigned, 500)
    assert unsigned.json()["title"] == "Delta not trusted"
    assert deltas.topic.digest in unsigned.json()["detail"]
