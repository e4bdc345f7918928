"""The files of TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from cloudai.specs.validation import Spec

__all__ = ["Tls"]

File = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Tls(Spec):
    """The files with which a deployment speaks TLS, all in PEM. Changed files are read again, and no connection is lost.

    Examples
    --------
    >>> Tls(certificate="/etc/tls/models.pem", key="/etc/tls/models.key").client_ca is None
    True
    """

    certificate: File
    """The certificate, followed by those that lead to its authority."""
    key: File
    """Its private key, without a password, in a file that only you can read."""
    client_ca: File | None = None
    """The authorities of clients: who shows no certificate of theirs is refused before it can ask anything."""
    client_certificate: File | None = None
    """The certificate that `Deployment.predict` and `Deployment.curl` show, where there is a `client_ca`."""
    client_key: File | None = None
    """Its private key."""
