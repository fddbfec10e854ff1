"""How much of the processor answers take: a burst, then a share, in the order in which they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from cvmfs_sync.config import load
from cvmfs_sync.web import process
from cvmfs_sync.web.thrift import Allowance, Thrift


class Machine:
    """A clock, and the processor time of a process; each answer takes some of both."""

    def __init__(self) -> None:
        self.now = 100.0
        self.spent = 5.0

    def allowance(self, **options: float) -> Allowance:
        return Allowance(clock=lambda: self.now, spent=lambda: self.spent, **options)

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.spent += seconds

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def test_a_burst_and_then_a_share() -> None:
    """What was saved up costs no waiting; over a long time answers have their share, and no more."""
    machine = Machine()
    allowance = machine.allowance(share=0.2, burst=1.0, debt=0.3)
    for _ in range(10):
        assert allowance.wait() == 0
        machine.work(0.1)
    began, spent = machine.now, machine.spent
    for _ in range(1000):
        machine.now += allowance.wait()
        machine.work(0.01)
    taken = (machine.spent - spent) / (machine.now - began)
    assert taken == pytest.approx(0.2, rel=0.05)


def test_nobody_waits_for_all_that_was_owed() -> None:
    """Making what is shown may take long: whoever comes then waits for a part of that only."""
    machine = Machine()
    allowance = machine.allowance(share=0.1, burst=1.0, debt=0.3)
    machine.work(60.0)
    assert allowance.wait() == pytest.approx(3.0)
    machine.now += 3.0
    assert allowance.wait() == pytest.approx(0.0)


def test_not_more_than_a_burst_is_saved_up() -> None:
    """A night without visitors does not allow a day of them."""
    machine = Machine()
    allowance = machine.allowance(share=0.5, burst=1.0, debt=10.0)
    machine.now += 100_000
    assert allowance.wait() == 0
    machine.work(2.0)
    assert allowance.wait() == pytest.approx(0.0)
    machine.work(0.5)
    assert allowance.wait() == pytest.approx(0.5)


async def _ask(app: Thrift, path: str, kind: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": kind, "path": path, "method": "GET", "headers": []}, receive, send)
    return sent


def _serving(machine: Machine, answered: list[str], **options: Any) -> Thrift:
    async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
        machine.work(0.1)
        answered.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return Thrift(answer, machine.allowance(share=0.1, burst=0.1, debt=0.3), sleep=machine.sleep, **options)


def test_answers_wait_their_turn() -> None:
    """All are answered, first come first served, and together they have had their share."""
    machine, answered = Machine(), list[str]()
    app = _serving(machine, answered)

    async def all_at_once() -> Sequence[list[Message]]:
        return await asyncio.gather(*(_ask(app, f"/{number}") for number in range(20)))

    results = asyncio.run(all_at_once())
    assert [each[0]["status"] for each in results] == [200] * 20
    assert answered == [f"/{number}" for number in range(20)]
    assert 0.1 * (machine.now - 100.0) + 0.1 + 0.3 >= machine.spent - 5.0


def test_too_many_are_told_to_come_again() -> None:
    """Not each of thousands is kept waiting."""
    machine, answered = Machine(), list[str]()
    app = _serving(machine, answered, most=5)
    machine.work(1.0)

    async def all_at_once() -> Sequence[list[Message]]:
        return await asyncio.gather(*(_ask(app, f"/{number}") for number in range(20)))

    results = asyncio.run(all_at_once())
    assert sorted(each[0]["status"] for each in results) == [200] * 5 + [503] * 15
    refused = next(each[0] for each in results if each[0]["status"] == 503)
    assert dict(refused["headers"])[b"retry-after"] == b"5"
    assert len(answered) == 5
    assert asyncio.run(_ask(app, "/later"))[0]["status"] == 200


def test_the_server_has_an_allowance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` answers through it."""
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: [debian:12]\n")
    (tmp_path / "cvmfs-sync.yaml").write_text("")
    (tmp_path / "published").mkdir()
    apps: list[FastAPI] = []
    monkeypatch.setattr(process, "serve", lambda app, *_, **__: apps.append(app))
    monkeypatch.setattr(process, "step_back", lambda: None)
    process.serve_pages(load(tmp_path / "cvmfs-sync.yaml", {}))
    assert [each.cls.__name__ for each in apps[0].user_middleware] == ["Guard", "Thrift"]  # type: ignore[attr-defined]
