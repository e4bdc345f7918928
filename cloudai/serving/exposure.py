"""How a deployment is exposed: its address, TLS, gRPC, what is noted of requests, and what that takes."""

from __future__ import annotations

from pathlib import Path

from cloudai.drivers.protocols import Driver
from cloudai.errors import SpecError
from cloudai.serving.ports import HERE, check_port
from cloudai.serving.tls import check_tls, is_loopback
from cloudai.specs.serving import DeploySpec

__all__ = ["check_exposure", "router_options"]


def check_exposure(spec: DeploySpec, driver: Driver) -> None:
    """Make sure, before anything is written, that a deployment can be reached as asked, and only so.

    Raises
    ------
    SpecError
        If the driver has no router of ours, the files of TLS cannot be used, it should listen beyond this machine without
        TLS, or the port is taken.
    """
    if router_options(spec) and not driver.capabilities.router:
        what = f"the driver {spec.on!r} has its own way in, which knows no host=, tls=, grpc_port= and access_log="
        raise SpecError(what, fix='leave them out, or deploy with on="local"')
    if spec.tls is not None:
        check_tls(spec.tls)
    elif not is_loopback(spec.host):
        what = f"cannot listen on {spec.host!r} without TLS: the token would travel for all to read"
        raise SpecError(what, fix="give tls=cloudai.Tls(certificate=…, key=…)")
    if driver.capabilities.here:
        _check_file(spec.access_log)
        if not spec.payload_log.startswith(("http://", "https://")):
            _check_file(spec.payload_log)
    check_port(spec.port, spec.host)
    if spec.grpc_port:
        if spec.grpc_port == spec.port:
            raise SpecError(f"HTTP and gRPC cannot share the port {spec.port}", fix="give two, or 0 for free ones")
        check_port(spec.grpc_port, spec.host)


def _check_file(target: str) -> None:
    if target and (not Path(target).is_absolute() or not Path(target).parent.is_dir()):
        raise SpecError(f"a log cannot go to {target!r}", fix="give the whole path of a file, in a folder that is there")


def router_options(spec: DeploySpec) -> tuple[str, ...]:
    """Return the options of the router for a deployment's address, TLS, gRPC and access log."""
    options = {} if spec.host == HERE else {"--host": spec.host}
    if spec.tls is not None:
        options |= {"--tls-certificate": str(spec.tls.certificate), "--tls-key": str(spec.tls.key)}
        options |= {"--client-ca": str(spec.tls.client_ca)} if spec.tls.client_ca else {}
    if spec.access_log:
        options["--access-log"] = spec.access_log
    if spec.grpc_port is not None:
        options["--grpc-port"] = str(spec.grpc_port)
    return tuple(word for option in options.items() for word in option)
