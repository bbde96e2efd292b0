"""Certificates of a CA of the test's own, made with openssl."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """`ca` is the file that a client trusts; the server's certificate names 127.0.0.1 and engine.test."""

    ca: Path
    certificate: Path
    key: Path

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make(folder: Path) -> Certificates:
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:true")
    _openssl(*new, "-x509", "-subj", "/CN=Test CA", *usage, "-keyout", folder / "ca.key", "-out", made.ca)
    _openssl(*new, "-subj", "/CN=engine.test", "-keyout", made.key, "-out", folder / "server.csr")
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:engine.test,IP:127.0.0.1\nauthorityKeyIdentifier=keyid")
    signing = ("-CA", made.ca, "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2")
    _openssl("x509", "-req", "-in", folder / "server.csr", *signing, "-extfile", extensions, "-out", made.certificate)
    return made


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
