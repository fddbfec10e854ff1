"""The dashboard and the alert rules of `deploy/`, and a real Prometheus that watches a daemon."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support import file, layer, require
from tests.support.commands import cli_command, stop
from tests.support.registry import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCUMENT = ROOT / "docs/metrics.md"
RULES = DEPLOY / "prometheus-alerts.yml"
EXAMPLES = DEPLOY / "prometheus-alerts-test.yml"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())


def _queries() -> list[str]:
    """All that the dashboard asks for."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def _documented() -> dict[str, set[str]]:
    """Series that there are, with their labels."""
    rows = re.findall(r"^\| `(cvmfs_sync_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    found: dict[str, set[str]] = {}
    for name, kind, labels in rows:
        known = set(re.findall(r"`(\w+)`", labels))
        if kind == "histogram":
            found |= {f"{name}_bucket": {*known, "le"}, f"{name}_sum": known, f"{name}_count": known}
        else:
            found[name] = known
    return found


@pytest.mark.parametrize("query", [*_queries(), *(rule["expr"] for rule in _rules())])
def test_every_query_asks_for_what_there_is(query: str) -> None:
    """Each series of dashboard and rules is one of docs/metrics.md, and so is each label that it is chosen by."""
    documented = _documented()
    series = re.findall(r"\b(cvmfs_sync_\w+)(?:\{([^}]*)\})?", query)
    assert series or query.startswith("up{")
    for name, matchers in series:
        assert name in documented
        assert set(re.findall(r"(\w+)\s*=", matchers)) <= documented[name] | {"instance"}


def test_every_metric_is_shown() -> None:
    """What is worth counting has its place in the dashboard."""
    shown = " ".join(_queries())
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in _documented()}
    assert {name for name in names if name not in shown} == set()


def test_dashboard_is_laid_out() -> None:
    """Panels have ids of their own, stay within the width and do not lie on each other."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_rules_are_valid_and_do_what_their_examples_say() -> None:
    """Promtool finds nothing wrong, and each rule fires in an example, and does not in another."""
    require("promtool")
    for command in (["check", "rules", RULES.name], ["test", "rules", EXAMPLES.name]):
        result = subprocess.run(["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    fires: dict[str, set[bool]] = {}
    for example in yaml.safe_load(EXAMPLES.read_text())["tests"]:
        for each in example["alert_rule_test"]:
            fires.setdefault(each["alertname"], set()).add(bool(each["exp_alerts"]))
    assert fires == {rule["alert"]: {True, False} for rule in _rules()}


@contextmanager
def _process(*command: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process,
    ):
        try:
            yield process
        finally:
            stop(process, 60)


class _Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; None while there is none."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=30
            ) as answer:
                document = json.load(answer)
        except OSError:
            return None
        assert document["status"] == "success", document
        return document["data"]

    def value(self, query: str) -> float | None:
        """The one value that a query has."""
        data = self.ask("query", query=query)
        return float(data["result"][0]["value"][1]) if data and data["result"] else None


def test_prometheus_sees_the_daemon_through_its_cycles(tmp_path: Path) -> None:
    """A real Prometheus scrapes, tells what was published and moved, and can answer all that the dashboard asks."""
    require("prometheus")
    ours, theirs = free_port(), free_port()
    with ScriptableRegistry() as registry:
        _scrape_through_cycles(tmp_path, registry, ours, theirs)


def _push(registry: ScriptableRegistry, hello: bytes) -> int:
    """Let the tag mean an image with these files; its compressed bytes."""
    top = layer(file("hello", hello * 1000), compression="none").tar
    base = layer(file("world", b"2" * 5000), compression="none").tar
    image = registry.add_image("org/tool", "1", [base, top])
    return sum(len(registry.blobs[digest]) for digest in image.layers)


def _scrape_through_cycles(tmp_path: Path, registry: ScriptableRegistry, ours: int, theirs: int) -> None:
    size = _push(registry, b"1")
    names = [f"{registry.host}/org/{name}:1" for name in ("tool", "none")]
    (tmp_path / "image-list.yaml").write_text(json.dumps({"version": 1, "images": names}))
    (tmp_path / "cvmfs-sync.yaml").write_text(
        json.dumps(
            {
                "metrics": {"listen": f"127.0.0.1:{ours}"}, "web": {"listen": None},
                "schedule": {"sync": "1s", "gc": "2s"}, "registries": {registry.host: {"insecure": True}},
            }
        )
    )  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 1s}\n"
        f"rule_files: ['{RULES}']\n"
        "scrape_configs:\n- job_name: cvmfs-sync\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{ours}']}}]\n"
    )
    logs = (tmp_path / "daemon.log", tmp_path / "prometheus.log")

    def said() -> str:
        return "\n".join(log.read_text()[-3000:] for log in logs)

    prometheus = _Prometheus(theirs)
    with (
        _process(*cli_command("run", "--config", tmp_path / "cvmfs-sync.yaml"), log=logs[0]),
        _process(
            "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{theirs}", log=logs[1],
        ),
    ):  # fmt: skip
        wait_until(lambda: prometheus.value("cvmfs_sync_published_images_total") == 1, said)
        first = prometheus.value("cvmfs_sync_publish_written_bytes_sum")
        assert first is not None
        assert first >= 6000
        wait_until(lambda: prometheus.value('cvmfs_sync_images{result="unchanged"}') == 1, said)
        # So small a tree is written whole, for which all layers are needed.
        size += _push(registry, b"3")
        wait_until(lambda: prometheus.value("cvmfs_sync_published_images_total") == 2, said)
        # The next cycle has ended, so all is counted.
        wait_until(lambda: prometheus.value('cvmfs_sync_images{result="unchanged"}') == 1, said)
        assert prometheus.value('up{job="cvmfs-sync"}') == 1
        assert prometheus.value("cvmfs_sync_update_delay_seconds_count") == 2
        assert prometheus.value("sum(cvmfs_sync_published_trees_total)") == 2
        assert prometheus.value("cvmfs_sync_publish_written_bytes_sum + cvmfs_sync_saved_bytes_total") == 2 * first
        assert prometheus.value("cvmfs_sync_fetch_bytes_sum") == size
        assert prometheus.value("cvmfs_sync_fetch_bytes_sum + cvmfs_sync_fetch_saved_bytes_total") == prometheus.value(
            "cvmfs_sync_published_compressed_bytes_total"
        )
        assert prometheus.value("cvmfs_sync_flatten_bytes_sum") == 5000 + 2 * 1000
        for name in ("fetch_duration_seconds", "flatten_duration_seconds", "prepare_duration_seconds"):
            assert prometheus.value(f"cvmfs_sync_{name}_count") == 2
            assert (prometheus.value(f"cvmfs_sync_{name}_sum") or 0) > 0
        assert prometheus.value('cvmfs_sync_resolve_duration_seconds_count{what="image"}') == 2
        assert (prometheus.value('cvmfs_sync_resolve_duration_seconds_count{what="name"}') or 0) >= 4
        asked = f'cvmfs_sync_registry_requests_total{{host="{registry.host}", result="not_found"}}'
        assert (prometheus.value(asked) or 0) > 0
        assert prometheus.value('cvmfs_sync_transaction_held_seconds_count{result="published"}') == 2
        assert prometheus.value('cvmfs_sync_images{result="failed"}') == 1
        assert prometheus.value("cvmfs_sync_list_valid") == 1
        assert prometheus.value("cvmfs_sync_waiting_images") == 0
        wait_until(lambda: (prometheus.value('cvmfs_sync_gc_runs_total{result="ok"}') or 0) > 0, said)
        assert (prometheus.value("cvmfs_sync_state_bytes") or 0) > 0
        for query in _queries():
            asked = query.replace("$instance", ".*").replace("$__rate_interval", "1m")
            assert prometheus.ask("query", query=asked) is not None, asked
        groups = prometheus.ask("rules")["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
