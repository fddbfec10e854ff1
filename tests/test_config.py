"""The configuration: defaults, forms of values, variables, and one error that names every mistake."""

# ruff: noqa: E501 -- messages stand whole, as their readers see them
from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cvmfs_sync.config import Config, GitList, RegistryOptions, json_schema, load
from cvmfs_sync.errors import ConfigurationError
from cvmfs_sync.units import Address, Crontab, format_duration, parse_duration, parse_size

# As it stands in the design.
WHOLE = """
image_list: image-list.yaml
repository:
  backend: directory
  name: unpacked.example.org
  root: ./published
layout: unpacked
state_dir: ./state
spool_dir: ./spool
schedule: {sync: 15m, gc: "30 3 * * *"}
retire: {grace_period: 30d, batch: 50, max_fraction: 0.2}
sandbox: {bind_points: [/cvmfs, /srv]}
registries:
  "registry.example.org:5000": {insecure: true, requests_per_second: 20, concurrency: 4}
metrics: {listen: "127.0.0.1:9100"}
"""


def write(directory: Path, text: str) -> Path:
    """A configuration file with this text."""
    path = directory / "c.yaml"
    path.write_text(text)
    return path


def mistakes(directory: Path, text: str, **environ: str) -> list[str]:
    """The lines of the error that this configuration raises, with the directory taken out."""
    with pytest.raises(ConfigurationError) as caught:
        load(write(directory, text), environ)
    return str(caught.value).replace(f"{directory}/", "").split("\n")


def test_options_of_a_registry(tmp_path: Path) -> None:
    """Files are absolute from the configuration's directory on; mirrors lose a final slash and keep their order."""
    text = "registries: {a.example: {credentials: a.json, ca_file: /b.pem, mirrors: ['https://m.example/', 'n.example:5000/p/q']}}"
    options = load(write(tmp_path, text), {}).registry("a.example")
    assert (options.credentials, options.ca_file) == (tmp_path / "a.json", Path("/b.pem"))
    assert options.mirrors == ("https://m.example", "n.example:5000/p/q")


def test_defaults(tmp_path: Path) -> None:
    """An empty file takes the defaults of the design, with absolute paths."""
    found = load(write(tmp_path, ""), {})
    assert found.image_list == tmp_path / "image-list.yaml"
    assert found.repository.backend == "directory"
    assert found.repository.name is None
    assert found.repository.root == tmp_path / "published"
    assert found.repository.spool is None
    assert found.repository.wait == timedelta(minutes=5)
    assert found.layout == "unpacked"
    assert (found.state_dir, found.spool_dir) == (tmp_path / "state", tmp_path / "spool")
    assert found.schedule.sync == timedelta(minutes=15)
    assert found.schedule.gc == Crontab("30 3 * * *", "30", "3", "*", "*", "*")
    assert found.retire.grace_period == timedelta(days=30)
    assert (found.retire.batch, found.retire.max_fraction) == (50, 0.2)
    assert found.sandbox.bind_points == (PurePosixPath("/cvmfs"), PurePosixPath("/srv"))
    assert found.registries == {}
    assert found.metrics.listen == Address("127.0.0.1", 9100)
    assert found.limits.given() == {}


def test_the_design(tmp_path: Path) -> None:
    """The design's example is read, and but for its names is what the defaults are."""
    found, default = load(write(tmp_path, WHOLE), {}), load(write(tmp_path, ""), {})
    assert found.registry("registry.example.org:5000") == RegistryOptions(insecure=True)
    assert found.registry("ghcr.io") == RegistryOptions()
    for name in ("image_list", "layout", "state_dir", "spool_dir", "schedule", "retire", "sandbox", "metrics"):
        assert getattr(found, name) == getattr(default, name)


def test_cvmfs_defaults(tmp_path: Path) -> None:
    """A CernVM-FS repository is mounted where its name says, unless the file says otherwise."""
    found = load(write(tmp_path, "repository: {backend: cvmfs, name: sw.example.org}"), {})
    assert found.repository.root == Path("/cvmfs/sw.example.org")
    found = load(write(tmp_path, "repository: {backend: cvmfs, name: sw.example.org, root: mnt, spool: /s}"), {})
    assert (found.repository.root, found.repository.spool) == (tmp_path / "mnt", Path("/s"))


def test_what_bounds_and_opens_downloads(tmp_path: Path) -> None:
    """The spool has no limit and foreign layers are refused, unless the file says otherwise."""
    found = load(write(tmp_path, ""), {})
    assert (found.spool_limit, found.registry("a.example").foreign_layers) == (None, False)
    text = "{spool_limit: 50G, registries: {a.example: {foreign_layers: true}}}"
    found = load(write(tmp_path, text), {"CVMFS_SYNC_SPOOL_LIMIT": "1K"})
    assert found.spool_limit == 1024
    assert load(write(tmp_path, text), {}).spool_limit == 50 << 30
    assert found.registry("a.example").foreign_layers
    assert load(write(tmp_path, "spool_limit: null"), {}).spool_limit is None
    with pytest.raises(ConfigurationError, match="spool_limit"):
        load(write(tmp_path, "spool_limit: -1"), {})


def test_relative_path_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths start from the file's directory, and come out absolute when the file is named by a relative path."""
    write(tmp_path, "state_dir: s\nimage_list: https://example.org/list.yaml\n")
    monkeypatch.chdir(tmp_path.parent)
    found = load(Path(tmp_path.name) / "c.yaml", {"CVMFS_SYNC_SPOOL_DIR": "../sp"})
    assert found.state_dir == tmp_path / "s"
    assert found.spool_dir == tmp_path / "../sp"
    assert found.image_list == "https://example.org/list.yaml"


def test_webhooks_speak_for_a_registry(tmp_path: Path) -> None:
    """The one that most people mean, where there is one; secrets are in files, from the configuration's directory on."""
    text = """
web:
  webhooks:
    - {name: hub, kind: dockerhub, secret_file: hub}
    - {name: ghcr, kind: github, secret_file: /etc/ghcr}
    - {name: ours, kind: quay, registry: "registry.example.org:5000", secret_file: ours}
"""
    found = load(write(tmp_path, text), {}).web.webhooks
    assert [each.registry for each in found] == ["docker.io", "ghcr.io", "registry.example.org:5000"]
    assert [each.secret_file for each in found] == [tmp_path / "hub", Path("/etc/ghcr"), tmp_path / "ours"]


MISTAKES = {
    "a webhook for no registry": (
        "web: {webhooks: [{name: a, kind: harbor, secret_file: x}]}",
        "c.yaml:1: web.webhooks.0: the key 'registry' is missing: harbor needs the registry's host, or host:port",
    ),
    "a webhook's name twice": (
        "web: {webhooks: [{name: a, kind: quay, secret_file: x}, {name: a, kind: quay, secret_file: y}]}",
        "c.yaml:1: web.webhooks: two webhooks have the name 'a'",
    ),
    "a webhook without a secret": (
        "web: {webhooks: [{name: a, kind: quay}]}", "c.yaml:1: web.webhooks.0: the key 'secret_file' is missing",
    ),
    "another name of a webhook's registry": (
        "web: {webhooks: [{name: a, kind: dockerhub, registry: index.docker.io, secret_file: x}]}",
        "c.yaml:1: web.webhooks.0.registry: another name of 'docker.io'; write that",
    ),
    "unknown key": ("stat_dir: x", "c.yaml:1: stat_dir: unknown key; expected one of image_list, repository, layout, state_dir, spool_dir, spool_limit, large_image, schedule, stop_within, retire, sandbox, registries, docker_host, hooks, metrics, web, limits; did you mean 'state_dir'?"),
    "unknown option": ("registries:\n  ghcr.io:\n    insecur: true", "c.yaml:3: registries.ghcr.io.insecur: unknown key; expected one of insecure, requests_per_second, concurrency, credentials, ca_file, mirrors, ratelimit_floor, foreign_layers; did you mean 'insecure'?"),
    "no host": ("registries: {foo: {}}", "c.yaml:1: registries.foo: expected a registry's host or host:port, such as ghcr.io or registry.example.org:5000"),
    "a path for a host": ("registries: {ghcr.io/org: {}}", "c.yaml:1: registries.ghcr.io/org: expected a registry's host or host:port, such as ghcr.io or registry.example.org:5000"),
    "alias of Docker Hub": ("registries: {index.docker.io: {}}", "c.yaml:1: registries.index.docker.io: another name of 'docker.io'; write that"),
    "mirror with a user": ("registries: {ghcr.io: {mirrors: ['https://u:pw@m.example']}}", "c.yaml:1: registries.ghcr.io.mirrors.0: expected a host, host:port or URL, such as https://cache.example.org or cache.example.org/project, without a user; give the mirror an entry of its own in 'registries'"),
    "mirror of another scheme": ("registries: {ghcr.io: {mirrors: ['ftp://m.example']}}", "c.yaml:1: registries.ghcr.io.mirrors.0: expected a host, host:port or URL, such as https://cache.example.org or cache.example.org/project; found the text 'ftp://m.example'"),
    "mirror that is no host": ("registries: {ghcr.io: {mirrors: [m]}}", "c.yaml:1: registries.ghcr.io.mirrors.0: expected a host, host:port or URL, such as https://cache.example.org or cache.example.org/project; found the text 'm'"),
    "mirror that is a number": ("registries: {ghcr.io: {mirrors: [5]}}", "c.yaml:1: registries.ghcr.io.mirrors.0: expected a host, host:port or URL, such as https://cache.example.org or cache.example.org/project; found the number 5"),
    "one mirror, not a list": ("registries: {ghcr.io: {mirrors: m.example}}", "c.yaml:1: registries.ghcr.io.mirrors: expected a list, found the text 'm.example'"),
    "negative floor": ("registries: {ghcr.io: {ratelimit_floor: -1}}", "c.yaml:1: registries.ghcr.io.ratelimit_floor: must be at least 0, found the number -1"),
    "no concurrency": ("registries: {ghcr.io: {concurrency: 0}}", "c.yaml:1: registries.ghcr.io.concurrency: must be at least 1, found the number 0"),
    "no requests": ("registries: {ghcr.io: {requests_per_second: 0}}", "c.yaml:1: registries.ghcr.io.requests_per_second: must be greater than 0.0, found the number 0"),
    "backend": ("repository: {backend: cvms}", "c.yaml:1: repository.backend: expected 'directory' or 'cvmfs', found the text 'cvms'"),
    "no name": ("repository: {backend: cvmfs}", "c.yaml:1: repository: the key 'name' is missing: backend cvmfs needs the repository's name, for example unpacked.example.org"),
    "bad name": ("repository: {backend: cvmfs,\n  name: ../x}", "c.yaml:2: repository.name: expected letters, digits, '.', '-' and '_', found the text '../x'"),
    "number for duration": ("repository:\n  wait: 5", "c.yaml:2: repository.wait: expected a duration such as 90s, 15m, 2h30m or 30d, found the number 5; add a unit: s, m, h, d or w"),
    "words for duration": ("retire: {grace_period: 3 days}", "c.yaml:1: retire.grace_period: expected a duration such as 90s, 15m, 2h30m or 30d, found the text '3 days'"),
    "interval of nothing": ("schedule: {sync: 0s}", "c.yaml:1: schedule.sync: expected an interval longer than 0s"),
    "crontab": ("schedule: {gc: 60 3 * * *}", "c.yaml:1: schedule.gc: the minute field '60' of the crontab line is not * or within 0-59"),
    "crontab fields": ("schedule: {gc: 3 * * *}", "c.yaml:1: schedule.gc: expected an interval such as 15m, or a crontab line of five fields such as '30 3 * * *', found the text '3 * * *'"),
    "home": ("state_dir: ~/state", "c.yaml:1: state_dir: '~' is not expanded, found the text '~/state'; write the whole path"),
    "no path": ("state_dir: 3", "c.yaml:1: state_dir: expected a path, found the number 3"),
    "section of nothing": ("retire:", "c.yaml:1: retire: expected a mapping of keys to values, found nothing"),
    "scheme": ("image_list: ftp://x/y", "c.yaml:1: image_list: expected a path or a URL that begins with https:// or http://, found the text 'ftp://x/y'"),
    "fraction": ("retire: {max_fraction: 20}", "c.yaml:1: retire.max_fraction: must be at most 1.0, found the number 20"),
    "batch": ("retire: {batch: fifty}", "c.yaml:1: retire.batch: expected a whole number, found the text 'fifty'"),
    "relative bind point": ("sandbox:\n  bind_points:\n    - /cvmfs\n    - srv", "c.yaml:4: sandbox.bind_points.1: expected an absolute path such as /cvmfs, without '..' and final '/', found the text 'srv'"),
    "engine": ("docker_host: /run/podman/podman.sock", "c.yaml:1: docker_host: expected unix:///path/of/socket or tcp://host:port, found the text '/run/podman/podman.sock'"),
    "listen": ("metrics: {listen: ':9100'}", "c.yaml:1: metrics.listen: expected host:port such as 127.0.0.1:9100, found the text ':9100'"),
    "port": ("metrics: {listen: 'h:70000'}", "c.yaml:1: metrics.listen: expected host:port such as 127.0.0.1:9100, found the text 'h:70000'"),
    "size": ("limits: {bytes: 1.5G}", "c.yaml:1: limits.bytes: expected a whole number, or one with K, M, G or T (powers of 1024), found the text '1.5G'"),
    "limit": ("limits: {byte: 1}", "c.yaml:1: limits.byte: unknown key; expected one of bytes, entries, path, name, depth, link, xattrs, header, sparse, ratio, hardlinks; did you mean 'bytes'?"),
    "a list": ("- a", "c.yaml:1: expected a mapping of keys to values, found a list"),
    "YAML": ("a: [", "c.yaml:2:1: a bracket is not closed, or a comma stands in the wrong place"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    """A mistake is named with its line, what was found, what is expected."""
    assert mistakes(tmp_path, text + "\n") == [message]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "'git' is a repository"),
        ({"git": ""}, "'git' is a repository"),
        ({"git": "--upload-pack=touch x"}, "'git' is a repository"),
        ({"git": "ext::sh -c id"}, "'git' is a repository"),
        ({"git": "ext::id"}, "'git' is a repository"),
        ({"git": 7}, "'git' is a repository"),
        ({"git": "https://x/y z"}, "'git' is a repository"),
        ({"git": "x", "branch": "-f"}, "'branch' is the name"),
        ({"git": "x", "branch": "a..b"}, "'branch' is the name"),
        ({"git": "x", "branch": "a:b"}, "'branch' is the name"),
        ({"git": "x", "branch": "a b"}, "'branch' is the name"),
        ({"git": "x", "branch": "a/"}, "'branch' is the name"),
        ({"git": "x", "branch": None}, "'branch' is the name"),
        ({"git": "x", "path": "../x"}, "'path' is that of a file"),
        ({"git": "x", "path": "/x"}, "'path' is that of a file"),
        ({"git": "x", "path": ""}, "'path' is that of a file"),
        ({"git": "x", "path": "a:b"}, "'path' is that of a file"),
        ({"git": "x", "brnch": "main"}, "did you mean 'branch'?"),
    ],
)
def test_bad_git_lists(tmp_path: Path, source: object, words: str) -> None:
    """What git could take for an option, a program or another file is refused, with the line."""
    (line,) = mistakes(tmp_path, json.dumps({"image_list": source}))
    assert line.startswith("c.yaml:1: image_list: ")
    assert words in line


def test_a_list_in_git(tmp_path: Path) -> None:
    """A URL or ssh's short form stays as it is; a path starts from the configuration; variables can set it."""
    for git, meant in (
        ("https://git.example.org/x.git", "https://git.example.org/x.git"),
        ("git@git.example.org:org/x.git", "git@git.example.org:org/x.git"),
        ("../x.git", str(tmp_path / "../x.git")),
        ("/srv/x.git", "/srv/x.git"),
    ):
        write(tmp_path, json.dumps({"image_list": {"git": git}}))
        assert load(tmp_path / "c.yaml", {}).image_list == GitList(meant, "main", "image-list.yaml")
    found = load(tmp_path / "c.yaml", {"CVMFS_SYNC_IMAGE_LIST": "{git: /x, branch: release/1.0, path: a/b.yaml}"})
    assert found.image_list == GitList("/x", "release/1.0", "a/b.yaml")


@pytest.mark.parametrize("point", ["/", "", "/a/", "//a", "/a/../b", "/a/./b", "/..", "a", 3, "/a\n"])
def test_bad_bind_points(tmp_path: Path, point: object) -> None:
    """A bind point that could be read in two ways is refused."""
    text = json.dumps({"sandbox": {"bind_points": [point]}})
    (line,) = mistakes(tmp_path, text)
    assert line.startswith("c.yaml:1: sandbox.bind_points.0: expected an absolute path such as /cvmfs")


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """One error lists the mistakes of the file and of the environment."""
    text = "layout: flat\nretire: {batch: 0}\nmetrics: {port: 1}\n"
    assert mistakes(tmp_path, text, CVMFS_SYNC_RETIRE__GRACE_PERIOD="1", CVMFS_SYNC_STATEDIR="/x") == [
        (
            "CVMFS_SYNC_RETIRE__GRACE_PERIOD: retire.grace_period: expected a duration such as 90s, 15m, 2h30m or 30d, "
            "found the number 1; add a unit: s, m, h, d or w"
        ),
        "c.yaml:1: layout: expected 'unpacked' or 'osg', found the text 'flat'",
        "c.yaml:2: retire.batch: must be at least 1, found the number 0",
        "c.yaml:3: metrics.port: unknown key; expected one of listen, textfile",
        "CVMFS_SYNC_STATEDIR: no setting has this name; did you mean 'CVMFS_SYNC_STATE_DIR'?",
    ]


def test_variables(tmp_path: Path) -> None:
    """Variables replace what the file says, whole sections first; values are YAML words or flow collections."""
    found = load(
        write(tmp_path, "layout: osg\nretire: {batch: 7, max_fraction: 0.5}\nmetrics: {listen: 'h:1'}"),
        {
            "CVMFS_SYNC_LAYOUT": "unpacked",
            "CVMFS_SYNC_REPOSITORY": "{backend: cvmfs, name: a.example.org}",
            "CVMFS_SYNC_REPOSITORY__NAME": "b.example.org",
            "CVMFS_SYNC_SCHEDULE__SYNC": "*/5 * * * *",
            "CVMFS_SYNC_RETIRE__BATCH": "3",
            "CVMFS_SYNC_METRICS__LISTEN": "null",
            "CVMFS_SYNC_SANDBOX__BIND_POINTS": "[/data]",
            "CVMFS_SYNC_REGISTRIES": '{"localhost:5000": {insecure: true}}',
            "CVMFS_SYNC_LIMITS__BYTES": "10G",
            "CVMFS_SYNC_CONFIG": "elsewhere",
            "CVMFS_SYNC_TEST_REPOSITORY": "x",
            "HOME": "/root",
        },
    )
    assert found.layout == "unpacked"
    assert found.repository.root == Path("/cvmfs/b.example.org")
    assert str(found.schedule.sync) == "*/5 * * * *"
    assert (found.retire.batch, found.retire.max_fraction) == (3, 0.5)
    assert found.metrics.listen is None
    assert found.sandbox.bind_points == (PurePosixPath("/data"),)
    assert found.registry("localhost:5000").insecure
    assert found.limits.given() == {"bytes": 10 * 2**30}


VARIABLES = [
    ("CVMFS_SYNC_LAYOUT", "", "CVMFS_SYNC_LAYOUT: layout: expected 'unpacked' or 'osg', found nothing"),
    ("CVMFS_SYNC_LAYOUT", "flat", "CVMFS_SYNC_LAYOUT: layout: expected 'unpacked' or 'osg', found the text 'flat'"),
    ("CVMFS_SYNC_X", "1", "CVMFS_SYNC_X: no setting has this name; unset it"),
    ("CVMFS_SYNC_REPOSITORY_ROOT", "/x", "CVMFS_SYNC_REPOSITORY_ROOT: no setting has this name; did you mean 'CVMFS_SYNC_REPOSITORY__ROOT'?"),
    ("CVMFS_SYNC_state_dir", "/x", "CVMFS_SYNC_state_dir: no setting has this name; did you mean 'CVMFS_SYNC_STATE_DIR'?"),
    ("CVMFS_SYNC_REGISTRIES", "{ghcr.io: {concurrency: a}}", "CVMFS_SYNC_REGISTRIES: registries.ghcr.io.concurrency: expected a whole number, found the text 'a'"),
    ("CVMFS_SYNC_REGISTRIES", "{a: [", "CVMFS_SYNC_REGISTRIES: registries: a bracket is not closed, or a comma stands in the wrong place"),
    ("CVMFS_SYNC_RETIRE__BATCH", "2027-02-30", "CVMFS_SYNC_RETIRE__BATCH: retire.batch: '2027-02-30' is not valid: day is out of range for month"),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "value", "message"), VARIABLES)
def test_bad_variables(tmp_path: Path, variable: str, value: str, message: str) -> None:
    """A problem that comes from a variable names the variable; unknown names are problems, too."""
    assert mistakes(tmp_path, "", **{variable: value}) == [message]


def test_variable_below_a_wrong_section(tmp_path: Path) -> None:
    """A variable does not hide that its section is wrong in the file."""
    assert mistakes(tmp_path, "retire: [1]\n", CVMFS_SYNC_RETIRE__BATCH="3") == [
        "c.yaml:1: retire: expected a mapping of keys to values, found a list"
    ]


def test_missing_file(tmp_path: Path) -> None:
    """Without a file the error says what to do."""
    path = tmp_path / "none.yaml"
    message = (
        f"{path}: there is no such configuration file; to do: name yours with --config, or create this one; "
        "an empty file takes all defaults"
    )
    with pytest.raises(ConfigurationError, match="^" + re.escape(message) + "$"):
        load(path, {})


def test_directory_for_a_file(tmp_path: Path) -> None:
    """A path that can't be read is an error of the configuration."""
    with pytest.raises(ConfigurationError, match="the configuration cannot be read: Is a directory"):
        load(tmp_path, {})


def test_limits(tmp_path: Path) -> None:
    """A limit that is given as null is lifted; one that is not given is not there, so that it keeps its default."""
    found = load(write(tmp_path, "limits: {bytes: 512M, entries: 10, ratio: null}"), {})
    assert found.limits.given() == {"bytes": 512 * 2**20, "entries": 10, "ratio": None}


def test_frozen(tmp_path: Path) -> None:
    """A configuration does not change after it was read."""
    found = load(write(tmp_path, ""), {})
    with pytest.raises(ValidationError):
        found.layout = "osg"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("2h30m", 9000), ("30d", 2592000), ("1w1d1h1m1s", 694861), ("0s", 0)],
)
def test_durations(text: str, seconds: int) -> None:
    """Durations are numbers with units, the larger units first."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "15", "m", "15 m", "-5m", "30m2h", "1.5h", "5M", "1m1m", "9999999d", 15, 1.5, None, True]
)
def test_bad_durations(text: object) -> None:
    """Anything else is refused, numbers without a unit above all."""
    with pytest.raises(ValueError, match=r"^expected a duration such as 90s, 15m, 2h30m or 30d, found "):
        parse_duration(text)


@given(st.integers(0, 10**10))
def test_durations_survive(seconds: int) -> None:
    """What is written for a duration is read as the same duration."""
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (5, 5),
        ("7", 7),
        ("1K", 1024),
        ("512M", 2**29),
        ("10G", 10 * 2**30),
        ("1t", 2**40),
        ("1GiB", 2**30),
        ("1GB", 2**30),
    ],
)
def test_sizes(text: object, size: int) -> None:
    """Units are powers of 1024, however they are written."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1", -1, 1.0, True, "1 G", "1P", None])
def test_bad_sizes(text: object) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match=r"^expected a whole number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("0 0 * * 0", "sun"),
        ("0 0 * * 7", "sun"),
        ("0 0 * * 1-5", "mon,tue,wed,thu,fri"),
        ("0 0 * * mon,WED", "mon,wed"),
        ("0 0 * * 5-7", "sun,fri,sat"),
        ("0 0 * * */2", "sun,tue,thu,sat"),
        ("*/5 1-4/2 1,15 jan-mar *", "*"),
    ],
)
def test_crontab(text: str, days: str) -> None:
    """Days of the week come out as names: schedulers disagree about their numbers."""
    crontab = Crontab.parse(text)
    assert crontab.day_of_week == days
    assert [crontab.minute, crontab.hour, crontab.day, crontab.month] == text.split()[:4]
    assert str(crontab) == text


@pytest.mark.parametrize(
    "text",
    ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *", "5-1 * * * *", "a * * * *", "* * * foo *", "1, * * * *"],
)  # fmt: skip
def test_bad_crontab(text: str) -> None:
    """A field outside its range, backwards or unreadable is refused."""
    with pytest.raises(ValueError, match="of the crontab line is not"):
        Crontab.parse(text)


@pytest.mark.parametrize("text", ["127.0.0.1:9100", "localhost:1", "[::1]:65535"])
def test_addresses(text: str) -> None:
    """An address comes out as it was written."""
    assert str(Address.parse(text)) == text


def test_json_schema(tmp_path: Path) -> None:
    """The schema is JSON, knows every key, and gives defaults in the form that the file takes."""
    schema = json.loads(json.dumps(json_schema()))
    assert list(schema["properties"]) == list(Config.model_fields)
    assert schema["$defs"]["Retire"]["properties"]["grace_period"]["default"] == "30d"
    defaults = {
        name: {key: value["default"] for key, value in schema["$defs"][model]["properties"].items()}
        for name, model in [
            ("schedule", "Schedule"),
            ("retire", "Retire"),
            ("sandbox", "Sandbox"),
            ("metrics", "Metrics"),
        ]
    }
    assert load(write(tmp_path, json.dumps(defaults)), {}) == load(write(tmp_path, ""), {})
