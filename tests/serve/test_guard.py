"""The door: Host, Origin, key, type, size and pace of requests, on every route of a real server."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Served, StartServer, launch
from starlette.routing import Route

from sizewise.serve.app import routes

KEY = "a-key-for-the-tests"
ROUTES = [(route.path, method) for route in routes() if isinstance(route, Route) for method in route.methods or ()]


def head(path: str = "/api/tags", method: str = "GET", **headers: str) -> bytes:
    """A request's head with exactly these headers."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""]).encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def message(answer: httpx.Response) -> str:
    """The text of an error, in either envelope."""
    error = answer.json()["error"]
    return str(error["message"] if answer.request.url.path.startswith("/v1") else error)


@pytest.fixture(scope="module")
def locked_server(tiny_home: Path) -> Iterator[Served]:
    served = launch(tiny_home, "--api-key", KEY)
    yield served
    served.stop()


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "[::1]", "localhost:11434", "127.0.0.1:1", "[::1]:8080", "LOCALHOST:80", "LocalHost"],
)
def test_our_own_names_are_served(tiny_server: Served, host: str) -> None:
    assert status(tiny_server.raw(head("/", Host=host))) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.com", "localhost.evil.com", "evil.com:11434", "127.0.0.1.evil.com", "localhost.", "0.0.0.0", ""),
        *("127.0.0.2", "2130706433", "[::]", "[::1", "::1", "localhost:port", "localhost:123456", "user@localhost"),
        *(
            "localhost evil.com",
            "localhost,evil.com",
            "[::ffff:127.0.0.1]",
            "xn--localhost",
            "localhost/",
            "localhost#",
        ),
    ],
)
def test_other_names_are_refused(tiny_server: Served, host: str) -> None:
    answer = tiny_server.raw(head("/", Host=host))
    assert status(answer) in (400, 403)


def test_no_host_and_two_hosts_are_refused(tiny_server: Served) -> None:
    assert status(tiny_server.raw(head("/"))) == 403
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\nConnection: close\r\n\r\n"
    assert status(tiny_server.raw(two)) == 403
    assert status(tiny_server.raw(two.replace(b"evil.com", b"localhost"))) == 403


def test_configured_names_are_served(tiny_home: Path, start_server: StartServer) -> None:
    served = start_server(tiny_home, SIZEWISE_HOSTS="models.example, other.example")
    assert status(served.raw(head("/", Host="Models.Example:80"))) == 200
    assert status(served.raw(head("/", Host="evil.com"))) == 403


def test_every_route_refuses_strange_hosts_and_origins(tiny_server: Served) -> None:
    """S4 and S5: whatever the route, and whatever routes there will be."""
    before = sorted(str(path) for path in (tiny_server.home / "models").rglob("*"))
    with tiny_server.client() as client:
        for path, method in ROUTES:
            url = path.replace("{", "").replace("}", "").replace(":path", "")
            assert client.request(method, url, headers={"Host": "evil.com"}).status_code == 403, (path, method)
            for origin in ("http://evil.com", "null", "file://"):
                answer = client.request(method, url, headers={"Origin": origin}, json={"model": "tiny"})
                assert answer.status_code == 403, (path, method, origin)
                assert "access-control-allow-origin" not in answer.headers
    assert sorted(str(path) for path in (tiny_server.home / "models").rglob("*")) == before


@pytest.mark.parametrize(
    "origin", ["http://localhost", "http://127.0.0.1:3000", "https://[::1]:8", "HTTP://LOCALHOST:5"]
)
def test_pages_of_this_machine_may_ask(tiny_server: Served, origin: str) -> None:
    with tiny_server.client() as client:
        answer = client.get("/", headers={"Origin": origin})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["http://localhost.evil.com", "http://evil.com:80", "http://localhost@evil.com", "ftp://localhost", "x"]
)
def test_other_pages_may_not(tiny_server: Served, origin: str) -> None:
    with tiny_server.client() as client:
        assert client.get("/", headers={"Origin": origin}).status_code == 403


def test_preflight(tiny_home: Path, start_server: StartServer) -> None:
    served = start_server(tiny_home, "--api-key", KEY, OLLAMA_ORIGINS="https://*.example.com,app://desk")
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, authorization, x-stainless-lang",
    }
    with served.client() as client:
        for origin in ("https://team.example.com", "app://desk"):
            answer = client.options("/v1/chat/completions", headers={"Origin": origin, **asked})
            assert answer.status_code == 204
            assert answer.headers["access-control-allow-origin"] == origin
            assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
        answer = client.options("/v1/chat/completions", headers={"Origin": "https://evil.com", **asked})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_key_is_wanted_on_every_route_but_three(locked_server: Served) -> None:
    """S6, and row 56 of the bad inputs."""
    with locked_server.client() as client:
        for path, method in ROUTES:
            answer = client.request(method, path.replace("{", "").replace("}", "").replace(":path", ""))
            expected = 200 if path in ("/", "/health") and method in ("GET", "HEAD") else 401
            assert answer.status_code == expected, (path, method)
        assert client.get("/no/such/route").status_code == 401
        assert client.get("/v1/models").json()["error"]["type"] == "authentication_error"
        assert isinstance(client.get("/api/tags").json()["error"], str)


def test_the_key_in_its_forms(locked_server: Served) -> None:
    basic = base64.b64encode(f"user:{KEY}".encode()).decode()
    with locked_server.client() as client:
        for good in ({"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Basic {basic}"}, {"x-api-key": KEY}):
            assert client.get("/metrics", headers=good).status_code == 200
        for bad in (f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", "Basic !!!", f"Basic {KEY}", KEY, "Bearer \xe9"):
            answer = client.get("/metrics", headers={b"Authorization": bad.encode("latin-1")})
            assert answer.status_code == 401, bad


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/jsonp"}, 415),
        ({}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded", "Origin": "http://localhost"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 404),  # what `curl -d` says
        ({"Content-Type": "application/json; charset=utf-8"}, 404),
        ({"Content-Type": "APPLICATION/JSON", "Content-Encoding": "identity"}, 404),
    ],
)
def test_the_type_of_a_body(tiny_server: Served, headers: dict[str, str], expected: int) -> None:
    """Rows 10 and 11: JSON, uncompressed. What passes gets as far as the missing model."""
    body = b'{"model": "absent", "prompt": "x"}'
    with tiny_server.client() as client:
        request = client.build_request("POST", "/api/generate", content=body)
        request.headers = httpx.Headers({"Host": "localhost", "Content-Length": str(len(body)), **headers})
        assert client.send(request).status_code == expected


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"   ",
            b"{",
            b'{"model":"tiny",}',
            b'{"model":"tiny"}{}',
            b"[]",
            b'"x"',
            b"null",
            b"\xff\xfe",
            b"{'a':1}",
        ),
        *(b'{"model":"\xc3("}', b'{"model":"\\ud800"}', b"[" * 100_000, b'{"a":' * 100_000),
        *(b'{"model":NaN}', b'{"model":Infinity}', b'{"model":1e999}', b'{"model":1' + b"0" * 400 + b"}"),
        *(b'{"model":"tiny","model":"tiny2"}', b"{}", b'{"model":""}', b'{"model":null}', b'{"model":5}'),
    ],
    ids=range(23),
)
def test_bad_bodies(tiny_server: Served, body: bytes) -> None:
    """Rows 1 to 8 and 13, in both envelopes; the next good request is served."""
    json_type = {"Content-Type": "application/json"}
    with tiny_server.client() as client:
        for path in ("/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions"):
            answer = client.post(path, content=body, headers=json_type)
            assert answer.status_code == 400, (path, answer.text)
            assert message(answer).isprintable()
            assert "Traceback" not in answer.text
        assert client.get("/").status_code == 200


def test_wrong_methods_and_unknown_routes(tiny_server: Served) -> None:
    """Row 12."""
    with tiny_server.client() as client:
        assert client.delete("/api/generate").status_code == 405
        assert client.put("/v1/models").json()["error"]["type"] == "invalid_request_error"
        for path in ("/api/nope", "/docs", "/redoc", "/openapi.json", "/api/tags/", "//api/tags", "/debug/pprof"):
            assert client.get(path).status_code == 404, path
        assert set(client.get("/v1/nope").json()["error"]) == {"message", "type", "param", "code"}


def test_bodies_over_the_cap(tiny_server: Served) -> None:
    """Row 9 and S16: by length and by chunks, without keeping what came."""
    import psutil

    limit, process = 64 * 2**20, psutil.Process(tiny_server.pid)
    before = process.memory_info().rss
    told = head(
        "/api/generate", "POST", Host="localhost", Content_Type="application/json", Content_Length=str(limit + 1)
    )
    assert status(tiny_server.raw(told)) == 413
    chunked = head(
        "/api/generate", "POST", Host="localhost", Content_Type="application/json", Transfer_Encoding="chunked"
    )
    part = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    answer = tiny_server.raw(chunked, body_after=(part for _ in range(80)))
    assert answer == b"" or status(answer) == 413  # the answer may be lost where the client still writes
    assert process.memory_info().rss <= before + 2 * limit
    with tiny_server.client() as client:
        assert client.get("/").status_code == 200


def test_large_heads(tiny_server: Served) -> None:
    """Row 57 and S16."""
    started = time.monotonic()
    many = {f"X-{number}": "v" for number in range(201)}
    for headers in (many, {"X-Long": "v" * 70_000}, {"X-Huge": "v" * 2**20}):
        answer = tiny_server.raw(head("/", Host="localhost", **headers))
        assert status(answer) in (400, 431)
    assert status(tiny_server.raw(head("/" + "a" * 200_000, Host="localhost"))) in (400, 414, 431)
    assert time.monotonic() - started < 20
    fine = {f"X-{number}": "v" * 100 for number in range(150)}
    assert status(tiny_server.raw(head("/", Host="localhost", **fine))) == 200


def test_ranges_are_ignored(tiny_server: Served) -> None:
    """Row 61."""
    ranges = "bytes=" + ",".join("0-" for _ in range(5000))
    with tiny_server.client() as client:
        took = []
        for path in ("/", "/ui", "/health"):
            start = time.monotonic()
            answer = client.get(path, headers={"Range": ranges})
            took.append(time.monotonic() - start)
            assert answer.status_code in (200, 307, 404, 416)
    assert sorted(took)[1] < 0.5


def test_encoded_paths_lead_nowhere(tiny_server: Served) -> None:
    """Row 62."""
    for path in (
        "/..%2f..%2fetc/passwd",
        "/ui/..%2f..%2fetc/passwd",
        "/ui/%2e%2e/%2e%2e/x",
        "/%00",
        "/ui/%00",
        "/ui/..\\x",
    ):
        answer = tiny_server.raw(head(path, Host="localhost"))
        assert status(answer) in (400, 404), path
        assert b"root:" not in answer


def test_error_bodies_hold_no_paths(tiny_server: Served) -> None:
    """S18: what is in the store's folder stays unknown."""
    names: list[Any] = ["absent", "../../etc/passwd", "a/b/c/d/e", "C:\\x", "/etc/passwd", "x.gguf", "hf://a/b", "~"]
    names += ["a" * 81, "a\x00b", "a\nb", "a\u202eb", "\U0001f600", "openai://m@http://127.0.0.1:1/v1", "./tiny", "."]
    with tiny_server.client() as client:
        for name in names:
            for path in ("/api/show", "/api/generate", "/v1/chat/completions", "/api/embed"):
                body = (
                    {"model": name, "messages": [{"role": "user", "content": "x"}]}
                    if "chat" in path
                    else {"model": name}
                )
                answer = client.post(path, json=body)
                assert answer.status_code in (400, 404), (path, name, answer.text)
                assert str(tiny_server.home) not in answer.text
                assert message(answer).isprintable(), name
