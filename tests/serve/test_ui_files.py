"""The page's files and JSON over HTTP: only what the table holds, under a policy that lets nothing else run."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from served import Served

from sizewise.measure.ledger import Ledger
from sizewise.serve.ui import files

VENDORED = {  # as published; a changed byte is a changed program
    "vendor/purify.min.js": "8053ee2a6a09f9d50f7fcd6fb7f07072f52c7f3fa9aa12147cab4feaf65ee970",
    "vendor/marked.esm.js": "5371fea86fd0656b4fc7bea7c94c663109d82789b69433eeee78d42895aa44de",
}


def directives(policy: str) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in policy.split(";"))
    return {name: value for name, _, value in parts}


@pytest.mark.parametrize("name", files.TYPES)
def test_every_file_is_there_with_its_type_and_tag(ui_server: Served, name: str) -> None:
    with ui_server.client() as client:
        got = client.get(f"/ui/{name}")
        assert got.status_code == 200
        assert got.headers["content-type"] == files.TYPES[name] + "; charset=utf-8"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-security-policy"] == files.POLICY
        again = client.get(f"/ui/{name}", headers={"If-None-Match": got.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(f"/ui/{name}", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_table_is_the_folder() -> None:
    """A file that is forgotten in the table, or in the folder, shows here and not on somebody's screen."""
    folder = Path(files.__file__).parent
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    there = {name for name in there if not name.endswith((".py", ".pyc"))}
    assert there | {"look.css"} == set(files.TYPES)


@pytest.mark.parametrize("path", [
    "/ui/files.py", "/ui/__init__.py", "/ui/vendor/", "/ui/..%2f..%2fetc%2fpasswd", "/ui/..%2ffiles.py", "/ui/%00",
    "/ui/vendor/..%2findex.html", "/ui//etc/passwd", "/ui/reports/..%2f..%2fledger", "/ui/reports/x", "/ui/api", "/uii",
])  # fmt: skip
def test_nothing_else_is(ui_server: Served, path: str) -> None:
    with ui_server.client() as client:
        got = client.get(path)
    assert got.status_code == 404
    assert str(ui_server.home) not in got.text


def test_the_policy_lets_no_inline_code_and_nothing_from_outside(ui_server: Served) -> None:
    policy = directives(files.POLICY)
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy["img-src"] == "'self' data:"
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in files.POLICY
    with ui_server.client() as client:
        page = client.get("/ui").text
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)


def test_vendored_code_is_as_it_was_published_and_licensed() -> None:
    for name, digest in VENDORED.items():
        assert hashlib.sha256(files.file(name).content).hexdigest() == digest
    assert b"Apache License" in files.file("vendor/purify.LICENSE").content
    assert b"MarkedJS" in files.file("vendor/marked.LICENSE").content


def test_models_come_with_quality_votes_and_lineage(ui_server: Served) -> None:
    with ui_server.client() as client:
        body = client.get("/ui/api/models").json()
    models = {model["name"]: model for model in body["models"]}
    child = models["tiny2"]
    assert child["lineage"]["parent"] == "tiny"
    assert child["lineage"]["steps"] == [{"method": "quantize_gguf", "options": "type q4_0"}]
    (quality,) = child["evaluations"]
    assert (quality["text"], quality["range"], quality["n"]) == ("62\u202f%", "56 to 68\u202f%", 300)
    assert child["bytes"] == models["tiny"]["bytes"]
    assert models["tiny"]["chats"]


def test_meters_of_a_loaded_model_only_grow(ui_server: Served) -> None:
    with ui_server.client() as client:
        assert client.get("/ui/api/meters", params={"model": "nobody"}).status_code == 404
        client.post("/api/generate", json={"model": "tiny3", "keep_alive": 0, "stream": False}).raise_for_status()
        idle = client.get("/ui/api/meters", params={"model": "tiny3"}).json()
        assert (idle["energy_j"], idle["energy_why"]) == (None, "the model is not loaded")
        client.post("/api/generate", json={"model": "tiny3", "stream": False}).raise_for_status()
        before = client.get("/ui/api/meters", params={"model": "tiny3"}).json()
        ask = {"model": "tiny3", "prompt": "a", "stream": False, "options": {"num_predict": 64}}
        client.post("/api/generate", json=ask).raise_for_status()
        after = client.get("/ui/api/meters", params={"model": "tiny3"}).json()
    assert after["energy_j"] > before["energy_j"] > 0
    assert (after["energy_source"], after["memory_bytes"] > 1e6) == ("estimated", True)


GOOD = {"models": ["tiny", "tiny2"], "verdict": "best", "winner": "tiny2", "prompt": "x"}


@pytest.mark.parametrize(("change", "said"), [
    ({"winner": "tiny3"}, "winner"), ({"winner": None}, "winner"), ({"verdict": "better"}, "verdict"),
    ({"models": ["tiny2"]}, "2 to 4"), ({"models": ["tiny2", "tiny2"]}, "twice"), ({"models": "tiny2"}, "2 to 4"),
    ({"models": ["tiny"] * 5}, "models"), ({"prompt": 1}, "prompt"), ({"extra": 1}, "extra"),
])  # fmt: skip
def test_a_vote_that_cannot_be_is_refused(ui_server: Served, change: dict[str, Any], said: str) -> None:
    with ui_server.client() as client:
        got = client.post("/ui/api/votes", json=GOOD | change)
    assert got.status_code == 400
    assert said in got.json()["error"]


def test_a_vote_for_an_unknown_model_is_refused(ui_server: Served) -> None:
    with ui_server.client() as client:
        got = client.post("/ui/api/votes", json=GOOD | {"models": ["tiny", "nobody"], "winner": "tiny"})
    assert got.status_code == 404


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "file://"])
def test_no_other_site_can_vote(ui_server: Served, origin: str) -> None:
    with Ledger(ui_server.home / "ledger.db") as ledger:
        before = ledger.read("SELECT count(*) FROM vote")
        with ui_server.client() as client:
            got = client.post("/ui/api/votes", json=GOOD, headers={"Origin": origin})
        assert got.status_code == 403
        assert ledger.read("SELECT count(*) FROM vote") == before


def test_a_report_is_sent_into_a_sandbox(ui_server: Served) -> None:
    with ui_server.client() as client:
        listed = client.get("/ui/api/reports").json()["reports"]
        got = client.get(f"/ui/reports/{listed[0]['id']}")
    policy = directives(got.headers["content-security-policy"])
    assert "allow-same-origin" not in policy["sandbox"]
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", policy["script-src"])
    assert "unsafe" not in got.headers["content-security-policy"]
    assert {each["kind"] for each in listed} == {"fit", "comparison"}
    assert json.dumps(listed).count(str(ui_server.home)) == 0
