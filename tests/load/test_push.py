"""Pushing to a real registry, and to ones that break off, send us elsewhere or want a login."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_servers import Handler, RegistryServer, Server, running
from oci_registry import Registry, oci_registry
from tiny_models import write_checkpoint, write_gguf

from sizewise.core.errors import StorageError, UnknownName, Unreachable, Unsafe, UsageError
from sizewise.core.events import Progress
from sizewise.core.recipe import Lineage
from sizewise.core.references import parse_name
from sizewise.load import push as push_module
from sizewise.load.models import find_model, save_model
from sizewise.load.pull import pull
from sizewise.load.push import push
from sizewise.load.store.store import Store

NONE = Lineage(recipe=None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with oci_registry(tmp_path / "registry") as found:
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "_WAIT_S", 0.01)


def content(store: Store, name: str) -> dict[str, bytes]:
    return {layer.digest: store.blob(layer.digest).read_bytes() for layer in store.get(parse_name(name)).blobs}


@pytest.mark.parametrize("kind", ["gguf", "checkpoint"])
def test_what_is_pushed_comes_back_byte_for_byte(store: Store, registry: Registry, tmp_path: Path, kind: str) -> None:
    name = f"{registry.host}/team/tiny:v1"
    if kind == "gguf":
        gguf = {"m": write_gguf(tmp_path / "m.gguf", rows=4096)}
        save_model(name, "gguf", gguf, system="Be brief.", defaults={"top_k": 1}, lineage=NONE, store=store)
    else:
        folder = write_checkpoint(tmp_path / "c")
        files = {path.name: path for path in folder.iterdir()}
        save_model(name, "checkpoint", files, lineage=NONE, store=store)
    before, manifest, model = content(store, name), store.get(parse_name(name)), find_model(name, store)
    heard: list[Progress] = []
    reached = push(name, store=store, listen=heard.append)
    assert str(reached) == f"ollama://{registry.host}/team/tiny:v1"
    assert [heard[0].what, heard[-1].what] == ["retrieving manifest", "pushing manifest"]
    assert registry.blobs() >= set(before)
    store.remove(parse_name(name))
    store.collect_garbage(grace_s=0)
    assert not any(store.blob(digest).exists() for digest in before)
    found = pull(name, store=store)
    assert content(store, name) == before
    assert store.get(parse_name(name)).digest == manifest.digest
    assert (found.digest, found.system, found.defaults) == (model.digest, model.system, model.defaults)
    assert store.verify() == []


def test_a_second_push_sends_no_blob(store: Store, registry: Registry, tmp_path: Path) -> None:
    save_model("tiny", "gguf", {"m": write_gguf(tmp_path / "m.gguf")}, lineage=NONE, store=store)
    push("tiny", to=f"ollama://{registry.host}/a/tiny:1", store=store)
    sizes = {path: path.stat().st_mtime_ns for path in registry.root.rglob("data")}
    push("tiny", to=f"ollama://{registry.host}/a/tiny:2", store=store)
    assert {path: path.stat().st_mtime_ns for path in registry.root.rglob("data")} == sizes
    for tag in "12":
        assert pull(f"ollama://{registry.host}/a/tiny:{tag}", store=store).digest == find_model("tiny", store).digest


@pytest.mark.usefixtures("quick")
def test_a_registry_killed_half_way_loses_nothing(
    store: Store, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "_PART", 1 << 18)
    monkeypatch.setattr(push_module, "_TRIES", 2)
    name = f"{registry.host}/team/tiny"
    save_model(name, "gguf", {"m": write_gguf(tmp_path / "m.gguf", rows=40_000)}, lineage=NONE, store=store)
    before = content(store, name)

    def kill_half_way(event: Progress) -> None:
        if event.unit == "bytes" and event.total and event.total > 10**6 and event.done > event.total / 2:
            registry.kill()

    with pytest.raises(Unreachable, match="the same command goes on"):
        push(name, store=store, listen=kill_half_way)
    assert content(store, name) == before
    assert store.verify() == []
    registry.start()
    with pytest.raises(UnknownName):
        pull(name, name="other", store=store)
    push(name, store=store)
    store.remove(parse_name(name))
    store.collect_garbage(grace_s=0)
    pull(name, store=store)
    assert content(store, name) == before


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("moment", ["between parts", "within a part"])
def test_a_push_goes_on_when_the_registry_comes_back(
    store: Store, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What has arrived is not sent again. Only a part that was under way may cost the registry its whole upload."""
    monkeypatch.setattr(push_module, "_PART", 1 << 18)
    monkeypatch.setattr(push_module, "_WAIT_S", 0.5)
    name = f"{registry.host}/team/tiny"
    save_model(name, "gguf", {"m": write_gguf(tmp_path / "m.gguf", rows=40_000)}, lineage=NONE, store=store)
    killed: list[float] = []
    sent: list[float] = []

    def restart() -> None:
        killed.append(sent[-1])
        registry.kill()
        threading.Timer(0.2, registry.start).start()

    def heard(event: Progress) -> None:
        if event.unit == "bytes" and event.total and event.total > 10**6:
            sent.append(event.done)
            if moment == "within a part" and not killed and event.done > event.total / 2:
                restart()

    part = push_module._Upload._part

    def then_restart(upload: Any, start: int) -> int:
        end = part(upload, start)
        if moment == "between parts" and not killed and end > upload.layer.size / 2:
            restart()
        return end

    monkeypatch.setattr(push_module._Upload, "_part", then_restart)
    push(name, store=store, listen=heard)
    assert killed
    if moment == "between parts":
        assert min(sent[sent.index(killed[0]) + 1 :]) > killed[0]
    before = content(store, name)
    store.remove(parse_name(name))
    store.collect_garbage(grace_s=0)
    pull(name, store=store)
    assert content(store, name) == before


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_pushed_is_told_in_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        push("127.0.0.1:9/a/b", store=store)
    save_model("127.0.0.1:9/a/b", "gguf", {"m": write_gguf(tmp_path / "m.gguf")}, lineage=NONE, store=store)
    with pytest.raises(UsageError, match="plain HTTP is used only with --insecure"):
        push("http://127.0.0.1:9/a/b", store=store)
    with pytest.raises(UsageError, match="ollama://"):
        push("127.0.0.1:9/a/b", to="hf://a/b", store=store)
    for layer in store.get(parse_name("127.0.0.1:9/a/b")).layers:
        store.blob(layer.digest).unlink()
    with pytest.raises(StorageError, match="missing"):
        push("127.0.0.1:9/a/b", store=store)


class Faulty(RegistryServer):
    """A registry that takes uploads, after asking for a token or sending them elsewhere."""

    def answer(self, handler: Handler) -> None:
        if handler.command in ("POST", "PATCH", "PUT"):
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if "login" in self.faults:
            handler.reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        elif "500" in self.faults:
            handler.reply(500)
        elif handler.command == "POST" and handler.headers.get("Authorization"):
            handler.reply(202, headers={"Location": f"{self.elsewhere}/upload?x=1"})
        else:
            super().answer(handler)


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("POST", "PATCH", "PUT"):
        monkeypatch.setattr(Handler, f"do_{verb}", Handler.do_GET, raising=False)


@pytest.mark.usefixtures("quick", "verbs")
@pytest.mark.parametrize(
    ("fault", "kind", "part"),
    [
        ("login", UsageError, "wants a login"),
        ("500", Unreachable, "status 500"),
        ("foreign_auth", Unsafe, "another host"),
    ],
)
def test_registries_that_do_not_take_it(
    store: Store, tmp_path: Path, fault: str, kind: type[Exception], part: str
) -> None:
    save_model("tiny", "gguf", {"m": write_gguf(tmp_path / "m.gguf")}, lineage=NONE, store=store)
    with running(Server()) as canary, running(Faulty({fault}, elsewhere=canary.url)) as server:
        with pytest.raises(kind, match=part):
            push("tiny", to=f"ollama://{server.host}/a/tiny", store=store)
        assert canary.asked == []


@pytest.mark.usefixtures("quick", "verbs")
def test_the_token_does_not_go_where_uploads_are_sent(store: Store, tmp_path: Path) -> None:
    save_model("tiny", "gguf", {"m": write_gguf(tmp_path / "m.gguf")}, lineage=NONE, store=store)
    with running(RegistryServer({"status_500"})) as other, running(Faulty({"auth"}, elsewhere=other.url)) as server:
        with pytest.raises(Unreachable):
            push("tiny", to=f"ollama://{server.host}/a/tiny", store=store)
        assert any("Authorization" in headers for _, _, headers in server.asked)
        assert other.asked
        assert not any("Authorization" in headers for _, _, headers in other.asked)
