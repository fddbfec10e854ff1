"""Commands that run until they are stopped: `run`, `serve`."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from cvmfs_sync.cli.app import LogFormat, app
from cvmfs_sync.cli.options import DEFAULT_CONFIG, ConfigOption
from cvmfs_sync.cli.signals import stop_on_signals
from cvmfs_sync.console import show_work
from cvmfs_sync.stopping import Stopping, Terminated

log = logging.getLogger(__name__)


@app.command("run")
def _run(context: typer.Context, config: ConfigOption = DEFAULT_CONFIG) -> int:
    """Sync by the schedule until stopped, and serve metrics and pages.

    Logs each unit of work to stderr. SIGHUP has it read its configuration again, and the list. Exit code 0 when SIGTERM
    ends it: within stop_within, in which a publish that is nearly done is finished, and any other is aborted.
    """
    from cvmfs_sync.notify import Notifier
    from cvmfs_sync.render import report_document
    from cvmfs_sync.service import load_config
    from cvmfs_sync.serving import Daemon

    show_work()
    stopping = Stopping()
    with suppress(Terminated):
        stop_on_signals(stopping)
        notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
        log_format = context.parent.params["log_format"] if context.parent else LogFormat.CONSOLE
        pages = [sys.executable, "-m", "cvmfs_sync", "--log-format", str(log_format), "serve"]
        pages += ["--config", str(config), "--parent", str(os.getpid())]
        Daemon(lambda: load_config(config), report_document, stopping=stopping, notifier=notifier, pages=pages).run()
    log.info("stopped by SIGTERM")
    return 0


@app.command("serve")
def _serve(
    config: ConfigOption = DEFAULT_CONFIG,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True, help="End when this process ends.")] = None,
) -> int:
    """Show pages and answer the API at web.listen until stopped.

    Only reads, and needs no daemon; where one runs, it does this by itself. Exit code 0 when SIGTERM ends it.
    """
    from cvmfs_sync.service import load_config
    from cvmfs_sync.web.process import serve_pages

    show_work()
    with suppress(Terminated):
        serve_pages(load_config(config), parent=parent)
    return 0
