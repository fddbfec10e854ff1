"""Who knows a secret, in each sender's way; and the file that it is in."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from cvmfs_sync.config import WebhookKind
from cvmfs_sync.web.callers import Caller, Presented, SecretFile

SECRET = b"f3b1c0a5d2e4968770f1e2d3c4b5a697"
BODY = b'{"a": 1}'
AT = 1_700_000_000
KEY = b"0123456789abcdef0123456789abcdef"
SIGNING = b"whsec_" + base64.b64encode(KEY)


def caller(path: Path, kind: WebhookKind, *lines: bytes) -> Caller:
    """With these secrets."""
    file = path / "secret"
    file.write_bytes(b"\n".join(lines))
    file.chmod(0o600)
    return Caller(kind, SecretFile("ours", file))


def shown(headers: dict[str, str] | None = None, query: str = "", body: bytes = BODY, at: float = AT) -> Presented:
    return Presented(headers or {}, query, body, at)


def github(secret: bytes = SECRET, body: bytes = BODY) -> str:
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def signed(key: bytes = KEY, body: bytes = BODY, at: str = str(AT), number: str = "1") -> dict[str, str]:
    """As Standard Webhooks says."""
    made = base64.b64encode(hmac.new(key, f"{number}.{at}.".encode() + body, hashlib.sha256).digest()).decode()
    return {"webhook-id": number, "webhook-timestamp": at, "webhook-signature": f"v1,{made}"}


BEARER = {"authorization": f"Bearer {SECRET.decode()}"}
TOKEN = {"x-gitlab-token": SECRET.decode()}


@pytest.mark.parametrize(
    ("kind", "secret", "presented"),
    [
        ("dockerhub", SECRET, shown(query=SECRET.decode())), ("quay", SECRET, shown(query=SECRET.decode())),
        ("github", SECRET, shown({"x-hub-signature-256": github()})),
        ("harbor", SECRET, shown(BEARER)), ("harbor", SECRET, shown({"authorization": SECRET.decode()})),
        ("distribution", SECRET, shown(BEARER)),
        ("distribution", SECRET, shown({"authorization": f"bearer {SECRET.decode()}"})),
        ("gitlab", SECRET, shown(TOKEN)), ("gitlab", SECRET, shown(BEARER)), ("gitlab", SIGNING, shown(signed())),
        ("gitlab", SIGNING, shown(signed(), at=AT + 299)),
        ("harbor", "pässwörter im klartext".encode(), shown({"authorization": "pässwörter im klartext".encode()
         .decode("latin-1")})),
        ("quay", "pässwörter im klartext".encode(), shown(query="pässwörter im klartext")),
    ],
)  # fmt: skip
def test_each_sender_in_its_way(tmp_path: Path, kind: WebhookKind, secret: bytes, presented: Presented) -> None:
    """And with the secret that is to come, beside the one that was."""
    assert caller(tmp_path, kind, secret).admits(presented)
    assert caller(tmp_path, kind, b"another secret altogether", secret, b"").admits(presented)
    assert caller(tmp_path, kind, secret, b"another secret altogether").admits(presented)


@pytest.mark.parametrize(
    ("kind", "secret", "presented"),
    [
        *((kind, SECRET, shown()) for kind in ("dockerhub", "quay", "github", "harbor", "gitlab", "distribution")),
        ("dockerhub", SECRET, shown(BEARER)), ("quay", SECRET, shown(query=SECRET.decode()[:-1])),
        ("quay", SECRET, shown(query=SECRET.decode() + "0")), ("quay", SECRET, shown(query="\udcff")),
        ("github", SECRET, shown(query=SECRET.decode())), ("github", SECRET, shown(BEARER)),
        ("github", SECRET, shown({"x-hub-signature-256": github(body=b"{}")})),
        ("github", SECRET, shown({"x-hub-signature-256": github(b"another")})),
        ("github", SECRET, shown({"x-hub-signature-256": github().replace("sha256", "sha1")})),
        ("github", SECRET, shown({"x-hub-signature-256": "sha256="})),
        ("github", SECRET, shown({"x-hub-signature-256": "sha256=xyz"})),
        ("github", SECRET, shown({"x-hub-signature": "sha1=" + hmac.new(SECRET, BODY, "sha1").hexdigest()})),
        ("github", SECRET, shown({"x-hub-signature-256": github(b"")})),
        ("harbor", SECRET, shown({"authorization": f"Basic {SECRET.decode()}"})),
        ("harbor", SECRET, shown({"authorization": "Bearer "})), ("harbor", SECRET, shown(TOKEN)),
        ("distribution", SECRET, shown({"authorization": f"Bearer  {SECRET.decode()}"})),
        ("gitlab", SECRET, shown({"x-gitlab-token": ""})), ("gitlab", SECRET, shown(query=SECRET.decode())),
        ("gitlab", SECRET, shown(signed())), ("gitlab", SIGNING, shown(signed(b"another"))),
        ("gitlab", SIGNING, shown(signed(), body=b"{}")), ("gitlab", SIGNING, shown(signed() | {"webhook-id": "2"})),
        ("gitlab", SIGNING, shown(signed(), at=AT + 301)), ("gitlab", SIGNING, shown(signed(), at=AT - 301)),
        ("gitlab", SIGNING, shown(signed(at="nan"))), ("gitlab", SIGNING, shown(signed(at=""))),
        ("gitlab", SIGNING, shown(signed(at="9" * 5000))), ("gitlab", SIGNING, shown(signed(at="inf"))),
        ("gitlab", b"whsec_" + b"=" * 20, shown(signed(b""))),
        ("gitlab", SIGNING, shown(signed() | {"webhook-signature": "v1,"})),
        ("gitlab", SIGNING, shown({k: v.replace("v1,", "v2,") for k, v in signed().items()})),
    ],
)  # fmt: skip
def test_nobody_else(tmp_path: Path, kind: WebhookKind, secret: bytes, presented: Presented) -> None:
    """Wrong, missing, in another sender's way, or of another time."""
    assert not caller(tmp_path, kind, secret).admits(presented)


@pytest.mark.parametrize("kind", ["dockerhub", "quay", "github", "harbor", "gitlab", "distribution"])
@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"", 0o600, "expected one secret"), (b"\n \n", 0o600, "expected one secret"),
        (b"\n".join([SECRET] * 3), 0o600, "expected one secret"), (b"short", 0o600, "at least 16"),
        (SECRET + b"\nshort", 0o600, "at least 16"), (SECRET, 0o604, "everybody may read"),
        (SECRET, 0o602, "everybody may read or change"), (SECRET * 1000, 0o600, "expected one secret"),
        (None, 0o600, "No such file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_lets_nobody_in(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: WebhookKind,
    content: bytes | None,
    mode: int,
    said: str,
) -> None:
    """Not even who shows nothing, or what is in it; the log says why, once, without what is in it."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    file = SecretFile("ours", path)
    for text in (b"", b"short", SECRET):
        token = text.decode()
        headers = {"authorization": token, "x-gitlab-token": token, "x-hub-signature-256": github(text)}
        assert not Caller(kind, file).admits(shown(headers, token))
    assert said in caplog.text
    assert len(caplog.records) == 1
    assert SECRET.decode() not in caplog.text
    path.unlink(missing_ok=True)
    path.write_bytes(SECRET)
    path.chmod(0o600)
    headers = {**BEARER, **TOKEN, "x-hub-signature-256": github()}
    assert Caller(kind, file).admits(shown(headers, SECRET.decode())), "it is read again"
