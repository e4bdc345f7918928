"""An authority of the tests' own, and the certificates that it signs."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


def name_of(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def private_file(path, content):
    path.touch(0o600)
    path.chmod(0o600)
    path.write_bytes(content)
    return path


def pem_key(key, password=b""):
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Authority:
    def __init__(self, folder, name="authority"):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key, self.name = ec.generate_private_key(ec.SECP256R1()), name_of(name)
        made = self._builder(self.name, self.key, -1, 3650).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), True
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject, key, start, end):
        now = datetime.now(UTC)
        named = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        dated = named.not_valid_before(now + start * DAY).not_valid_after(now + end * DAY)
        return dated.serial_number(x509.random_serial_number())

    def sign(self, stem, *, names=("localhost", "127.0.0.1"), client=False, start=-1, end=30):
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        built = self._builder(name_of(stem), key, start, end)
        built = built.add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), False)
        built = built.add_extension(x509.ExtendedKeyUsage([usage]), False)
        pem = built.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        pair = Pair(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        private_file(pair.key, pem_key(key))
        pair.certificate.write_bytes(pem)
        return pair


def general_name(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
