"""The application: every endpoint behind the guard. Nothing is reachable that is not in one of the route lists."""

from importlib import import_module
from importlib.util import find_spec

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sizewise.core.errors import SizewiseError
from sizewise.load.store.store import Store
from sizewise.serve.access_log import AccessLog, Log
from sizewise.serve.errors import HttpError, error_answer
from sizewise.serve.guard import Guard, Traffic
from sizewise.serve.manager import Manager
from sizewise.serve.metrics import Metrics
from sizewise.serve.settings import Settings

_ROUTES = (
    *("health", "ollama", "ollama_models", "store"),
    *("openai", "anthropic", "tokens", "rerank", "systemone", "ui"),
)


def create_app(settings: Settings, store: Store | None = None, *, log: Log | None = None) -> Starlette:
    """The server as an ASGI application.

    Args:
        settings: how it runs.
        store: where models are looked up; None = the user's own.
        log: where requests are noted; None = stderr.
    """
    metrics, traffic = Metrics(), Traffic()
    log = log or Log(dev=settings.dev)
    found = routes()
    templates = {route.endpoint: route.path for route in found if isinstance(route, Route)}
    app = Starlette(
        routes=found,
        middleware=[
            Middleware(AccessLog, log=log, metrics=metrics, templates=templates),
            Middleware(Guard, settings=settings, traffic=traffic, log=log),
        ],
        exception_handlers={SizewiseError: _refuse, HTTPException: _no_route},  # type: ignore[dict-item]
    )
    app.router.redirect_slashes = False
    app.state.settings, app.state.metrics, app.state.traffic, app.state.log = settings, metrics, traffic, log
    app.state.store = store or Store()
    app.state.manager = manager = Manager(settings, app.state.store, metrics=metrics)
    metrics.gauge("sizewise_loaded_models", "Models in memory", lambda: len(manager.loaded()))
    metrics.gauge("sizewise_running_requests", "Requests at a model", lambda: manager.admission.running)
    metrics.gauge("sizewise_waiting_requests", "Requests in the queue", lambda: manager.admission.waiting)
    return app


def routes() -> list[BaseRoute]:
    """All endpoints."""
    found: list[BaseRoute] = []
    for name in _ROUTES:
        module = f"sizewise.serve.routes.{name}"
        if find_spec(module):
            found += import_module(module).ROUTES
    return found


async def _refuse(request: Request, error: SizewiseError) -> Response:
    request.scope["sizewise.note"](error)
    return error_answer(request.url.path, error)


async def _no_route(request: Request, error: HTTPException) -> Response:
    told = {404: "there is no such endpoint", 405: f"{request.method} is not possible here"}
    message = told.get(error.status_code) or str(error.detail)
    return error_answer(request.url.path, HttpError(error.status_code, message, dict(error.headers or {})))
