"""Secrets are planted wherever one may be, and must not be found anywhere else."""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import requests
from prometheus_client import generate_latest

from cvmfs_sync.config import load
from cvmfs_sync.render import report_document
from cvmfs_sync.serving import Daemon
from tests.fakes.scriptable_registry import BasicAuth, ScriptableRegistry, TokenAuth, error_document
from tests.support import cli_command, file, layer, run_cli
from tests.support.registry import free_port
from tests.support.waiting import wait_until

PLACES = ("auth", "identity", "helper", "file", "userinfo", "realm", "query", "proxy", "list", "wrong", "mirror")
SECRETS = {place: f"pl4nted-{place}-s3cret" for place in PLACES}
LAYER = layer(file("etc/motd", b"hello\n"))


class Site:
    """Registries of all kinds, a list that wants something of each, and a configuration with secrets everywhere."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.home = home
        self.registries: dict[str, ScriptableRegistry] = {}
        user = "alice"
        kinds: dict[str, BasicAuth | TokenAuth | None] = {
            "auth": BasicAuth({user: SECRETS["auth"]}),
            "identity": TokenAuth(identity_tokens=(SECRETS["identity"],)),
            "helper": TokenAuth(users={user: SECRETS["helper"]}),
            "file": BasicAuth({user: SECRETS["file"]}),
            "wrong": TokenAuth(users={user: "another"}),
            "realm": TokenAuth(realm=f"http://user:{SECRETS['realm']}@127.0.0.1:{{port}}/token"),
            "echo": BasicAuth({user: SECRETS["auth"]}),
            "userinfo": None,
            "query": None,
            "proxy": None,
            "cdn": None,
        }
        for name, auth in kinds.items():
            registry = stack.enter_context(ScriptableRegistry(auth=auth))
            registry.add_image("org/tool", "1", [LAYER.blob])
            self.registries[name] = registry
        cdn = self.registries["cdn"]
        signed = f"?X-Amz-Signature={SECRETS['query']}"
        self.registries["auth"].redirect("/blobs/", lambda path: f"http://{cdn.host}{path}{signed}")
        self.registries["query"].redirect("/blobs/", f"http://{cdn.host}/gone{signed}")
        self.registries["userinfo"].redirect("", f"ftp://user:{SECRETS['userinfo']}@{cdn.host}/")
        echo = self.registries["echo"]
        shown = base64.b64encode(f"{user}:{SECRETS['auth']}".encode()).decode()
        document = error_document("DENIED", f"Basic {shown} is {user}:{SECRETS['auth']}")
        echo.fail("/v2/", status=403, body=document, method="GET")
        self._write_credentials(user)
        self._write_list()

    def _write_credentials(self, user: str) -> None:
        def entry(place: str) -> dict[str, str]:
            return {"auth": base64.b64encode(f"{user}:{SECRETS[place]}".encode()).decode()}

        helper = self.home / "bin/docker-credential-planted"
        helper.parent.mkdir()
        answer = json.dumps({"ServerURL": "x", "Username": user, "Secret": SECRETS["helper"]})
        helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho \"$@\" >> {self.home}/arguments\necho '{answer}'\n")
        helper.chmod(0o755)
        hosts = {name: registry.host for name, registry in self.registries.items()}
        config = {
            "auths": {
                hosts["auth"]: entry("auth"),
                hosts["echo"]: entry("auth"),
                hosts["wrong"]: entry("wrong"),
                hosts["identity"]: {**entry("auth"), "identitytoken": SECRETS["identity"]},
            },
            "credHelpers": {hosts["helper"]: "planted"},
        }
        (self.home / "docker").mkdir()
        (self.home / "docker/config.json").write_text(json.dumps(config))
        (self.home / "login.json").write_text(json.dumps({"auths": {hosts["file"]: entry("file")}}))

    def _write_list(self) -> None:
        hosts = {name: registry.host for name, registry in self.registries.items() if name != "cdn"}
        hosts["proxy"] = self.registries["proxy"].alias
        images = [f"{host}/org/tool:1" for host in hosts.values()]
        (self.home / "image-list.yaml").write_text(json.dumps({"version": 1, "images": images}))
        options: dict[str, dict[str, Any]] = {host: {"insecure": True} for host in hosts.values()}
        options[self.registries["cdn"].host] = {"insecure": True}
        options[hosts["file"]]["credentials"] = "login.json"
        (self.home / "cvmfs-sync.yaml").write_text(json.dumps({"registries": options}))

    @property
    def environment(self) -> dict[str, str]:
        """Where Docker's file is, and a proxy that nobody answers for."""
        return {
            "DOCKER_CONFIG": str(self.home / "docker"),
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "http_proxy": f"http://user:{SECRETS['proxy']}@127.0.0.1:1",
            "no_proxy": "127.0.0.1",
        }

    def run(self, *arguments: str) -> str:
        """All that a command prints; it must not fail as a whole."""
        result = run_cli(*arguments, cwd=self.home, env=self.environment)
        assert result.rc in (0, 1), result
        return result.stdout + result.stderr

    def tokens(self) -> list[str]:
        """All tokens that were given out."""
        return [token for registry in self.registries.values() for token in registry.tokens]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """All of it."""
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def test_secrets_are_nowhere(site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No output, log, error, metric, state file, published file or argument of a process has a secret in it."""
    seen = {
        "plan": site.run("-vv", "plan", "--json"),
        "check": site.run("-vv", "check", "--online", "--config", "cvmfs-sync.yaml", "image-list.yaml"),
        "check --json": site.run(
            "-vv", "check", "--online", "--json", "--config", "cvmfs-sync.yaml", "image-list.yaml"
        ),
        "sync": site.run("-vv", "sync", "--json"),
        "sync as text": site.run("-vv", "sync"),
        "status": site.run("status", "--json"),
        "arguments": (site.home / "arguments").read_text(),
    }
    caplog.set_level(logging.DEBUG, "cvmfs_sync")
    with monkeypatch.context() as patch:
        for name, value in site.environment.items():
            patch.setenv(name, value)
        daemon = Daemon(lambda: load(site.home / "cvmfs-sync.yaml", {}), report_document)
        daemon.cycle()
    seen["metrics"] = generate_latest(daemon.metrics.registry).decode()
    seen["log"] = caplog.text
    for path in (site.home / place for place in ("state", "spool", "published")):
        for file_ in path.rglob("*"):
            if file_.is_file():
                seen[str(file_)] = str(file_) + file_.read_bytes().decode("latin-1")
    # The secrets were at work: each registry that should was let in, each of the others has failed.
    results = {image["image"]: image["result"] for image in json.loads(_document(seen["sync"]))["images"]}
    good = ("auth", "identity", "helper", "file")
    assert {image for image, result in results.items() if result in ("published", "linked")} == {
        f"{site.registries[name].host}/org/tool:1" for name in good
    }
    assert len(results) == 10
    assert site.tokens()
    secrets = [*SECRETS.values(), *site.tokens()]
    secrets += [base64.b64encode(f"alice:{secret}".encode()).decode() for secret in SECRETS.values()]
    found = [(place, secret) for place, text in seen.items() for secret in secrets if secret in text]
    assert found == []
    assert "***" in seen["sync"]


def test_a_secret_in_the_configuration_is_not_repeated(site: Site) -> None:
    """A mirror with a user in its URL is refused without the URL."""
    config = site.home / "mirror.yaml"
    config.write_text(f"registries: {{ghcr.io: {{mirrors: ['https://user:{SECRETS['mirror']}@m.example']}}}}\n")
    result = run_cli("plan", "--config", config, cwd=site.home).ok(2)
    assert "without a user" in result.stderr
    assert SECRETS["mirror"] not in result.stderr + result.stdout


def test_a_secret_in_the_lists_url_is_not_repeated(site: Site) -> None:
    """A list that is fetched with a password in its URL, and is not there, is told without it."""
    config = site.home / "list.yaml"
    config.write_text(f"image_list: 'http://user:{SECRETS['list']}@{site.registries['cdn'].host}/list.yaml'\n")
    result = run_cli("-vv", "plan", "--config", config, cwd=site.home)
    assert result.rc == 2
    assert SECRETS["list"] not in result.stderr + result.stdout


def test_no_answer_of_the_pages_has_a_secret(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nor a place of this machine other than the repository's root, nor anything of the program, whatever is asked."""
    port, root = free_port(), tmp_path_factory.mktemp("clients") / "repository"
    (site.home / "broken.json").write_text(f'{{"auths": "{SECRETS["file"]}')
    document = json.loads((site.home / "cvmfs-sync.yaml").read_text())
    document["registries"][site.registries["realm"].host]["credentials"] = "broken.json"
    document |= {"repository": {"root": str(root)}, "web": {"listen": f"127.0.0.1:{port}"}}
    (site.home / "cvmfs-sync.yaml").write_text(json.dumps(document))
    told = site.run("-vv", "sync", "--json")
    site.run("sync", "--json")
    # What the operator is told has what nobody else may see.
    assert str(site.home) in told
    process = subprocess.Popen(
        cli_command("serve", "--config", "cvmfs-sync.yaml"), cwd=site.home, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **site.environment},
    )  # fmt: skip
    try:
        answers = _crawl(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
    links = json.loads((site.home / "image-list.yaml").read_text())["images"]
    assert {f"/images/{link}" for link in links} <= set(answers)
    assert {f"/feeds/images/{link}" for link in links} <= set(answers)
    secrets = [*SECRETS.values(), *site.tokens(), str(site.home), sys.prefix, str(Path(__file__).parent.parent)]
    secrets += [base64.b64encode(f"alice:{secret}".encode()).decode() for secret in SECRETS.values()]
    secrets += ["Traceback", 'File "', "login.json", "broken.json"]
    assert [(path, each) for path, text in answers.items() for each in secrets if each in text] == []
    assert [each for each in SECRETS.values() if each in log] == []


def _crawl(base: str, process: subprocess.Popen[str]) -> dict[str, str]:
    """Head and body of all answers that links lead to, of the API, and of some mistakes, by path."""
    api = ("images", "events", "cycle", "queue", "operations", "openapi.json", "export?format=json", "nothing", "image")
    todo = [
        "/",
        *(f"/api/v1/{name}" for name in api),
        "/images/nobody",
        "/images/..%2f..%2fetc%2fpasswd",
        "/%00",
        "/webhooks/x",
    ]
    answers: dict[str, str] = {}

    def there() -> bool:
        assert process.poll() is None, process.communicate()
        with suppress(requests.ConnectionError):
            return requests.get(f"{base}/api/v1/cycle", timeout=60).ok
        return False

    wait_until(there)
    while todo:
        address = todo.pop()
        path = unquote(address)
        if path in answers or path.startswith("/activity/events"):
            continue
        with requests.get(f"{base}{address}", headers={"Accept": "text/html, */*"}, timeout=60) as answer:
            answers[path] = f"{answer.status_code} {dict(answer.headers)}\n{answer.text}"
        links = re.findall(r"""(?:href|src)=["']([^"']*)["']""", answer.text)
        todo += [link for each in links if (link := html.unescape(each).removeprefix(base)).startswith("/")]
        if path.startswith("/images/"):
            key = path.removeprefix("/images/")
            todo += [f"/badges/{quote(key)}", f"/feeds/images/{quote(key)}"]
            todo += [f"/api/v1/{name}?image={quote(key)}" for name in ("image", "where")]
    return answers


def _document(text: str) -> str:
    """The JSON document in what a command printed."""
    return text[text.index("{") : text.rindex("\n}\n") + 2]
