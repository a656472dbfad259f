"""Keys, masks and sealed messages of secure sums: X25519, HKDF and ChaCha20, none of them ours."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.values import Field

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("masks need cryptography: pip install cgfedrec[secure]", name="cryptography") from error


def public_of(private: bytes) -> bytes:
    """The public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """The 32 bytes that both owners of a pair of keys know, and nobody else.

    Args:
        private: One's own key, 32 bytes.
        public: The other's, 32 bytes.
        purpose: For what: other purposes give other bytes.

    Raises:
        ValueError: for a public key with which there is no secret.
    """
    secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)


def sealed(key: bytes, plain: bytes, purpose: bytes) -> bytes:
    """Bytes that only who has the key can read, and nobody else could have written. A key seals one message."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, purpose)


def unsealed(key: bytes, message: bytes, purpose: bytes) -> bytes:
    """The inverse of `sealed`. Raises ``ValueError`` for anything else."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), message, purpose)
    except InvalidTag as error:
        raise ValueError("a share has not come as it was sent") from error


def residues(field: Field) -> Field:
    """What travels in place of whole numbers of known bounds: any number of as many bits."""
    assert field.bounds is not None
    largest = (torch.ones_like(field.bounds.widths) << field.bounds.widths) - 1
    return Field(field.shape, torch.int64, bounds=Bounds(largest, bits=field.bounds.bits))


def mask(seed: bytes, fields: Mapping[str, Field]) -> dict[str, Tensor]:
    """Numbers that only who has the seed can tell from chance, by name, `[...]` as of each field: modulo its 2^bits.

    Args:
        seed: 32 bytes; it makes one mask.
        fields: Of whole numbers of known bounds.
    """
    sizes = [math.prod(field.shape) for field in fields.values()]
    stream = Cipher(ChaCha20(seed, bytes(16)), None).encryptor().update(bytes(8 * sum(sizes)))
    numbers = torch.from_numpy(np.frombuffer(stream, "<i8").copy()).split(sizes)
    found = {}
    for (name, field), part in zip(fields.items(), numbers, strict=True):
        bounds = residues(field).bounds
        assert bounds is not None
        found[name] = part.view(field.shape) & bounds.largest
    return found
