"""TLS in front of a server on loopback, with a certificate authority that is made for it."""

import datetime
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from socket import SHUT_WR, create_connection, create_server, socket
from urllib.parse import urlsplit


@dataclass(frozen=True)
class TlsServer:
    """Its address, and the file with the certificate of its authority."""

    url: str
    ca_file: Path


@contextmanager
def running_tls(target: str, folder: Path, address: str = "127.0.0.1") -> Iterator[TlsServer]:
    """TLS on a free port until the block ends; its certificate is for `address`."""
    ca_file, chain = _certificates(folder, address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    listener = create_server(("127.0.0.1", 0))
    where = urlsplit(target)

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(plain,), daemon=True).start()

    def answer(plain: socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(plain, server_side=True) as outside,
            create_connection((where.hostname, where.port)) as inside,
        ):
            back = threading.Thread(target=_copy, args=(inside, outside), daemon=True)
            back.start()
            _copy(outside, inside)
            back.join(5)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield TlsServer(f"https://127.0.0.1:{listener.getsockname()[1]}", ca_file)
    finally:
        listener.shutdown(2)
        listener.close()
        thread.join(5)


def _copy(source: socket, target: socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65_536):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(SHUT_WR)


def _certificates(folder: Path, address: str) -> tuple[Path, Path]:
    """The authority's certificate, and a server's key and certificate of it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority of a test"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    usage = dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True) | dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        + ("encipher_only", "decipher_only"),
        False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    root = (
        builder("authority of a test", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    leaf = (
        builder(address, key)
        .add_extension(names, critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, lock = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ca_file, chain = folder / "ca.pem", folder / "chain.pem"
    ca_file.write_bytes(root.public_bytes(pem))
    chain.write_bytes(key.private_bytes(pem, form, lock) + leaf.public_bytes(pem))
    return ca_file, chain
