"""What the server says of itself: alive, healthy, and its counters."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sizewise.serve.routes.common import dump, manager_of


async def root(request: Request) -> Response:
    """The heartbeat that Ollama's clients ask for."""
    return PlainTextResponse("Ollama is running")


async def health(request: Request) -> Response:
    """Status, loaded models and queue; 503 while the server ends."""
    manager = manager_of(request)
    ending = manager.closing or request.app.state.traffic.draining
    body = {
        "status": "shutting down" if ending else "ok",
        "loaded": [one.name for one in manager.loaded()],
        "queue": {
            "running": manager.admission.running,
            "waiting": manager.admission.waiting,
            "most_waiting": manager.admission.max_queue,
        },
    }
    return Response(dump(body), 503 if ending else 200, media_type="application/json")


async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    manager = manager_of(request)
    for one in manager.loaded():
        manager.metrics.memory_bytes.labels(one.name).set(one.memory_bytes)
    return Response(manager.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = [
    Route("/", root, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
