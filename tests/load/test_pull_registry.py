"""Pulling over the registry protocol, from a registry that does what it should and from ones that do not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_servers import RegistryServer, Server, running, sha256
from tiny_models import write_gguf

from sizewise.core.errors import (
    BadModel,
    DigestMismatch,
    DiskFull,
    UnknownName,
    Unreachable,
    Unsafe,
    UsageError,
)
from sizewise.core.events import Progress
from sizewise.core.references import parse_name
from sizewise.load.models import find_model
from sizewise.load.pull import pull
from sizewise.load.sources import registry as registry_module
from sizewise.load.sources import web as web_module
from sizewise.load.sources.web import Web, is_loopback
from sizewise.load.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return write_gguf(tmp_path / "m.gguf", rows=512).read_bytes()


@pytest.fixture
def server(weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryServer]:
    monkeypatch.setattr(registry_module, "_WAIT_S", 0.01)
    with running(RegistryServer()) as found:
        assert isinstance(found, RegistryServer)
        found.add("tiny", {"model": weights, "system": b"Be brief.", "params": b'{"top_k": 1}'})
        yield found


@pytest.fixture
def canary() -> Iterator[Server]:
    """A host that must never hear from us."""
    with running(Server()) as found:
        yield found


def partials(store: Store) -> list[Path]:
    return sorted(store.layout.blobs.glob("*.partial"))


def nothing_is_visible(store: Store) -> bool:
    blobs = list(store.layout.blobs.glob("*")) if store.layout.blobs.exists() else []
    return store.list() == [] and not [path for path in blobs if not path.name.endswith(".partial")]


def test_a_model_arrives_whole_and_as_it_was(store: Store, server: RegistryServer, weights: bytes) -> None:
    heard: list[Progress] = []
    model = pull(f"ollama://{server.host}/tiny", store=store, listen=heard.append)
    assert model.name == f"{server.host}/library/tiny"
    assert (model.kind, model.system, model.defaults) == ("gguf", "Be brief.", {"top_k": 1})
    assert model.files["model.gguf"].read_bytes() == weights
    assert model.lineage.source == f"ollama://{server.host}/tiny:latest"
    manifest = store.get(parse_name(model.name))
    assert manifest.digest == sha256(server.manifests["library/tiny/latest"])
    assert heard[-1].done == heard[-1].total
    assert store.verify() == []
    assert partials(store) == []


def test_pulling_again_fetches_only_the_manifest(store: Store, server: RegistryServer) -> None:
    first = pull(f"ollama://{server.host}/tiny", name="tiny", store=store)
    server.asked.clear()
    heard: list[Progress] = []
    assert pull(f"ollama://{server.host}/tiny", name="tiny", store=store, listen=heard.append) == first
    assert [path for _, path, _ in server.asked] == ["/v2/library/tiny/manifests/latest"]
    assert heard[0].what == "tiny:latest is already here"
    find_model("tiny", store).files["model.gguf"].unlink()
    assert pull(f"ollama://{server.host}/tiny", name="tiny", store=store) == first
    assert store.verify() == []


def test_a_broken_download_goes_on_where_it_stopped(
    store: Store, server: RegistryServer, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults, server.stop_after = {"cut_always"}, 20_000
    monkeypatch.setattr(registry_module, "_TRIES", 1)
    with pytest.raises(Unreachable, match="the same command goes on from there"):
        pull(f"ollama://{server.host}/tiny", store=store)
    assert nothing_is_visible(store)
    assert [path.stat().st_size for path in partials(store)] == [20_000]
    assert store.verify() == []
    server.faults, server.sent = set(), 0
    model = pull(f"ollama://{server.host}/tiny", store=store)
    assert model.files["model.gguf"].read_bytes() == weights
    assert server.sent < len(weights)
    assert store.verify() == []


@pytest.mark.parametrize("faults", [{"cut"}, {"cut", "no_range"}])
def test_a_cut_connection_is_taken_up_again(
    store: Store, server: RegistryServer, weights: bytes, faults: set[str]
) -> None:
    server.faults = faults
    model = pull(f"ollama://{server.host}/tiny", store=store)
    assert server.cuts == 1
    assert store.verify() == []
    assert sha256(model.files["model.gguf"].read_bytes()) == sha256(weights)


@pytest.mark.parametrize("leftover", [b"rubbish", b"x" * 10**6])
def test_a_bad_leftover_does_not_spoil_the_download(
    store: Store, server: RegistryServer, weights: bytes, leftover: bytes
) -> None:
    store.layout.blobs.mkdir(parents=True)
    store.layout.partial(sha256(weights)).write_bytes(leftover)
    pull(f"ollama://{server.host}/tiny", store=store)
    assert store.verify() == []


@pytest.mark.parametrize("fault", ["wrong_bytes", "long"])
def test_bytes_that_were_not_promised_are_not_kept(store: Store, server: RegistryServer, fault: str) -> None:
    server.faults = {fault}
    with pytest.raises(DigestMismatch):
        pull(f"ollama://{server.host}/tiny", store=store)
    assert nothing_is_visible(store)
    server.faults = set()
    pull(f"ollama://{server.host}/tiny", store=store)
    assert store.verify() == []


def test_a_blob_that_stays_too_short_is_given_up(store: Store, server: RegistryServer) -> None:
    server.faults = {"short"}
    with pytest.raises(Unreachable):
        pull(f"ollama://{server.host}/tiny", store=store)
    assert nothing_is_visible(store)


def test_a_stalled_connection_is_given_up_and_tried_again(
    store: Store, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_module, "STALL_S", 0.3)
    server.faults = {"cut", "stall"}
    pull(f"ollama://{server.host}/tiny", store=store)
    assert server.cuts == 1
    assert store.verify() == []


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "../x", "md5:" + "0" * 32, "sha256:" + "0" * 63])
@pytest.mark.parametrize("place", ["config", "layers"])
def test_a_digest_that_is_a_path_is_refused(store: Store, server: RegistryServer, digest: str, place: str) -> None:
    body = server.add("evil", {"model": b"x"})
    (body["config"] if place == "config" else body["layers"][0])["digest"] = digest
    server.manifests["library/evil/latest"] = json.dumps(body).encode()
    with pytest.raises(Unsafe):
        pull(f"ollama://{server.host}/evil", store=store)
    assert nothing_is_visible(store)
    assert not [path for _, path, _ in server.asked if "/blobs/" in path]


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [{"mediaType": "m", "digest": "sha256:" + "a" * 64, "size": size} for size in (1, 2)]},
        {"layers": [{"mediaType": "m", "digest": "sha256:" + "a" * 64, "size": -1}]},
        {"layers": [{"mediaType": "m", "digest": "sha256:" + "a" * 64, "size": "1"}]},
        {"layers": "none"},
        {"config": None},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    store: Store, server: RegistryServer, change: dict[str, object]
) -> None:
    body = server.add("odd", {"model": b"x"}) | change
    server.manifests["library/odd/latest"] = json.dumps(body).encode()
    with pytest.raises(BadModel):
        pull(f"ollama://{server.host}/odd", store=store)
    assert nothing_is_visible(store)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"<html>", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(store: Store, server: RegistryServer, data: bytes) -> None:
    server.manifests["library/odd/latest"] = data
    with pytest.raises(BadModel):
        pull(f"ollama://{server.host}/odd", store=store)


def test_a_huge_manifest_is_not_read_to_its_end(store: Store, server: RegistryServer) -> None:
    server.faults = {"huge_manifest"}
    with pytest.raises(Unreachable, match="where a manifest should be"):
        pull(f"ollama://{server.host}/tiny", store=store)


def test_a_file_name_in_a_manifest_that_is_a_path_is_refused(store: Store, server: RegistryServer) -> None:
    body = server.add("evil", {"model": b"x"})
    body["layers"][0]["annotations"] = {"org.opencontainers.image.title": "../../evil"}
    server.manifests["library/evil/latest"] = json.dumps(body).encode()
    with pytest.raises(Unsafe):
        pull(f"ollama://{server.host}/evil", store=store)


def test_weights_that_are_no_gguf_get_no_name(store: Store, server: RegistryServer) -> None:
    server.add("page", {"model": b"<html>no model</html>"})
    with pytest.raises(BadModel):
        pull(f"ollama://{server.host}/page", store=store)
    assert store.list() == []
    assert not store.blob(sha256(b"<html>no model</html>")).exists()


def test_an_anonymous_token_is_fetched_and_stays_with_its_host(
    store: Store, server: RegistryServer, weights: bytes
) -> None:
    with running(RegistryServer(blobs=dict(server.blobs))) as other:
        server.faults, server.elsewhere = {"auth", "redirect"}, other.url
        model = pull(f"ollama://{server.host}/tiny", store=store)
        assert model.files["model.gguf"].read_bytes() == weights
        assert other.asked
        assert not [headers for _, _, headers in other.asked if "Authorization" in headers]
        assert [headers for _, _, headers in server.asked if headers.get("Authorization") == "Bearer secret-token"]


def test_no_token_is_asked_of_another_host(store: Store, server: RegistryServer, canary: Server) -> None:
    server.faults, server.elsewhere = {"foreign_auth"}, canary.url
    with pytest.raises(Unsafe, match="another host"):
        pull(f"ollama://{server.host}/tiny", store=store)
    assert canary.asked == []


@pytest.mark.parametrize(
    ("base", "location"),
    [
        ("https://registry.example", "http://cdn.example/x"),
        ("https://registry.example", "http://127.0.0.1/x"),
        ("https://registry.example", "https://localhost/x"),
        ("https://registry.example", "file:///etc/passwd"),
        ("http://127.0.0.1:5000", "http://cdn.example/x"),
        ("http://127.0.0.1:5000", "gopher://cdn.example/x"),
    ],
)
def test_redirects_lead_only_where_they_may(base: str, location: str) -> None:
    with pytest.raises(Unsafe):
        Web(base).redirect(f"{base}/v2/x", location)
    assert Web(base).redirect(f"{base}/v2/x", "https://cdn.example/x") == "https://cdn.example/x"


@pytest.mark.parametrize(
    "host", ["127.0.0.1.evil.com", "localhost.evil.com", "evil.com", "", None, "0.0.0.0", "10.0.0.1"]
)
def test_only_this_machine_is_loopback(host: str | None) -> None:
    assert not is_loopback(host)
    assert is_loopback("127.0.0.1")


def test_redirects_without_end_end(store: Store, server: RegistryServer) -> None:
    server.faults, server.elsewhere = {"redirect"}, server.url
    with pytest.raises(Unreachable, match="without end"):
        pull(f"ollama://{server.host}/tiny", store=store)


def test_what_the_registry_lacks_or_refuses_is_said(store: Store, server: RegistryServer) -> None:
    with pytest.raises(UnknownName, match="library/absent:latest"):
        pull(f"ollama://{server.host}/absent", store=store)
    server.faults = {"status_500"}
    with pytest.raises(Unreachable, match="500"):
        pull(f"ollama://{server.host}/tiny", store=store)
    server.faults, server.blobs = set(), {}
    with pytest.raises(Unreachable, match="404"):
        pull(f"ollama://{server.host}/tiny", store=store)
    assert partials(store) == []


def test_a_registry_that_wants_a_login_is_not_given_one(
    store: Store, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = {"auth"}
    monkeypatch.setattr(Web, "authenticate", lambda self, challenge: False)
    with pytest.raises(UsageError, match="login"):
        pull(f"ollama://{server.host}/tiny", store=store)


def test_a_closed_port_is_unreachable_in_one_line(store: Store) -> None:
    with pytest.raises(Unreachable, match="does not answer") as caught:
        pull("ollama://127.0.0.1:9/tiny", store=store)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_too_little_room_is_said_before_anything_is_fetched(store: Store, server: RegistryServer) -> None:
    body = server.add("big", {"model": b"x"})
    body["layers"][0]["size"] = 10**15
    server.manifests["library/big/latest"] = json.dumps(body).encode()
    with pytest.raises(DiskFull, match=r"needs 1000000 GB, has .* free"):
        pull(f"ollama://{server.host}/big", store=store)
    assert not [path for _, path, _ in server.asked if "/blobs/" in path]


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"token": null}'])
def test_a_broken_token_answer_is_no_login(store: Store, server: RegistryServer, answer: bytes) -> None:
    server.faults, server.token = {"auth"}, answer
    with pytest.raises(UsageError, match="login"):
        pull(f"ollama://{server.host}/tiny", store=store)
