"""What registries send, read: names only, and nothing that a hostile body could do."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_sync.config import WebhookKind
from cvmfs_sync.document import MAX_DOCUMENT
from cvmfs_sync.errors import InvalidManifest
from cvmfs_sync.pushes import Push
from cvmfs_sync.web.payloads import MOST_EVENTS, parse
from tests.support.deliveries import OTHERS, PUSHES, REGISTRIES, notification

KINDS: tuple[WebhookKind, ...] = get_args(WebhookKind)


def names(kind: WebhookKind, body: bytes) -> tuple[str, ...]:
    """What a delivery says was pushed."""
    return tuple(str(push) for event in parse(kind, REGISTRIES[kind], body).events for push in event.pushes)


@pytest.mark.parametrize("case", PUSHES)
def test_names_of_a_push_are_read(case: str) -> None:
    """Each sender's form, under the registry that the configuration names, whatever host the body names."""
    kind, body, expected = PUSHES[case]
    assert names(kind, body) == tuple(f"{REGISTRIES[kind]}/{name}" for name in expected)
    assert names(kind, json.dumps(json.loads(body)).encode()) == names(kind, body)


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_push_is_nothing_to_do(case: str) -> None:
    """Senders tell more than one asks them for; that is no error."""
    kind, body = OTHERS[case]
    assert parse(kind, REGISTRIES[kind], body).events == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"text"', b"1", b"{", b"payload=%7B%7D", b"\xff{}", "{}".encode("utf-16"),
        b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b"[" * 100_000,
        b'{"events":' * 50_000, b'{"a": ' + b"9" * 10_000 + b"}",
        b"x" * (MAX_DOCUMENT + 1),
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_what_is_no_object_is_refused(kind: WebhookKind, body: bytes) -> None:
    """Whatever it is, it is one error, and soon."""
    with pytest.raises(InvalidManifest):
        parse(kind, REGISTRIES[kind], body)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("dockerhub", b'"org/tool"', b'["org/tool"]'), ("dockerhub", b'"org/tool"', b'"../../etc"'),
        ("dockerhub", b'"org/tool"', b'"org/tool@sha256:00"'), ("dockerhub", b'"1.2"', b"1.2"),
        ("dockerhub", b'"1.2"', b'"1.2/**"'), ("dockerhub", b'"1.2"', b'""'), ("dockerhub", b'"1.2"', b'"a b"'),
        ("dockerhub", b'"org/tool"', b'"org/**"'), ("dockerhub", b'"1.2"', b'"\\u0000"'),
        ("dockerhub", b'"repository": {', b'"repository": null, "x": {'),
        ("github", b'"tool"', b'"tool/**"'), ("github", b'"Org"', b'"ghcr.io//"'), ("github", b'"v1.2"', b"{}"),
        ("github", b'"tool"', b"null"), ("harbor", b'"org/tool"', b'"org/tool:1"'), ("harbor", b"[", b"[1, "),
        ("quay", b'["latest", "1.2"]', b"7"), ("quay", b'["latest", "1.2"]', b"[7]"),
        ("quay", b'["latest", "1.2"]', b'{"..": 1}'), ("gitlab", b'"group/Tool"', b'"group/../../x"'),
        ("gitlab", b'"success"', b"true"), ("distribution", b"[", b"[1, "),
    ],
)  # fmt: skip
def test_a_push_of_another_form_is_refused(kind: WebhookKind, old: bytes, new: bytes) -> None:
    """Names that are none, and fields of other types."""
    body = PUSHES[kind][1]
    assert old in body
    with pytest.raises(InvalidManifest):
        parse(kind, REGISTRIES[kind], body.replace(old, new))


def test_events_that_make_no_sense_are_passed_over() -> None:
    """A registry sends what is refused again and again, and nothing else: the good ones of an envelope are taken."""
    body = notification(("org/tool", "1.2"), ("ORG", "1"), ("org/tool", ".."), ("org/other", "2"))
    delivery = parse("distribution", "registry.example.org", body)
    assert [str(event.pushes[0]) for event in delivery.events] == [
        "registry.example.org/org/tool:1.2", "registry.example.org/org/other:2",
    ]  # fmt: skip
    assert delivery.skipped == 2
    assert delivery.repeats


@pytest.mark.parametrize("kind", ["distribution", "quay"])
def test_a_delivery_has_an_end(kind: WebhookKind) -> None:
    """Of what it may tell at once."""
    many = [str(number) for number in range(MOST_EVENTS + 1)]
    body = PUSHES["quay"][1].replace(b'["latest", "1.2"]', json.dumps(many).encode())
    with pytest.raises(InvalidManifest, match="too much"):
        parse(kind, "quay.io", body if kind == "quay" else notification(*(("org/tool", each) for each in many)))


def test_deliveries_are_known_again() -> None:
    """By their body, a registry's notifications by their ids, in whatever envelope; Quay's not at all."""
    first, second = PUSHES["github"][1], PUSHES["github"][1].replace(b"564296960", b"564296961")
    identities = [parse("github", "ghcr.io", body).events[0].identity for body in (first, first, second)]
    assert identities[0] == identities[1] != identities[2]
    one = parse("distribution", "quay.io", notification(("org/tool", "1"))).events
    both = parse("distribution", "quay.io", notification(("org/tool", "1"), ("org/tool", "2"))).events
    assert one[0].identity == both[0].identity != both[1].identity
    assert parse("quay", "quay.io", PUSHES["quay"][1]).events[0].identity is None


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, each in inner for path in _paths(each, (*at, key)))]


@given(st.sampled_from(sorted(PUSHES)), st.data())
def test_whatever_is_put_in_place_of_a_part(case: str, data: st.DataObject) -> None:
    """It is a delivery of names that references are made of, or one error."""
    kind, body, _ = PUSHES[case]
    document = json.loads(body)
    path = data.draw(st.sampled_from(_paths(document)[1:]))
    owner = document
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = data.draw(documents)
    try:
        delivery = parse(kind, REGISTRIES[kind], json.dumps(document).encode())
    except InvalidManifest:
        return
    for event in delivery.events:
        for push in event.pushes:
            assert push.registry == REGISTRIES[kind]
            assert Push.parse(str(push)) == push


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_whatever_is_sent(kind: WebhookKind, body: bytes) -> None:
    """Bytes that are no document end in the one error, too."""
    with suppress(InvalidManifest):
        parse(kind, REGISTRIES[kind], body)
