"""Load over TLS, checked against an authority of our own."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.codecs.messages import ModelInferResponse
from loadtests.bench.clients import make_client
from loadtests.bench.clients.base import Call
from loadtests.bench.plan import Protocol, Target
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.tests.bench_servers import BODY, Http, serving

SERVICE = "inference.GRPCInferenceService"
ANSWER: bytes = ModelInferResponse(model_name="m", model_version="7").SerializeToString()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


def ask(target: Target, wire: Wire) -> tuple[str, str, bytes]:
    async def asking() -> tuple[str, str, bytes]:
        said: asyncio.Future[tuple[str, str, bytes]] = asyncio.get_running_loop().create_future()
        client = make_client(
            target, [wire], connections=1, most=1, done=lambda call, *rest: said.set_result(rest)
        )
        try:
            await client.open()
            call = Call(0, 0, 0)
            call.keep = True
            client.send(call)
            return await asyncio.wait_for(said, 20)
        finally:
            await client.close()

    return asyncio.run(asking())


def test_https(pair: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*pair)
    wire = Wire("/v2/models/m/infer", b"{}")
    with serving(Http(), tls=context) as port:
        http = f"https://127.0.0.1:{port}"
        good = Target("m", Protocol.JSON, http=http, ca_file=str(pair[0]))
        assert ask(good, wire) == ("", "7", BODY)
        with pytest.raises(BenchError, match=r"nobody answers.*certificate"):
            ask(Target("m", Protocol.JSON, http=http), wire)
        # No gRPC there: it does not offer HTTP/2.
        wrong = Target("m", Protocol.GRPC, grpc=f"127.0.0.1:{port}", ca_file=str(pair[0]))
        with pytest.raises(BenchError, match="no HTTP/2 over TLS"):
            ask(wrong, Wire("/m", b""))


def test_grpcs(pair: tuple[Path, Path]) -> None:
    def many(requests: object, context: object) -> object:
        for _ in requests:  # type: ignore[attr-defined]
            yield b"\x12" + bytes([len(ANSWER)]) + ANSWER

    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(lambda data, context: ANSWER),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(many),
    }
    service = grpc.method_handlers_generic_handler(SERVICE, handlers)
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[service])
    key, certificate = pair[1].read_bytes(), pair[0].read_bytes()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    try:
        for protocol, method in (
            (Protocol.GRPC, "ModelInfer"),
            (Protocol.STREAM, "ModelStreamInfer"),
        ):
            wire = Wire(f"/{SERVICE}/{method}", b"")
            for address in (f"127.0.0.1:{port}", f"grpcs://127.0.0.1:{port}"):
                target = Target("m", protocol, grpc=address, ca_file=str(pair[0]))
                assert ask(target, wire)[:2] == ("", "7")
    finally:
        server.stop(None).wait()
