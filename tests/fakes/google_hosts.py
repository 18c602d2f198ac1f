"""Google's own host names in the fake: a proxy's tunnel ends in it, behind a certificate of a test.

By `--api-endpoint` one address stands for every host; by `HTTPS_PROXY` a process calls the real
names, and the fake tells them apart: an endpoint with a dedicated host is served there only.
"""

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fakes.google import Refused

DEDICATED = ".prediction.vertexai.goog"


def check_host(host: str, number: str | None, method: str, *, dedicated: bool) -> None:
    """Raise 404 for a method that this host does not serve for the endpoint `number`."""
    name = host.partition(":")[0]
    if name.endswith(DEDICATED):
        if method != "predict" or name.partition(".")[0] != number or not dedicated:
            raise Refused(404, "NOT_FOUND", f"{name} does not serve this.")
    elif name.endswith(".googleapis.com") and method == "predict" and dedicated:
        message = f"Endpoint {number} has a dedicated host: use its dedicated DNS name."
        raise Refused(404, "NOT_FOUND", message)


def server_context(folder: Path, names: tuple[str, ...]) -> tuple[ssl.SSLContext, Path]:
    """TLS for these names, and the file of the authority that vouches for them."""
    key = ec.generate_private_key(ec.SECP256R1())
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "t2i test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(title)
        .issuer_name(title)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority, secret = folder / "authority.pem", folder / "server.pem"
    public = certificate.public_bytes(serialization.Encoding.PEM)
    authority.write_bytes(public)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    secret.write_bytes(private + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secret)
    return context, authority
