"""Signatures: which key made them, of which delta, and which keys are trusted."""

from __future__ import annotations

import base64
import re
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.errors import InvalidInputError, UntrustedDeltaError
from serving.security.signature_file import read_signatures, signature_file, write_signatures
from serving.security.signatures import Signature, TrustedKeys, check_genuine, public_key_of, sign
from serving.security.signing_key import create_signing_key, read_signing_key

KEYS = st.binary(min_size=32, max_size=32).map(Ed25519PrivateKey.from_private_bytes)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
DIGEST = "5d" * 32
OURS, THEIRS = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
OPS = TrustedKeys.read([f"ops={public_key_of(OURS)}"])


def flipped(text: str, bit: int) -> str:
    """Base64 of the same bytes with one bit changed."""
    data = bytearray(base64.b64decode(text))
    data[bit // 8] ^= 1 << bit % 8
    return base64.b64encode(data).decode()


# One signature


@given(KEYS, DIGESTS)
def test_a_signature_is_of_the_delta_that_was_signed(key: Ed25519PrivateKey, digest: str) -> None:
    signature = sign(key, digest)
    assert signature.is_of(digest)
    assert TrustedKeys.read([f"ops={public_key_of(key)}"]).check(digest, [signature]) == "ops"
    assert Signature.model_validate(signature.record()) == signature


@given(KEYS, DIGESTS, DIGESTS)
def test_a_signature_of_another_delta_is_refused(key: Ed25519PrivateKey, digest: str, other: str) -> None:
    assert sign(key, other).is_of(digest) == (digest == other)


@given(KEYS, DIGESTS, st.integers(0, 255))
def test_one_bit_of_the_delta_makes_it_another(key: Ed25519PrivateKey, digest: str, bit: int) -> None:
    other = bytearray(bytes.fromhex(digest))
    other[bit // 8] ^= 1 << bit % 8
    assert not sign(key, digest).is_of(other.hex())


@given(KEYS, DIGESTS, st.integers(0, 511))
def test_no_bit_of_a_signature_may_change(key: Ed25519PrivateKey, digest: str, bit: int) -> None:
    signature = sign(key, digest)
    altered = Signature(key=signature.key, signature=flipped(signature.signature, bit))
    assert not altered.is_of(digest)
    with pytest.raises(UntrustedDeltaError, match="that is not of this delta"):
        TrustedKeys.read([public_key_of(key)]).check(digest, [altered])


@given(KEYS, DIGESTS, st.integers(0, 255))
def test_no_bit_of_a_key_may_change(key: Ed25519PrivateKey, digest: str, bit: int) -> None:
    signature = sign(key, digest)
    altered = Signature(key=flipped(signature.key, bit), signature=signature.signature)
    assert not altered.is_of(digest)
    with pytest.raises(UntrustedDeltaError, match="keys that are not trusted here"):
        TrustedKeys.read([public_key_of(key)]).check(digest, [altered])


def test_what_is_signed_is_fixed_for_ever() -> None:
    """Existing signatures must stay valid: the signed message and the record are a file format."""
    signature = sign(OURS, DIGEST)
    raw = base64.b64decode(signature.signature)
    OURS.public_key().verify(raw, b"ken-serve delta v1\0" + bytes.fromhex(DIGEST))
    assert list(signature.record()) == ["key", "signature"]


def test_what_the_key_signed_for_another_purpose_is_no_signature_of_a_delta() -> None:
    elsewhere = base64.b64encode(OURS.sign(bytes.fromhex(DIGEST))).decode()
    assert not Signature(key=public_key_of(OURS), signature=elsewhere).is_of(DIGEST)


GENUINE = sign(OURS, DIGEST)


@pytest.mark.parametrize(
    "record",
    [
        {"key": GENUINE.key},
        {"key": GENUINE.key, "signature": GENUINE.signature[:-4]},
        {"key": GENUINE.key[:-1], "signature": GENUINE.signature},
        {"key": GENUINE.key + "\n", "signature": GENUINE.signature},
        {"key": GENUINE.key.replace("=", "A"), "signature": GENUINE.signature},
        {"key": "A" * 42 + "B=", "signature": GENUINE.signature},  # another base64 text for 32 zero bytes
        {"key": GENUINE.key, "signature": GENUINE.signature, "digest": DIGEST},
    ],
)
def test_a_record_of_another_form_is_none(record: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Signature.model_validate(record)


def test_a_false_signature_is_refused_whoever_is_trusted() -> None:
    check_genuine(DIGEST, [GENUINE, sign(THEIRS, DIGEST)])
    with pytest.raises(InvalidInputError, match=re.escape(f"{public_key_of(THEIRS)} is not of delta {DIGEST}")):
        check_genuine(DIGEST, [GENUINE, sign(THEIRS, "00" * 32)])


# Trusted keys


@given(st.lists(KEYS, max_size=4), st.lists(KEYS, min_size=1, max_size=4, unique_by=public_key_of), DIGESTS)
def test_one_trusted_signer_is_enough_and_nobody_else_counts(
    signers: list[Ed25519PrivateKey], trusted: list[Ed25519PrivateKey], digest: str
) -> None:
    keys = TrustedKeys.read([public_key_of(key) for key in trusted])
    others = [sign(key, digest) for key in signers if public_key_of(key) not in keys.names]
    assert keys.signer(digest, others) is None
    for key in trusted:
        assert keys.signer(digest, [*others, sign(key, digest)]) == public_key_of(key)


def test_a_refusal_names_the_delta_the_keys_and_what_to_do() -> None:
    with pytest.raises(UntrustedDeltaError, match=rf"{DIGEST} is not signed; sign .* key of ops .*`ken sign`"):
        OPS.check(DIGEST, [])
    with pytest.raises(UntrustedDeltaError, match=re.escape(public_key_of(THEIRS))):
        OPS.check(DIGEST, [sign(THEIRS, DIGEST)])


def test_a_false_signature_beside_a_good_one_by_the_same_key_does_no_harm() -> None:
    assert OPS.check(DIGEST, [sign(OURS, "00" * 32), GENUINE]) == "ops"


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["ops"],
        ["ops="],
        [f"={GENUINE.key}"],
        [GENUINE.key[:-1]],
        [GENUINE.signature],
        [GENUINE.key, f"ops={GENUINE.key}"],
        [f"ops={GENUINE.key}", f"ops={public_key_of(THEIRS)}"],
    ],
)
def test_what_is_no_set_of_keys_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="found"):
        TrustedKeys.read(texts)


ORDER_ONE = (1).to_bytes(32, "little")


def test_a_key_that_anybody_can_sign_for_is_refused() -> None:
    Ed25519PublicKey.from_public_bytes(ORDER_ONE).verify(ORDER_ONE + bytes(32), b"anything at all")  # no private key
    for weak in (ORDER_ONE, bytes(32), ORDER_ONE[:31] + b"\x80", b"\xee" + b"\xff" * 31):
        with pytest.raises(ValueError, match="anybody can sign"):
            TrustedKeys.read([base64.b64encode(weak).decode()])


# Files


def test_signatures_lie_beside_their_delta(tmp_path: Path) -> None:
    delta = tmp_path / "trec.ken"
    assert read_signatures(delta) == ()
    both = (GENUINE, sign(THEIRS, DIGEST))
    write_signatures(delta, both)
    assert read_signatures(delta) == both
    assert [p.name for p in tmp_path.iterdir()] == ["trec.ken.sig"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["x"]', '[{"key": "x", "signature": "y"}]', "\xff"])
def test_a_file_that_holds_no_signatures_is_named(text: str, tmp_path: Path) -> None:
    delta = tmp_path / "trec.ken"
    signature_file(delta).write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"trec\.ken\.sig: .*ken sign"):
        read_signatures(delta)


def test_a_signing_key_is_its_owners_alone_and_signs_after_it_was_read_again(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    made = create_signing_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    signature = sign(read_signing_key(path), DIGEST)
    assert signature.key == public_key_of(made)
    assert signature.is_of(DIGEST)


def test_a_signing_key_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    first = create_signing_key(path)
    with pytest.raises(InvalidInputError, match="exists already"):
        create_signing_key(path)
    assert public_key_of(read_signing_key(path)) == public_key_of(first)
    with pytest.raises(InvalidInputError, match="cannot be written"):
        create_signing_key(tmp_path / "nowhere" / "signing.pem")


def test_what_is_no_signing_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_signing_key(path)
    of_another_kind = generate_private_key(SECP256R1())
    for content in (
        b"no key",
        of_another_kind.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        OURS.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match="no ed25519 private key"):
            read_signing_key(path)
