"""Hooks: commands and URLs that are told what happens.

Events go in, as the event log has them; each target that wants one gets it as a JSON document, in order, from a thread
of its own. Nobody waits for a target: its queue is bounded, and what does not fit into it is dropped and counted. A
target that fails is logged once, until it works again. What was not delivered when the process ends is lost: the event
log has it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import requests

from cvmfs_sync.config import Hook
from cvmfs_sync.deadline import DeadlineAdapter

__all__ = ["Hooks"]

log = logging.getLogger(__name__)
_QUEUE = 1000
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_HEADERS = 1 << 16


class Hooks:
    """All targets of a configuration.

    Args:
        hooks: What the configuration says of them.
        counts: Deliveries by result, which goes on from hooks before these.
        queue_size: Events that may wait for one target.
    """

    def __init__(self, hooks: Sequence[Hook], counts: Counter[str] | None = None, *, queue_size: int = _QUEUE) -> None:
        self.counts = Counter[str]() if counts is None else counts
        self._lock = threading.Lock()
        self._targets = [_Target(hook, number, self, queue_size) for number, hook in enumerate(hooks, start=1)]

    def tell(self, event: Mapping[str, object]) -> None:
        """Something has happened; never waits and never fails."""
        for target in self._targets:
            target.offer(event)

    def count(self, result: str) -> None:
        """A delivery has ended; from any thread."""
        with self._lock:
            self.counts[result] += 1

    def stop(self) -> None:
        """Take no more; what is on its way goes on."""
        for target in self._targets:
            target.stop()

    def close(self, seconds: float) -> None:
        """Take no more, and wait at most so long for what is on its way."""
        deadline = time.monotonic() + seconds
        self.stop()
        for target in self._targets:
            target.join(max(0.0, deadline - time.monotonic()))


class _Target:
    def __init__(self, hook: Hook, number: int, hooks: Hooks, size: int) -> None:
        self._hook = hook
        # A URL may be a secret; its host is not.
        where = hook.command[0] if hook.command else urlsplit(hook.url or "").hostname
        self._name = f"hook {number} ({where})"
        self._hooks = hooks
        self._events: queue.Queue[bytes | None] = queue.Queue(size)
        self._failing = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"hook {number}", daemon=True)
        self._thread.start()

    def offer(self, event: Mapping[str, object]) -> None:
        if event.get("event") not in self._hook.on or self._closed:
            return
        try:
            self._events.put_nowait(json.dumps(event).encode() + b"\n")
        except queue.Full:
            self._hooks.count("dropped")
            self._complain("it is too slow; events for it are dropped")

    def stop(self) -> None:
        self._closed = True
        with suppress(queue.Full):
            self._events.put_nowait(None)

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s has not been told all that happened", self._name)

    def _work(self) -> None:
        while True:
            try:
                content = self._events.get(timeout=None if not self._closed else 0)
            except queue.Empty:
                return
            if content is None:
                return
            try:
                self._deliver(content)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                self._hooks.count("failed")
                # What requests says may have the URL in it.
                why = type(error).__name__ if isinstance(error, requests.RequestException) else str(error)
                self._complain(why)
            else:
                self._hooks.count("ok")
                if self._failing:
                    self._failing = False
                    log.info("%s works again", self._name)

    def _deliver(self, content: bytes) -> None:
        """One event.

        Raises:
            OSError: It was not taken.
            ValueError: The file of headers makes no sense.
        """
        seconds = self._hook.timeout.total_seconds()
        if self._hook.command is not None:
            _run(self._hook.command, content, seconds)
            return
        assert self._hook.url is not None  # noqa: S101 - the configuration's model sees to it
        headers = {"Content-Type": "application/json", **self._headers()}
        with requests.Session() as session:
            # Neither the credentials of ~/.netrc nor those of a redirect are meant for it.
            session.trust_env = False
            for scheme in ("http://", "https://"):
                session.mount(scheme, DeadlineAdapter(seconds, time.monotonic))
            session.proxies = dict(requests.utils.get_environ_proxies(self._hook.url))
            with session.post(
                self._hook.url, data=content, headers=headers, timeout=seconds, allow_redirects=False, stream=True
            ) as answer:
                if not 200 <= answer.status_code < 300:
                    raise OSError(f"it answers {answer.status_code}")

    def _headers(self) -> dict[str, str]:
        """Read for each event: tokens are changed."""
        if self._hook.header_file is None:
            return {}
        with self._hook.header_file.open(encoding="utf-8") as file:
            lines = file.read(_HEADERS).splitlines()
        found: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if line.strip():
                if not colon or not name.strip():
                    raise ValueError("its header_file has a line that is not 'Name: value'")
                found[name.strip()] = value.strip()
        return found

    def _complain(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning("%s fails, which is not said again until it works: %s", self._name, why)


def _run(command: Sequence[str], content: bytes, seconds: float) -> None:
    """Run a command, with all that it starts, for so long at most; what it writes goes to our stderr.

    Raises:
        OSError: It failed.
    """
    process = subprocess.Popen(
        command, cwd="/", env=_ENVIRONMENT, stdin=subprocess.PIPE, stdout=2, start_new_session=True
    )
    try:
        process.communicate(content, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise OSError(f"it has not ended within {seconds:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise OSError(f"it ended with exit code {process.returncode}")
