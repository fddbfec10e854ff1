"""The API over HTTP: documents, errors, headers, caching; and the process that serves it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from cvmfs_sync.view.queries import View
from cvmfs_sync.web.app import make_app
from tests.support.commands import cli_command
from tests.support.shown import publish_some, view_of
from tests.support.site import Site

API = "/api/v1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Published once for all tests here."""
    return publish_some(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def view(site: Site) -> Iterator[View]:
    """What is shown."""
    with view_of(site) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(view: View) -> Iterator[TestClient]:
    """A client of the application."""
    with TestClient(make_app(view), raise_server_exceptions=False) as opened:
        yield opened


def test_documents_are_those_of_the_view(client: TestClient, view: View) -> None:
    """Each address answers with one of the view's documents."""
    link = view.every()[0].link
    images = client.get(f"{API}/images").json()
    assert images["total"] == 4
    assert [image["link"] for image in images["images"]] == [image.link for image in view.every()]
    assert client.get(f"{API}/image", params={"image": link}).json()["link"] == link
    assert client.get(f"{API}/events").json()["events"]
    assert client.get(f"{API}/cycle").json()["running"] is False
    assert client.get(f"{API}/queue").json() == {"total": 0, "entries": []}
    assert client.get(f"{API}/operations").json()["published"] == 2
    assert (
        client.get(f"{API}/where", params={"image": "alpine:3"}).json()["path"] == "docker://docker.io/library/alpine:3"
    )


def test_filters_of_the_query_are_those_of_the_view(client: TestClient) -> None:
    """State, words, order and pages by parameters."""
    found = client.get(f"{API}/images", params={"state": "published", "sort": "-size", "limit": 1}).json()
    assert (found["total"], len(found["images"]), found["limit"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/images?limit=0", 422), ("/images?limit=501", 422), ("/images?state=nonsense", 422),
        ("/images?sort=nonsense", 422), ("/images?offset=-1", 422), (f"/images?q={'x' * 301}", 422),
        ("/image", 422), ("/image?image=nobody", 404), ("/image?image=%00", 404), ("/where?image=A%20B", 404),
        ("/events?before=x", 422), (f"/events?before={2**70}", 422), ("/nothing", 404), ("/images/", 404),
    ],
)  # fmt: skip
def test_errors_are_problem_documents(client: TestClient, address: str, status: int) -> None:
    """RFC 9457, with the parameter that is wrong, and never anything of the program."""
    answer = client.get(API + address)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["detail"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(client: TestClient, method: str) -> None:
    """The API is to be read only."""
    assert client.request(method, f"{API}/images").status_code == 405


def test_what_is_known_is_not_sent_again(client: TestClient) -> None:
    """An ETag, and 304 for whoever has it."""
    first = client.get(f"{API}/images")
    again = client.get(f"{API}/images", headers={"If-None-Match": f'W/{first.headers["etag"]}, "other"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get(f"{API}/images", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("address", [f"{API}/images", f"{API}/image?image=nobody", "/nothing", "/"])
def test_every_answer_has_strict_headers(client: TestClient, address: str) -> None:
    """A browser loads and runs nothing but what is ours, whatever the answer holds."""
    headers = client.get(address).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_large_requests_are_refused(client: TestClient) -> None:
    """Before anything of them is read."""
    assert client.get(f"/{'x' * 9000}").status_code == 414
    assert client.post(f"{API}/images", content=b"x" * (2 << 20)).status_code == 413
    assert client.post(f"{API}/images", headers={"Content-Length": "-1"}).status_code in (400, 405, 413)


def test_a_defect_tells_nothing(view: View) -> None:
    """Of itself, to a visitor."""

    class Broken:
        def operations(self) -> None:
            raise RuntimeError("the secret of /home/me")

    with TestClient(make_app(Broken()), raise_server_exceptions=False) as client:  # type: ignore[arg-type]
        answer = client.get(f"{API}/operations")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_document_of_the_api_is_true(view: View) -> None:
    """Whatever is asked by it, the answer is one that it describes, and no defect."""
    schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", make_app(view))
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) == 8
    for operation in operations:

        def check(case: Any) -> None:
            case.call_and_validate()

        given(case=operation.as_strategy())(
            settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))(check)
        )()


# --- the process ------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def serve(site: Site, port: int, *more: str) -> subprocess.Popen[bytes]:
    site.settings["web"] = {"listen": f"127.0.0.1:{port}"}
    return subprocess.Popen([*cli_command(), "serve", "-c", str(site.config), *more], stderr=subprocess.PIPE)


def wait_for(url: str) -> requests.Response:
    for _ in range(600):
        try:
            return requests.get(url, timeout=30)
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError(f"nobody answers at {url}")


def test_serve(site: Site) -> None:
    """Answers until SIGTERM, at the lowest priority, and says so where another one listens already."""
    port = free_port()
    process = serve(site, port)
    try:
        assert wait_for(f"http://127.0.0.1:{port}{API}/images").json()["total"] == 4
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        second = serve(site, port)
        _, said = second.communicate(timeout=120)
        assert second.returncode == 2
        assert b"cannot serve pages on 127.0.0.1" in said
        assert b"web.listen" in said
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_serve_ends_with_its_parent(site: Site, tmp_path: Path) -> None:
    """A daemon that is killed leaves no process that keeps its port."""
    port = free_port()
    process = serve(site, port, "--parent", "1" if os.getpid() != 1 else "2")
    try:
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.communicate()


def ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it, once all is read that has come."""
    connection.setblocking(False)
    try:
        while connection.recv(1000):
            pass
    except BlockingIOError:
        return False
    return True


def test_whoever_does_not_ask_is_hung_up_on(site: Site) -> None:
    """A connection without a request, with half of one, and one that goes on and on; a stream of events stays open."""
    port = free_port()
    process = serve(site, port)
    try:
        wait_for(f"http://127.0.0.1:{port}{API}/cycle")
        with (
            socket.create_connection(("127.0.0.1", port)) as silent,
            socket.create_connection(("127.0.0.1", port)) as half,
            socket.create_connection(("127.0.0.1", port)) as stream,
        ):
            half.sendall(b"GET / HT")
            stream.sendall(b"GET /activity/events HTTP/1.1\r\nHost: x\r\n\r\n")
            for each in (silent, half, stream):
                each.settimeout(60)
            assert silent.recv(1) == b""
            assert half.recv(1) == b""
            assert stream.recv(1000).startswith(b"HTTP/1.1 200")
            assert not ended(stream)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_slow_client_holds_nobody_up(site: Site) -> None:
    """Others are answered while one sends a byte now and then."""
    port = free_port()
    process = serve(site, port)
    try:
        wait_for(f"http://127.0.0.1:{port}{API}/cycle")
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET / HT")
            assert requests.get(f"http://127.0.0.1:{port}{API}/images", timeout=60).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
