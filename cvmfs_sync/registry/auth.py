"""What to put into the Authorization header: anonymous and authenticated Bearer, Basic.

A registry's challenge and a `Credential` go in, a header's value comes out. Implements RFC 9110, 11 (challenges), and
Docker's token authentication (distribution, "Token Authentication Specification" and "Oauth2 Token Authentication").

From oras: the token request (its parameters, when Basic goes with it, `token` or `access_token`) and the encoding
of Basic. Each token is asked for with an oras backend of its own, because a backend keeps one token for all
repositories and is not safe for threads. Own, because oras would fall short of a daemon's needs:

- the parser of challenges: oras's ignores schemes, so that two challenges become one, and skips unquoted values;
- the cache and expiry: oras drops `expires_in`, and its scope is whatever the registry asked for;
- where a secret may go: oras sends it to any realm, over plain HTTP too, without a time limit;
- the grant by refresh token, which oras does not have.

No value leaves this module but through the return value of `header` and `renew`: messages, logs and reprs have none.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from cvmfs_sync.errors import AccessDenied, ImageError, RegistryUnavailable
from cvmfs_sync.registry.body import BodyCutError, read_document
from cvmfs_sync.registry.credentials import Credential, CredentialSource
from cvmfs_sync.registry.transport import Request, Transport
from cvmfs_sync.registry.urls import describe, origin

__all__ = ["Authorizer", "Challenge", "Target", "parse_challenges"]

# The token specification's default, and how much earlier a token counts as expired, since an exchange takes time too.
DEFAULT_LIFETIME = 60.0
EXPIRY_MARGIN = 5.0
MAX_TOKEN_ANSWER = 1024 * 1024
MAX_HEADER = 16 * 1024
CLIENT_ID = "cvmfs-sync"

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_WORD})(?:[ \t]+|(?=,)|\Z)")
_PARAMETER = re.compile(rf'[\s,]*({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))[ \t]*(?=,|\Z)')
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|\Z)")
_importing = threading.Lock()
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a server offers: the scheme in lower case, and its parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """What to be let in to: one repository.

    Attributes:
        origin: Where the registry's API is; its scheme decides whether a token server may use plain HTTP.
    """

    registry: str
    repository: str
    origin: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"


def parse_challenges(text: str) -> tuple[Challenge, ...]:
    """Read WWW-Authenticate; several headers joined by commas are one. Stops at what is no challenge."""
    text = text[:MAX_HEADER]
    challenges: list[Challenge] = []
    position = 0
    while position < len(text):
        # Only what comes after the next word tells a parameter from a scheme: the comma separates both.
        if challenges and (parameter := _PARAMETER.match(text, position)):
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            challenges[-1] = Challenge(challenges[-1].scheme, {name.lower(): value} | dict(challenges[-1].parameters))
            position = parameter.end()
        elif scheme := _SCHEME.match(text, position):
            challenges.append(Challenge(scheme[1].lower(), {}))
            position = scheme.end()
            if not _PARAMETER.match(text, position) and (token68 := _TOKEN68.match(text, position)):
                position = token68.end()
        else:
            break
    return tuple(challenges)


@dataclass(frozen=True, slots=True)
class _Grant:
    header: str
    expires: float

    def __repr__(self) -> str:
        return f"_Grant(expires={self.expires})"


class Authorizer:
    """Gets and keeps what registries want to see. Safe for threads: one of them asks, the others wait for its token."""

    def __init__(self, transport: Transport, credentials: CredentialSource) -> None:
        """Ask nobody yet."""
        self._transport = transport
        self._credentials = credentials
        self._clock = transport.timing.clock
        self._challenges: dict[str, Challenge] = {}
        self._grants: dict[Target, _Grant] = {}
        self._locks: dict[Target, threading.Lock] = {}
        self._lock = threading.Lock()

    def header(self, target: Target) -> str | None:
        """What to send with a request; None if the registry never asked for anything.

        Once a registry has said where its tokens come from, each other repository's is fetched without another 401.

        Raises:
            ImageError: As `renew`.
        """
        with self._lock_of(target):
            grant = self._grants.get(target)
            if grant is not None and grant.expires > self._clock():
                return grant.header
            challenge = self._challenges.get(target.registry)
            return self._obtain(target, challenge) if challenge else None

    def renew(self, target: Target, challenges: str, refused: str | None) -> str | None:
        """What to send after a 401, or None if there is nothing but what was refused already.

        Args:
            target: What was refused.
            challenges: The answer's WWW-Authenticate.
            refused: What was sent.

        Raises:
            AccessDenied: If the token server refuses.
            RegistryUnavailable: If the token server gives no usable answer.
            ImageError: If the registry sends us where no secret may go.
        """
        challenge = _choose(challenges)
        if challenge is None:
            return None
        with self._lock_of(target):
            grant = self._grants.pop(target, None)
            if grant is not None and grant.header != refused and grant.expires > self._clock():
                self._grants[target] = grant  # another thread was faster
                return grant.header
            self._challenges[target.registry] = challenge
            header = self._obtain(target, challenge)
        return header if header != refused else None

    def refusal(self, target: Target, answer: str) -> AccessDenied:
        """The error for a registry or token server that answered `answer`."""
        credential = self._credentials.find(target.registry)
        if credential.problem is not None:
            shown, todo = f"without credentials: {credential.problem}", "repair that"
        elif credential.anonymous:
            shown, todo = "without credentials", f"run 'docker login {target.registry}'"
        else:
            shown, todo = f"with the credentials of {credential.source}", "see what they are good for"
        return AccessDenied(
            f"{target}: {target.registry} refuses access",
            found=f"{answer}, {shown}",
            todo=f"check the spelling, or {todo}: the repository is private, or does not exist; registries do "
            "not say which",
        )

    def _lock_of(self, target: Target) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(target, threading.Lock())

    def _obtain(self, target: Target, challenge: Challenge) -> str | None:
        credential = self._credentials.find(target.registry)
        if challenge.scheme == "basic":
            if credential.username is None or credential.password is None:
                return None
            return "Basic " + str(_oras().auth.utils.get_basic_auth(credential.username, credential.password))
        _check_realm(target, challenge.parameters["realm"])
        asker = _TokenServer(self._transport, target)
        if credential.identity_token is not None:
            token = asker.exchange(challenge, credential.identity_token)
        else:
            token = _ask_with_oras(asker, target, challenge, credential)
        if asker.refused is not None:
            raise self.refusal(target, asker.refused)
        if not isinstance(token, str) or not _HEADER_SAFE.fullmatch(token):
            raise RegistryUnavailable(
                f"{target}: no token in the answer of {origin(challenge.parameters['realm'])}",
                todo="the next cycle tries again",
            )
        grant = _Grant(f"Bearer {token}", self._clock() + max(0.0, asker.lifetime - EXPIRY_MARGIN))
        self._grants[target] = grant
        return grant.header


def _oras() -> Any:
    """The library, imported when it is first needed: that takes as long as a small image, and few registries need it.

    One thread at a time: another that came while it is being imported would get a part of it.
    """
    with _importing:
        import oras.auth.utils  # noqa: PLC0415
    return oras


def _choose(text: str) -> Challenge | None:
    """Bearer before Basic: a token is worth less to a thief than a password."""
    challenges = parse_challenges(text)
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
            return challenge
    return next((challenge for challenge in challenges if challenge.scheme == "basic"), None)


def _check_realm(target: Target, realm: str) -> None:
    """Refuse a token server that must not see a credential.

    Raises:
        ImageError: If it is no URL, names a user, or uses plain HTTP where the registry does not.
    """
    # The rest of the URL, a user above all, may be a secret.
    shown = "no URL"
    try:
        parts = urlsplit(realm)
        good = bool(parts.hostname) and parts.username is None and (parts.port is None or parts.port > 0)
        shown = f"{origin(realm)[:200]}{'' if parts.username is None else ', with a user'}" if parts.hostname else shown
    except ValueError:
        good = False
    else:
        good = good and (parts.scheme == "https" or (parts.scheme == "http" == urlsplit(target.origin).scheme))
    if not good:
        raise ImageError(
            f"{target}: {target.registry} names a token server that must not be asked",
            found=shown,
            expected="an https:// URL without a user",
            todo="report it to the registry's operator; no credential was sent there",
        )


def _scope(target: Target) -> str:
    return f"repository:{target.repository}:pull"


def _ask_with_oras(asker: _TokenServer, target: Target, challenge: Challenge, credential: Credential) -> Any:
    """Token by GET, anonymous or with Basic."""
    oras = _oras()
    backend = oras.auth.get_auth_backend("token", session=asker)
    if credential.username is not None and credential.password is not None:
        backend.set_basic_auth(credential.username, credential.password)
    # The scope is ours and the least that serves; what a registry asks for may be more, or for another repository.
    wanted = {"realm": challenge.parameters["realm"], "scope": _scope(target)}
    if service := challenge.parameters.get("service"):
        wanted["service"] = service
    return backend.request_token(oras.auth.utils.authHeader(wanted))


class _TokenServer:
    """Asks a token server once, within the transport's limits; to oras, it is the session of a backend.

    Attributes:
        lifetime: Seconds that the token is good for, as the answer says or the specification assumes.
        refused: The status by which the server refused; None if it did not.
    """

    status_code = 200

    def __init__(self, transport: Transport, target: Target) -> None:
        self._transport = transport
        self._target = target
        self._answer: dict[str, Any] = {}
        self.lifetime = DEFAULT_LIFETIME
        self.refused: str | None = None

    def get(self, url: str, *, headers: Mapping[str, str], params: Mapping[str, str], **_: Any) -> _TokenServer:
        """What oras calls. Of its headers only Authorization is sent, the others are of no use to anybody."""
        url += ("&" if urlsplit(url).query else "?") + urlencode(params)
        self._send(self._request("GET", url, authorization=headers.get("Authorization")))
        return self

    def json(self) -> dict[str, Any]:
        """The answer, empty if the server refused."""
        return self._answer

    def exchange(self, challenge: Challenge, identity_token: str) -> Any:
        """Token by POST for an identity token."""
        form = {
            "grant_type": "refresh_token",
            "service": challenge.parameters.get("service", ""),
            "scope": _scope(self._target),
            "client_id": CLIENT_ID,
            "refresh_token": identity_token,
        }
        self._send(self._request("POST", challenge.parameters["realm"], form=form))
        return self._answer.get("access_token") or self._answer.get("token")

    def _request(
        self, method: str, url: str, *, authorization: str | None = None, form: Mapping[str, str] | None = None
    ) -> Request:
        account = self._target.registry
        return Request(method, url, str(self._target), authorization=authorization, form=form, account=account)

    def _send(self, request: Request) -> None:
        response = self._transport.send(request)
        try:
            if response.status_code != 200:
                # The body is not quoted: it is the answer to a request that held a secret.
                self.refused = f"{describe(response.status_code)} from {origin(request.url)}"
                return
            content = read_document(response, MAX_TOKEN_ANSWER, str(self._target), self._transport.timing)
            answer = json.loads(content)
        except (BodyCutError, ValueError, RecursionError):
            answer = None
        finally:
            response.close()
        if not isinstance(answer, dict):
            raise RegistryUnavailable(
                f"{self._target}: {origin(request.url)} answers with something else than a token",
                todo="the next cycle tries again",
            )
        self._answer = answer
        lifetime = answer.get("expires_in")
        if isinstance(lifetime, int | float) and not isinstance(lifetime, bool) and lifetime > 0:
            self.lifetime = float(lifetime)
