"""Certificates and keys for a federation: ``python -m cgfedrec.deploy.certificates SERVER FOLDER [NODE ...]``.

It writes ``ca.crt``, which every node and every caller of ``flwr run`` needs, and the server's ``server.crt`` and
``server.key``, valid for a year. The key of the authority is thrown away: nobody can sign another certificate with it.
For each NODE there is a private key, which stays on it, and ``NODE.pub``, which is registered. Where FOLDER has
certificates already, keys of further nodes are added; nothing that is there is replaced. An organisation with an
authority of its own uses that instead.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cgfedrec.errors import InputError, RunError, check, printable
from cgfedrec.files import no_folder, write_atomically

DAYS = 365
"""For which certificates are valid."""
AUTHORITY, CERTIFICATE, KEY = "ca.crt", "server.crt", "server.key"
"""The files of an authority and of the server, which go together."""
_PEM = serialization.Encoding.PEM


def write_certificates(server: str, folder: Path, nodes: Sequence[str] = ()) -> list[Path]:
    """Write certificates for a server, unless they are there, and keys for nodes. No file is replaced.

    Args:
        server: Its name or address, as nodes call it.
        folder: Where to.
        nodes: Their names.

    Returns:
        What has been written.

    Raises:
        InputError: for what cannot be used, and for files that are there; nothing has been written then.
    """
    check(_no_server(server), no_folder("FOLDER", folder), *map(_no_node, nodes))
    there = [name for name in (AUTHORITY, CERTIFICATE, KEY) if os.path.lexists(folder / name)]
    check(_no_more(server, folder, there, nodes), *_taken(folder, nodes))
    files: dict[str, bytes] = {}
    if not there:
        files |= _of_server(server)
    for node in nodes:
        files |= _of_node(node)
    for name, content in files.items():
        write_atomically(folder / name, content, private=name == KEY or name in nodes)
    return [folder / name for name in files]


def _no_node(node: str) -> str | None:
    """The problem with the name of a node, by which its files are called."""
    if re.fullmatch(r"\w[\w.-]*", node) and len(os.fsencode(node)) <= 200:  # of 255, with what is put round it
        return None
    return f"NODE: {node!r:.80} is no plain name of a file; give letters and digits, with . _ - between them"


def _taken(folder: Path, nodes: Sequence[str]) -> list[str]:
    """The problems with files of nodes that other files stand in the way of."""
    names, problems = [AUTHORITY, CERTIFICATE, KEY], []
    for name in (name for node in nodes for name in (node, f"{node}.pub")):
        if name in names or os.path.lexists(folder / name):
            problems.append(f"NODE: {folder / name} is there already, or is another's; choose another name")
        names.append(name)
    return problems


def _no_server(server: str) -> str | None:
    """The problem with the name or address of a server."""
    # 64: what a certificate takes.
    if isinstance(_address(server), str) and not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", server):
        return f"SERVER: {server!r:.80} is neither a name, such as server.example, nor an address, such as 192.0.2.7"
    return None


def _no_more(server: str, folder: Path, there: Sequence[str], nodes: Sequence[str]) -> str | None:
    """The problem with certificates that are there, to which keys of nodes are to be added."""
    if not there:
        return None
    if len(there) < 3:
        return f"FOLDER: {folder} has {' and '.join(there)} alone, which is a part of certificates; choose another"
    if not nodes:
        return f"FOLDER: {folder} has certificates already, which are not replaced; choose another"
    try:
        own = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
        known = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        return f"FOLDER: {folder / CERTIFICATE} is no certificate of a server ({error}); choose another"
    if _alternative(server) in list(known):
        return None
    return f"SERVER: {folder / CERTIFICATE} is not of {server}; give the same name as before, or choose another FOLDER"


def _of_server(server: str) -> Mapping[str, bytes]:
    """The files of a new authority and of a server, by name."""
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
    own_key = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {AUTHORITY: root.public_bytes(_PEM), CERTIFICATE: own.public_bytes(_PEM), KEY: own_key}


def _of_node(node: str) -> Mapping[str, bytes]:
    """The files of a node, by name."""
    key = ec.generate_private_key(ec.SECP384R1())
    own_key = key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {node: own_key, f"{node}.pub": public + b"\n"}


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
    address = _address(server)
    return x509.DNSName(address) if isinstance(address, str) else x509.IPAddress(address)


def _address(server: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | str:
    """An address, or the name as it stands."""
    try:
        return ipaddress.ip_address(server)
    except ValueError:
        return server


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code is 2 for what cannot be used, and 1 where there is no room."""
    if len(arguments) < 2:
        print("usage: python -m cgfedrec.deploy.certificates SERVER FOLDER [NODE ...]", file=sys.stderr)
        return 2
    server, folder, *nodes = arguments
    try:
        written = write_certificates(server, Path(folder), nodes)
    except (InputError, RunError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
