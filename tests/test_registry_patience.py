"""Servers that are slow, silent, broken or liars: each ends as the right kind of error, and within its time limit.

The limits are real here, and short: `Patience` makes them so. That a test ends at all shows that they hold.
"""

from __future__ import annotations

import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry import Patience, RegistryMemory, RegistrySettings, RegistrySource, Timing
from tests.fakes.scriptable_registry import ScriptableRegistry, TokenAuth
from tests.support.pulling import Nobody, ref

BODY = random.Random(6).randbytes(50_000)
# Short where a test waits for it, long where a loaded machine may need it.
SHORT = Patience(connect=10.0, read=30.0, answer=30.0, exchange=120.0, window=0.3, discard=0.2)


@pytest.fixture
def registry(registry: ScriptableRegistry) -> ScriptableRegistry:
    """A registry with one image, tagged `1`."""
    registry.add_image("org/tool", "1")
    return registry


Connect = Callable[..., RegistrySource]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients with little patience that do not wait between tries."""
    clients: list[RegistrySource] = []

    def make(patience: Patience = SHORT, memory: RegistryMemory | None = None, **options: Any) -> RegistrySource:
        default = RegistrySettings(insecure=True, **options)
        timing = Timing(sleep=lambda _: None, patience=patience)
        clients.append(RegistrySource(default=default, credentials=Nobody(), timing=timing, memory=memory))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def blob_of(server: ScriptableRegistry, content: bytes = BODY) -> Descriptor:
    """Push a blob; its descriptor."""
    return Descriptor("x", Digest.parse(server.push_blob(content)), len(content))


ASK: dict[str, Callable[[RegistrySource, ScriptableRegistry], object]] = {
    "head": lambda source, server: source.head(ref(server)),
    "manifest": lambda source, server: source.manifest(ref(server)),
    "tags": lambda source, server: list(source.tags(ref(server))),
    "blob": lambda source, server: list(source.blob(ref(server), blob_of(server))),
}


@pytest.mark.parametrize("ask", ASK)
def test_a_head_that_drips(connect: Connect, registry: ScriptableRegistry, ask: str) -> None:
    """A head that comes byte by byte never runs into the read time-out, and is given up all the same."""
    registry.drip("/v2/", 0.02, head=True)
    with pytest.raises(RegistryUnavailable, match=r"does not answer; found: no whole answer within 0.3 s"):
        ASK[ask](connect(replace(SHORT, answer=0.3)), registry)


@pytest.mark.parametrize("ask", ["manifest", "tags", "blob"])
def test_a_body_that_drips(connect: Connect, registry: ScriptableRegistry, ask: str) -> None:
    """A body slower than 1 KiB/s is given up, three times, and says how slow it was."""
    registry.put_manifest("org/tool", "1", b"{}" + b" " * 10_000)
    registry.drip("/v2/", 0.05, head=False)
    with pytest.raises(RegistryUnavailable, match=r"[0-9]+ bytes in [0-9]+ s"):
        ASK[ask](connect(), registry)
    assert len(registry.requests) == 3


def test_a_document_has_a_time_limit(connect: Connect, registry: ScriptableRegistry) -> None:
    """A manifest that is fast enough for a blob, and never ends, ends with the exchange's limit."""
    registry.put_manifest("org/tool", "1", b"{}" + b" " * 1_000_000)
    registry.drip("/v2/", 0.0001, head=False)
    with pytest.raises(RegistryUnavailable, match=r"it takes longer than 0.2 s"):
        connect(Patience(exchange=0.2)).manifest(ref(registry))


@pytest.mark.parametrize("status", [307, 401, 403, 503])
def test_what_nobody_wants_is_not_waited_for(connect: Connect, registry: ScriptableRegistry, status: int) -> None:
    """The dripping body of a redirect, a challenge or an error is cut off, and the answer holds."""
    headers = {307: {"Location": "/v2/org/tool/manifests/1"}, 401: {"WWW-Authenticate": "Basic"}}.get(status, {})
    answer = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    held = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            while not held.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(f"HTTP/1.1 {status} X\r\n{answer}Content-Length: 16000\r\n\r\n{{".encode())
                    while not held.wait(0.02):
                        try:
                            connection.sendall(b" ")
                        except OSError:
                            break

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(ImageError, match=host):
            connect(replace(SHORT, window=1e9)).manifest(Reference.parse(f"{host}/org/tool:1"))
        held.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()


def test_a_server_that_says_nothing(connect: Connect, registry: ScriptableRegistry) -> None:
    """A connection that is taken and not answered ends with the read time-out; the host is given up after three."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        name = Reference.parse(f"127.0.0.1:{silent.getsockname()[1]}/x:1")
        memory = RegistryMemory()
        source = connect(replace(SHORT, read=0.3), memory=memory)
        for _ in range(20):
            with pytest.raises(RegistryUnavailable, match=r"nothing came for 0.3 s"):
                source.head(name)
        assert memory.requests()[name.registry, "error"] == 3


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("host.invalid/x", "its name does not resolve"),
        ("127.0.0.1:1/x", "refused"),
    ],
)
def test_hosts_that_are_not_there(connect: Connect, name: str, found: str) -> None:
    """DNS failures and refused connections are temporary, and say what they are."""
    with pytest.raises(RegistryUnavailable, match=found) as caught:
        connect().head(Reference.parse(name))
    assert caught.value.temporary


@pytest.mark.parametrize("more", [-20_000, -1, 1, 20_000])
def test_a_blob_with_a_wrong_length(connect: Connect, registry: ScriptableRegistry, more: int) -> None:
    """A Content-Length that is not the descriptor's size is a mismatch before the first byte, whatever follows."""
    descriptor = blob_of(registry)
    registry.fail("/blobs/", status=200, headers={"Content-Length": str(len(BODY) + more)}, body=BODY)
    with pytest.raises(BlobMismatch, match=f"found: {len(BODY) + more} bytes; expected: {len(BODY)} bytes"):
        list(connect().blob(ref(registry), descriptor))


@pytest.mark.parametrize("ask", ["manifest", "tags"])
def test_a_document_with_a_wrong_length(connect: Connect, registry: ScriptableRegistry, ask: str) -> None:
    """A document shorter than its Content-Length is cut: temporary, never taken for the whole."""
    registry.fail("/v2/", status=200, headers={"Content-Length": "5000"}, body=b'{"tags": ["a"]}')
    with pytest.raises(RegistryUnavailable, match="ended too early"):
        ASK[ask](connect(), registry)


def test_a_head_with_a_body(connect: Connect, registry: ScriptableRegistry) -> None:
    """A HEAD whose Content-Length promises a body waits for none."""
    registry.put_manifest("org/tool", "1", b" " * 100_000)
    source = connect()
    assert source.head(ref(registry)) == source.head(ref(registry))
    assert registry.connections == 1


def test_a_429_storm(connect: Connect, registry: ScriptableRegistry) -> None:
    """A registry that throttles everything costs each image of a cycle one request and no wait of its own."""
    registry.fail("", status=429, headers={"Retry-After": "0"})
    memory = RegistryMemory()
    source = connect(memory=memory)
    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(lambda n: catch(source, ref(registry, f"org/tool:{n}")), range(100)))
    assert {type(error) for error in errors} == {RegistryUnavailable}
    # At most the exchanges that are under way at once, four, are tried three times.
    assert 100 < memory.requests()[registry.host, "throttled"] <= 100 + 4 * 2


def catch(source: RegistrySource, name: Reference) -> BaseException | None:
    """The error of a HEAD, if it has one."""
    try:
        source.head(name)
    except ImageError as error:
        return error
    return None


def test_a_token_server_that_says_nothing(connect: Connect) -> None:
    """A registry that is up, and whose token server is not, is temporary and names the one that is not."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with ScriptableRegistry(auth=TokenAuth(realm=f"http://{host}/token")) as registry:
            registry.add_image("org/tool", "1")
            with pytest.raises(RegistryUnavailable, match=f"{host} does not answer; found: nothing came"):
                connect(replace(SHORT, read=0.3)).head(ref(registry))


def test_a_silent_registry_delays_no_other(connect: Connect, registry: ScriptableRegistry) -> None:
    """While one registry keeps its clients waiting, another's images are answered by the same source."""
    answered = threading.Event()
    with ScriptableRegistry() as slow:
        slow.add_image("org/tool", "1")
        slow.before("", lambda: answered.wait(60))
        source = connect(Patience())
        with ThreadPoolExecutor(6) as pool:
            waiting = [pool.submit(source.head, ref(slow)) for _ in range(5)]
            for ask in ASK.values():
                pool.submit(ask, source, registry).result()
            assert not any(future.done() for future in waiting)
            answered.set()
            assert len({str(future.result()) for future in waiting}) == 1


def test_a_ca_file_that_is_none(connect: Connect, tmp_path: Path) -> None:
    """A `ca_file` that is missing or has no certificate is told as that, for its registry only."""
    with ScriptableRegistry() as registry:
        image = registry.add_image("org/tool", "1")
        for content in (None, "", "no certificate"):
            file = tmp_path / "ca.pem"
            if content is not None:
                file.write_text(content)
            settings = {"a.example": RegistrySettings(ca_file=file)}
            source = RegistrySource(settings, default=RegistrySettings(insecure=True), credentials=Nobody())
            found = "No such file" if content is None else "there is no certificate in it"
            with pytest.raises(ImageError, match=rf"CA file for a\.example.*ca\.pem: {found}.*ca_file") as caught:
                source.head(Reference.parse("a.example/x"))
            assert not caught.value.temporary
            assert str(source.head(ref(registry))) == image.digest
            source.close()


def test_the_page_has_the_limits() -> None:
    """docs/registries.md says how long we wait."""
    page = (Path(__file__).parent.parent / "docs/registries.md").read_text()
    told = [float(seconds) for seconds in re.findall(r"^\| for [^|]+\| ([0-9]+) \|$", page, re.MULTILINE)]
    assert told == [getattr(Patience(), field.name) for field in fields(Patience)]
