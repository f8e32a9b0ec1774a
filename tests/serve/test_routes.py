"""All that can be reached (S20). A new endpoint is listed here on purpose, or the test fails."""

from starlette.routing import Route

from sizewise.serve.app import routes

READ, WRITE = {"GET", "HEAD"}, {"POST"}
EXPECTED: dict[str, set[str]] = {
    "/": READ,
    "/health": READ,
    "/metrics": READ,
    "/api/generate": WRITE,
    "/api/chat": WRITE,
    "/api/embed": WRITE,
    "/api/embeddings": WRITE,
    "/api/version": READ,
    "/api/tags": READ,
    "/api/ps": READ,
    "/api/show": WRITE,
    "/api/copy": WRITE,
    "/api/delete": {"DELETE"},
    "/api/create": WRITE,
    "/api/blobs/{digest}": {"HEAD", "POST"},
    "/api/pull": WRITE,
    "/api/push": WRITE,
    "/api/tokenize": WRITE,
    "/api/detokenize": WRITE,
    "/api/count": WRITE,
    "/v1/chat/completions": WRITE,
    "/v1/completions": WRITE,
    "/v1/responses": WRITE,
    "/v1/embeddings": WRITE,
    "/v1/models": READ,
    "/v1/models/{id:path}": READ,
    "/v1/messages": WRITE,
    "/v1/messages/count_tokens": WRITE,
    "/v1/tokenize": WRITE,
    "/v1/detokenize": WRITE,
    "/v1/count": WRITE,
    "/v1/rerank": WRITE,
    "/v1/systemone": WRITE,
    "/ui/api/models": READ,
    "/ui/api/meters": READ,
    "/ui/api/reports": READ,
    "/ui/api/votes": WRITE,
    "/ui/reports/{identity}": READ,
}


def test_the_routes_are_those_that_are_known() -> None:
    found: dict[str, set[str]] = {}
    for route in routes():
        assert isinstance(route, Route), f"{route} is no endpoint of its own: its parts would not be seen here"
        found.setdefault(route.path, set()).update(route.methods or ())
    files = {path: methods for path, methods in found.items() if path.startswith("/ui") and path not in EXPECTED}
    assert {path: found[path] for path in found if path not in files} == EXPECTED
    assert all(methods == READ and "{" not in path for path, methods in files.items())  # the page's own files
