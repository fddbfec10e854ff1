"""From a configuration to the process that shows pages: the wiring of `cvmfs-sync serve`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fastapi import APIRouter

from cvmfs_sync.config import Config
from cvmfs_sync.control import ask
from cvmfs_sync.errors import RepositoryError, UsageError
from cvmfs_sync.viewing import open_view
from cvmfs_sync.web import feeds, html
from cvmfs_sync.web.app import make_app
from cvmfs_sync.web.live import Broadcast, live_router
from cvmfs_sync.web.server import serve, step_back
from cvmfs_sync.web.thrift import Allowance
from cvmfs_sync.web.webhooks import webhook_router

__all__ = ["routers", "serve_pages", "tell"]

log = logging.getLogger(__name__)


def routers(broadcast: Broadcast | None = None) -> list[APIRouter]:
    """What is answered beside the API; `broadcast` ends the streams of events."""
    return [html.router, live_router(broadcast), feeds.router]


def tell(state_dir: Path, names: Sequence[str], counts: Mapping[tuple[str, str], int]) -> None:
    """Have the daemon look at what was pushed; without one there is nothing to do, as it looks when it starts.

    Args:
        state_dir: Where its socket is.
        names: Of what was pushed.
        counts: How many deliveries webhooks have got, by sender and result.
    """
    deliveries = [[sender, result, number] for (sender, result), number in counts.items()]
    try:
        answer = ask(state_dir, {"check": names, "deliveries": deliveries})
    except RepositoryError as error:
        log.warning("the daemon is not told what was pushed, its schedule comes to it: %s", error)
        return
    if answer is None:
        if names:
            log.warning("no daemon runs to be told what was pushed: it looks at everything when it starts")
    elif answer.get("exit_code") != 0:
        log.error("the daemon does not take what was pushed: %s", answer.get("error"))


def serve_pages(config: Config, *, parent: int | None = None) -> None:
    """Show pages until SIGTERM or SIGINT; see `server.serve`.

    Raises:
        UsageError: The configuration wants no pages, or the address can't be listened on.
    """
    if config.web.listen is None:
        raise UsageError("web.listen is null: there are to be no pages", todo="set web.listen to host:port")
    step_back()
    broadcast = Broadcast()
    with open_view(config) as view:
        answering = routers(broadcast)
        if config.web.webhooks:
            answering.append(webhook_router(config.web.webhooks, partial(tell, config.state_dir)))
        app = make_app(view, answering, url=config.web.url, allowance=Allowance())
        serve(app, config.web.listen, parent=parent, ending=broadcast.close)
