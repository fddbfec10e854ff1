"""Webhooks over HTTP: who is let in, what is refused, and from a real registry's notification to the image."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import httpx2 as httpx
import pytest
import requests
from starlette.testclient import TestClient
from starlette.types import Message

from cvmfs_sync.config import Webhook, WebhookKind
from cvmfs_sync.control import Server
from cvmfs_sync.view.queries import View
from cvmfs_sync.web.app import make_app
from cvmfs_sync.web.process import routers, tell
from cvmfs_sync.web.webhooks import Pace, webhook_router
from tests.support import Image, file, layer, write_layout
from tests.support.commands import cli_command, require, run
from tests.support.deliveries import OTHERS, PUSHES, REGISTRIES, notification
from tests.support.registry import RegistryServer, free_port, start_docker_registry
from tests.support.site import Site

KINDS: tuple[WebhookKind, ...] = get_args(WebhookKind)
AT_ONCE = Pace(quiet=0)
SECRET = "f3b1c0a5d2e4968770f1e2d3c4b5a697"


def image(text: str) -> Image:
    return Image((layer(file("hello", text)),), cmd=("/bin/sh",))


# --- over HTTP --------------------------------------------------------------------------------------------------------


class Doors:
    """An application with one webhook of each kind, and what the daemon would be told.

    Attributes:
        now: Of the clock by which deliveries are counted.
        counts: How many of them, by sender and result.
    """

    def __init__(self, home: Path, pace: Pace | None = None) -> None:
        self.now = 0.0
        self.told: list[list[str]] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.secret_file = home / "secret"
        self.secret_file.write_text(SECRET + "\n")
        self.secret_file.chmod(0o600)
        webhooks = [
            Webhook(name=f"a-{kind}", kind=kind, registry=registry, secret_file=self.secret_file)
            for kind, registry in REGISTRIES.items()
        ]
        router = webhook_router(webhooks, self.tell, pace or AT_ONCE, clock=lambda: self.now)
        self.client = TestClient(make_app(View, [router]), raise_server_exceptions=False)  # type: ignore[arg-type]

    def tell(self, names: Sequence[str], counts: Mapping[tuple[str, str], int]) -> None:
        """Stands for the daemon."""
        self.counts.update(counts)
        if names:
            self.told.append(list(names))

    def deliver(
        self,
        kind: WebhookKind,
        body: bytes,
        *,
        secret: str = SECRET,
        name: str | None = None,
        media_type: str = "application/json",
    ) -> httpx.Response:
        """A delivery as such a sender sends it."""
        headers = {"Content-Type": media_type}
        query = ""
        match kind:
            case "dockerhub" | "quay":
                query = f"?secret={secret}"
            case "github":
                made = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
                headers |= {"X-Hub-Signature-256": f"sha256={made}", "X-GitHub-Event": "registry_package"}
            case "gitlab":
                headers["X-Gitlab-Token"] = secret
            case "harbor" | "distribution":
                headers["Authorization"] = f"Bearer {secret}"
        return self.client.post(f"/webhooks/{name or f'a-{kind}'}{query}", content=body, headers=headers)

    def names(self) -> list[str]:
        """All that was told, when all that was gathered has gone."""
        self.client.portal.call(asyncio.sleep, 0.05)  # type: ignore[union-attr]
        return [name for names in self.told for name in names]


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    opened = Doors(tmp_path)
    with opened.client:
        yield opened


def seen(answer: httpx.Response) -> tuple[int, bytes, list[str]]:
    """All of an answer that somebody could learn from."""
    return answer.status_code, answer.content, sorted(f"{name}: {value}" for name, value in answer.headers.items())


@pytest.mark.parametrize("case", PUSHES)
def test_each_sender_is_heard(doors: Doors, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """What it says was pushed is told to the daemon, and the log has a line with the numbers."""
    caplog.set_level("INFO", "cvmfs_sync")
    kind, body, names = PUSHES[case]
    assert doors.deliver(kind, body).status_code == 202
    assert doors.names() == [f"{REGISTRIES[kind]}/{name}" for name in names]
    assert f"webhook=a-{kind} kind={kind} bytes={len(body)} pushes={len(names)} replayed=0" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_push_is_taken_and_told_nobody(doors: Doors, case: str) -> None:
    """As GitHub's ping is, that comes first."""
    kind, body = OTHERS[case]
    pushed = doors.deliver("quay", PUSHES["quay"][1])
    told = doors.names()
    assert seen(doors.deliver(kind, body)) == seen(pushed)
    assert doors.names() == told


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_secret_and_a_wrong_name_get_the_same_answer(
    doors: Doors, kind: WebhookKind, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever does not know the secret learns neither which webhooks there are, nor of what kind, nor what is wrong."""
    body = PUSHES[kind][1]
    wrong = doors.deliver(kind, body, secret="0" * 32)
    assert wrong.status_code == 403
    others = [
        doors.deliver(kind, body, name="nobody"), doors.deliver(kind, body, secret="", name="nobody"),
        doors.client.post(f"/webhooks/a-{kind}", content=body), doors.client.post("/webhooks/nobody", content=b"{"),
        doors.deliver(kind, b"{", secret="x"), doors.deliver(kind, body, secret="x", media_type="text/plain"),
    ]  # fmt: skip
    assert {str(seen(each)) for each in others} == {str(seen(wrong))}
    assert doors.names() == []
    assert caplog.text.count("deliveries were refused") == 1
    doors.now += 60
    doors.deliver(kind, body, secret="x")
    assert f"there is no such webhook: (none)=3 a-{kind}=4" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"{", "application/json", 400), (b"[" * 100_000, "application/json", 400), (b"", "application/json", 400),
        (b"{}", "application/x-www-form-urlencoded", 415), (b"{}", "text/plain", 415), (b"{}", "", 415),
        (b"{" + b" " * (1 << 20) + b"}", "application/json", 413),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(
    doors: Doors, kind: WebhookKind, body: bytes, media_type: str, status: int
) -> None:
    """With a sentence, and nothing of the program."""
    answer = doors.deliver(kind, body, media_type=media_type)
    assert answer.status_code == status
    assert len(answer.content) < 300
    assert b"Traceback" not in answer.content
    assert doors.names() == []


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/CloudEvents+JSON",
                                        "application/vnd.docker.distribution.events.v1+json"])  # fmt: skip
def test_json_has_many_names(doors: Doors, media_type: str) -> None:
    """Those that senders use."""
    body = PUSHES["distribution"][1]
    assert doors.deliver("distribution", body, media_type=media_type).status_code == 202


def test_a_body_that_never_ends_is_hung_up_on(doors: Doors) -> None:
    """Whatever it says of its length."""

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * (1 << 16)

    assert doors.client.post("/webhooks/a-quay", content=endless()).status_code == 413


@pytest.mark.parametrize(("pace", "status"), [(Pace(body_seconds=0.01), 408), (Pace(bodies=0), 503)])
def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, pace: Pace, status: int) -> None:
    """Nor read beside so many others."""
    app = Doors(tmp_path, pace).client.app
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    path = b"/webhooks/a-quay"
    scope = {"type": "http", "method": "POST", "path": path.decode(), "raw_path": path, "query_string": b"",
             "headers": [(b"content-length", b"10")]}  # fmt: skip
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == status


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_only_post_is_heard(doors: Doors, method: str) -> None:
    """For names that there are and for others."""
    assert {doors.client.request(method, f"/webhooks/{name}").status_code for name in ("a-quay", "x")} == {405}


@pytest.mark.parametrize("kind", ["dockerhub", "github", "harbor", "gitlab"])
def test_a_replay_is_refused(doors: Doors, kind: WebhookKind) -> None:
    """Whatever its headers say: they are not signed. After a day nobody remembers."""
    body = PUSHES[kind][1]
    assert doors.deliver(kind, body).status_code == 202
    told = doors.names()
    assert doors.deliver(kind, body).status_code == 409
    doors.now += 86_399
    assert doors.deliver(kind, body).status_code == 409
    assert doors.names() == told
    doors.now += 1
    assert doors.deliver(kind, body).status_code == 202


def test_a_registry_that_repeats_itself_is_told_that_all_is_well(doors: Doors) -> None:
    """It would repeat what is refused for ever; what came before is passed over, what is new is taken."""
    first = notification(("org/tool", "1"))
    assert doors.deliver("distribution", first).status_code == 202
    assert doors.names() == ["registry.example.org:5000/org/tool:1"]
    assert doors.deliver("distribution", first).status_code == 202
    assert doors.deliver("distribution", notification(("org/tool", "1"), ("org/tool", "2"))).status_code == 202
    assert doors.names() == [f"registry.example.org:5000/org/tool:{tag}" for tag in (1, 2)]


def test_a_push_of_the_same_tag_is_no_replay_at_quay(doors: Doors) -> None:
    """Its bodies are all alike."""
    for _ in range(2):
        assert doors.deliver("quay", PUSHES["quay"][1]).status_code == 202
        doors.names()
    assert len(doors.told) == 2


def test_a_flood_is_refused(tmp_path: Path) -> None:
    """Of one webhook, which says when to come again; others, and later ones, are heard. Strangers use up nothing."""
    doors = Doors(tmp_path, Pace(quiet=0, burst=3, rate=0.5))
    with doors.client:
        for _ in range(10):
            doors.deliver("quay", b"{}", secret="x")
        assert [doors.deliver("quay", b"{}").status_code for _ in range(4)] == [202, 202, 202, 429]
        assert doors.deliver("quay", b"{}").headers["retry-after"] == "2"
        assert doors.deliver("harbor", b"{}").status_code == 202
        doors.now += 2
        assert [doors.deliver("quay", b"{}").status_code for _ in range(2)] == [202, 429]


def test_pushes_are_told_together(tmp_path: Path) -> None:
    """When it has been quiet, and each once; what comes after that is told after that."""
    doors = Doors(tmp_path, Pace(quiet=0.2, longest=5))
    with doors.client:
        for tag in ("1", "2", "3", "2"):
            body = PUSHES["quay"][1].replace(b'["latest", "1.2"]', f'["{tag}"]'.encode())
            assert doors.deliver("quay", body).status_code == 202
        assert doors.told == []
        doors.now += 0.2
        doors.client.portal.call(asyncio.sleep, 0.5)  # type: ignore[union-attr]
        assert doors.told == [[f"quay.io/org/tool:{tag}" for tag in (1, 2, 3)]]
        doors.deliver("quay", PUSHES["quay"][1])
        doors.now += 0.2
        doors.client.portal.call(asyncio.sleep, 0.5)  # type: ignore[union-attr]
        assert len(doors.told) == 2


def test_deliveries_are_counted(tmp_path: Path) -> None:
    """By sender and result, for the daemon's metrics; numbers alone are told when some have come together."""
    doors = Doors(tmp_path, Pace(quiet=0.02, longest=10, burst=4, rate=0.01))
    body = OTHERS["harbor, pulled"][1], PUSHES["harbor"][1]
    with doors.client:
        doors.deliver("harbor", b"{}", name="nobody")
        doors.deliver("harbor", b"{}", secret="x")
        assert [doors.deliver("harbor", each).status_code for each in (b"{", body[0])] == [400, 202]
        assert not doors.counts
        doors.now += 10
        doors.names()
        assert sum(doors.counts.values()) == 4
        assert [doors.deliver("harbor", body[1]).status_code for _ in range(3)] == [202, 409, 429]
        doors.now += 0.1
        doors.names()
    assert doors.counts == {
        ("unknown", "refused"): 1, ("harbor", "refused"): 1, ("harbor", "unreadable"): 1, ("harbor", "accepted"): 2,
        ("harbor", "replayed"): 1, ("harbor", "flooded"): 1,
    }  # fmt: skip


def test_a_secret_opens_its_own_webhook_only(tmp_path: Path) -> None:
    """Who may speak for one registry may not for another."""
    webhooks = []
    for name in ("one", "two"):
        path = tmp_path / name
        path.write_text(f"the secret of {name}\n")
        path.chmod(0o600)
        webhooks.append(Webhook(name=name, kind="quay", registry=f"{name}.example.org", secret_file=path))
    with TestClient(make_app(View, [webhook_router(webhooks, lambda *_: None)])) as client:  # type: ignore[arg-type]
        for name, secret, status in (
            ("one", "one", 202),
            ("one", "two", 403),
            ("two", "one", 403),
            ("two", "two", 202),
        ):
            answer = client.post(f"/webhooks/{name}", params={"secret": f"the secret of {secret}"}, json={})
            assert answer.status_code == status


def test_a_new_secret_needs_no_restart(doors: Doors) -> None:
    """Beside the old one as long as both are in the file."""
    body, new = PUSHES["quay"][1], "a-new-secret-of-ours"
    assert doors.deliver("quay", body, secret=new).status_code == 403
    doors.secret_file.write_text(f"{SECRET}\n{new}\n")
    assert {doors.deliver("quay", body, secret=each).status_code for each in (SECRET, new)} == {202}
    doors.secret_file.write_text(f"{new}\n")
    assert doors.deliver("quay", body).status_code == 403
    doors.secret_file.unlink()
    assert doors.deliver("quay", body, secret=new).status_code == 403


def test_without_a_daemon_a_delivery_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And forgotten: a daemon that starts looks at everything."""
    tell(tmp_path, ["quay.io/org/tool:1"], {})
    assert "no daemon runs" in caplog.text


def test_a_daemon_that_refuses_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log of the process that shows pages; its visitors have done nothing wrong."""
    server = Server(tmp_path, lambda request: request.answer({"exit_code": 2, "error": {"what": "no"}}))
    server.start()
    try:
        tell(tmp_path, ["quay.io/org/tool:1"], {})
    finally:
        server.close()
    assert "does not take what was pushed" in caplog.text
    (tmp_path / "control.sock").mkdir()
    tell(tmp_path, ["quay.io/org/tool:1"], {})


def test_without_webhooks_there_is_no_such_address(tmp_path: Path) -> None:
    """Nothing listens that nobody has asked for."""
    with TestClient(make_app(View, routers())) as client:  # type: ignore[arg-type]
        assert client.post("/webhooks/any", content=b"{}").status_code == 404


# --- from the registry to the published image -------------------------------------------------------------------------


@contextmanager
def daemon(site: Site, port: int) -> Iterator[Path]:
    """A running `cvmfs-sync run` with pages, whose schedule would come to nothing for hours; its log."""
    log = site.home / "daemon.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            cli_command("run", "--config", site.config), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        try:
            until(lambda: answers(port), log)
            yield log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/api/v1/cycle", timeout=30).status_code == 200
    except requests.ConnectionError:
        return False


def until(condition: Callable[[], bool], log: Path) -> None:
    """Wait for something; show the log if it never happens."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never happened:\n{log.read_text()}")


def test_a_notification_of_a_real_registry_gets_an_image_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tag moves, docker-registry tells it, and what it means now is published hours before it would be due."""
    require("skopeo")
    port = free_port()
    site = Site(tmp_path / "site")
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    endpoint = {
        "name": "cvmfs-sync", "url": f"http://127.0.0.1:{port}/webhooks/ours", "timeout": "5s", "threshold": 3,
        "backoff": "1s", "headers": {"Authorization": [f"Bearer {SECRET}"]}, "ignore": {"actions": ["pull"]},
    }  # fmt: skip
    with start_docker_registry(tmp_path / "registry", endpoint=endpoint) as registry:
        site.insecure = (registry.host,)
        site.settings = {
            "schedule": {"sync": "5h", "gc": "9h", "list": "7h"}, "metrics": {"listen": None},
            "web": {
                "listen": f"127.0.0.1:{port}",
                "webhooks": [
                    {"name": "ours", "kind": "distribution", "registry": registry.host, "secret_file": str(secret)}
                ],
            },
        }  # fmt: skip
        first = registry.push("org/tool", "1", image("one"))
        other = registry.push("org/other", "1", image("other"))
        site.wish(first, other)
        hello = site.root / first / "hello"
        with daemon(site, port) as log:
            until(lambda: "exit_code=0" in log.read_text(), log)
            assert hello.read_text() == "one"
            seconds = moved(registry, tmp_path, first, lambda: hello.read_text() == "two", log)
            until(lambda: "checked published=1 " in log.read_text(), log)
        text = log.read_text()
    assert site.target(first) in {each["digest"].partition(":")[2] for each in site.catalogue().values()}
    assert "webhook=ours kind=distribution" in text
    assert text.count("cycle published=") == 1, "a whole cycle was run"
    assert text.count("published image=") == 3
    assert SECRET not in text
    with capsys.disabled():
        print(f"\nfrom the push to the published image: {seconds:.2f} s")  # noqa: T201 -- the number is asked for


def moved(registry: RegistryServer, home: Path, reference: str, done: Callable[[], bool], log: Path) -> float:
    """Push another image to a tag, as people do; seconds from the end of the push until something holds."""
    write_layout(home / "layout", {"1": image("two")})
    run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{home}/layout:1", f"docker://{reference}")
    began = time.monotonic()
    until(done, log)
    return time.monotonic() - began
