"""``mergefront serve``: listen, until a signal."""

import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from optimizer.database import open_store
from optimizer.service.app import make_app
from optimizer.service.settings import Settings
from search_spaces.errors import InputError
from storage.store import Store

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 2
_KEPT_SECONDS = 75
"""Longer than clients keep idle connections: who closes first must not be the one that is about to be asked."""


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; studies and exports that run go on without it.

    Raises: InputError where it would be reachable from other machines and nobody has a token; OSError where the
        address cannot be listened on.
    """
    with open_store(settings.storage, create=True) as store:
        _check_reach(settings, store)
        listening = _listen(settings)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        doors = "a token is needed" if store.access.any_token() else "open to this machine, without tokens"
        print(f"mergefront serves {store.address} on http://{shown}:{port} ({doors})", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            make_app(settings, store),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            timeout_keep_alive=_KEPT_SECONDS,
            server_header=False,
            proxy_headers=False,
        )
        _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends well when it is told to: uvicorn's own raises the signal once more when everything is closed."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. What was imported until now lives as long as the process."""
        await super().startup(sockets)
        # A full garbage collection that looks through it, too, holds up every answer for 0.1 to 0.3 s.
        gc.collect()
        gc.freeze()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end it, the second at once."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _check_reach(settings: Settings, store: Store) -> None:
    if settings.loopback or any(t.revoked is None for t in store.access.tokens()):
        return
    raise InputError(
        f"a service that other machines can reach needs tokens, but there is none in force and --host is "
        f"{settings.host}: `mergefront token create NAME --role operator` makes one."
    )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off; without it every answer waits 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as e:
        listening.close()
        raise OSError(f"the address must be free, but {settings.host}:{settings.port} is not: {e.strerror}.") from e
    listening.listen(2048)
    return listening
