"""Certificates and keys for a federation: ``python -m cgfedrec.deploy.certificates SERVER FOLDER [NODE ...]``.

It writes ``ca.crt``, which every node and every caller of ``flwr run`` needs, and the server's ``server.crt`` and
``server.key``, valid for a year. The key of the authority is thrown away: nobody can sign another certificate with it.
For each NODE there is a private key, which stays on it, and ``NODE.pub``, which is registered. An organisation with an
authority of its own uses that instead.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cgfedrec.files import write_atomically

DAYS = 365
"""For which certificates are valid."""


def write_certificates(server: str, folder: Path, nodes: Sequence[str] = ()) -> None:
    """Write certificates for a server, and keys for nodes.

    Args:
        server: Its name or address, as nodes call it.
        folder: Where to.
        nodes: Their names.
    """
    authority, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer, subject = _name("cgfedrec federation"), _name(server)
    root = (
        _certificate(issuer, issuer, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA384())
    )
    # Flower's own processes on the server call it by its local names.
    names = dict.fromkeys((server, "localhost", "127.0.0.1"))
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
    own = (
        _certificate(issuer, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(alternatives, critical=False)
        .sign(authority, hashes.SHA384())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    write_atomically(folder / "ca.crt", root.public_bytes(pem))
    write_atomically(folder / "server.crt", own.public_bytes(pem))
    server_key = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    write_atomically(folder / "server.key", server_key, private=True)
    for node in nodes:
        secret = ec.generate_private_key(ec.SECP384R1())
        own_key = secret.private_bytes(pem, serialization.PrivateFormat.OpenSSH, plain)
        write_atomically(folder / node, own_key, private=True)
        public = secret.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_atomically(folder / f"{node}.pub", public + b"\n")


def _certificate(issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + timedelta(days=DAYS))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(server: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(server))
    except ValueError:
        return x509.DNSName(server)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python -m {__spec__.name} SERVER FOLDER [NODE ...]")
    write_certificates(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
