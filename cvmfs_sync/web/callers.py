"""Who may call a webhook: secrets of a file, and the ways in which senders prove that they know one.

Headers, query and body of a request go in, yes or no comes out, after work that is the same for both: no secret can be
found by measuring time. Secrets are read for each request, so that a new one needs no restart, and are shown nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cvmfs_sync.config import WebhookKind

__all__ = ["Caller", "Presented", "SecretFile"]

log = logging.getLogger(__name__)
# The one in use and the one to come.
_SECRETS = 2
_SHORTEST = 16
_LARGEST_FILE = 4096
_SIGNING = b"whsec_"
_CLOCKS_DIFFER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request has to show.

    Attributes:
        headers: By lower-case name.
        query: The parameter `secret`.
        at: When it came, Unix time.
    """

    headers: Mapping[str, str]
    query: str
    body: bytes
    at: float


@dataclass(slots=True)
class SecretFile:
    """One or two secrets in a file, one a line.

    Attributes:
        name: Of the webhook, for the log.
    """

    name: str
    path: Path
    _complaint: str = field(default="", init=False)

    def read(self) -> tuple[bytes, ...]:
        """The secrets; none if the file can't be used, which is logged when it begins."""
        try:
            found = self._read()
        except (OSError, ValueError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            if why != self._complaint:
                log.error("webhook %s takes nothing: its secret_file %s: %s", self.name, self.path, why)
                self._complaint = why
            return ()
        self._complaint = ""
        return found

    def _read(self) -> tuple[bytes, ...]:
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
                raise ValueError("everybody may read or change it; 'chmod o= ' it")
            content = file.read(_LARGEST_FILE + 1)
        found = tuple(line.strip() for line in content.splitlines() if line.strip())
        if not 1 <= len(found) <= _SECRETS or len(content) > _LARGEST_FILE:
            raise ValueError("expected one secret, or two while one replaces the other, one a line")
        keys = [_unpacked(each.removeprefix(_SIGNING)) if each.startswith(_SIGNING) else each for each in found]
        if min(map(len, keys)) < _SHORTEST:
            raise ValueError(f"a secret has at least {_SHORTEST} characters; 'openssl rand -hex 32' makes one")
        return found


class Caller:
    """Knows the sender of one webhook.

    Args:
        kind: Of the sender.
        file: With the secrets.
    """

    def __init__(self, kind: WebhookKind, file: SecretFile) -> None:
        self._kind = kind
        self._file = file
        # In place of secrets that there aren't.
        self._nobody = tuple(secrets.token_hex(32).encode() for _ in range(_SECRETS))

    def admits(self, shown: Presented) -> bool:
        """Whether a request comes from somebody who knows a secret."""
        known = self._file.read()
        tokens = _tokens(self._kind, shown)
        signatures = _signatures(self._kind, shown)
        good = False
        for secret in [*known, *self._nobody][:_SECRETS]:
            given = [hmac.compare_digest(_digest(secret), _digest(token)) for token in tokens]
            key, message = _signed(self._kind, secret, shown)
            made = hmac.new(key, message, hashlib.sha256).digest()
            given += [hmac.compare_digest(made, signature) for signature in signatures]
            good |= any(given) and secret in known
        return good


def _digest(text: bytes) -> bytes:
    """Of one length, whatever is compared."""
    return hashlib.sha256(text).digest()


def _tokens(kind: WebhookKind, shown: Presented) -> list[bytes]:
    """What may be the secret itself."""
    authorization = shown.headers.get("authorization", "")
    bearer = authorization[7:] if authorization[:7].lower() == "bearer " else authorization
    match kind:
        case "dockerhub" | "quay":
            # They send nothing but what is in the address.
            return [shown.query.encode("utf-8", "surrogateescape")]
        case "harbor" | "distribution":
            return [_raw(bearer)]
        case "gitlab":
            # The first comes from GitLab, the second from its registry.
            return [_raw(shown.headers.get("x-gitlab-token", "")), _raw(bearer)]
        case "github":
            return [b""]


def _signatures(kind: WebhookKind, shown: Presented) -> list[bytes]:
    """What may be a signature, as bytes."""
    if kind == "github":
        algorithm, _, digits = shown.headers.get("x-hub-signature-256", "").partition("=")
        try:
            return [bytes.fromhex(digits)] if algorithm == "sha256" else [b""]
        except ValueError:
            return [b""]
    if kind == "gitlab" and _is_recent(shown):
        # Standard Webhooks: several of them, for several secrets.
        given = [each.partition(",") for each in shown.headers.get("webhook-signature", "").split()[:4]]
        return [_unpacked(text.encode()) for version, _, text in given if version == "v1"]
    return [b""]


def _signed(kind: WebhookKind, secret: bytes, shown: Presented) -> tuple[bytes, bytes]:
    """The key and the message of a signature."""
    if kind == "gitlab" and secret.startswith(_SIGNING):
        head = f"{shown.headers.get('webhook-id', '')}.{shown.headers.get('webhook-timestamp', '')}."
        return _unpacked(secret.removeprefix(_SIGNING)), _raw(head) + shown.body
    return secret, shown.body


def _is_recent(shown: Presented) -> bool:
    """Whether a request that is signed with its time was sent just now."""
    try:
        return abs(int(shown.headers.get("webhook-timestamp", "")) - shown.at) <= _CLOCKS_DIFFER_SECONDS
    except (ValueError, OverflowError):
        return False


def _unpacked(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""


def _raw(header: str) -> bytes:
    """A header's bytes as they came."""
    return header.encode("latin-1", "replace")
