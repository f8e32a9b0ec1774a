"""The doctor finds what is wrong in the store and the ledger, says what to do, and repairs what can be repaired."""

import os
import sqlite3
import time
from pathlib import Path

import pytest
from tiny_models import write_gguf

from sizewise.core.errors import DigestMismatch, SizewiseError
from sizewise.core.recipe import Lineage
from sizewise.load.models import find_model, list_models
from sizewise.load.models import save_model as save
from sizewise.load.pull import pull
from sizewise.load.store import atomic
from sizewise.load.store.doctor import check, environment
from sizewise.load.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf")


def flip(path: Path, place: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_sound_store_is_clean(store: Store, path: Path) -> None:
    pull(str(path), name="a", store=store)
    pull(str(path), name="b", store=store, link=True)
    assert check(store) == []
    assert check(Store(path.parent / "nothing-here")) == []


def test_a_flipped_byte_is_found_and_pulling_again_brings_it_back(store: Store, path: Path) -> None:
    model = pull(str(path), name="a", store=store)
    flip(model.files["model.gguf"])
    assert check(store, deep=False) == []
    (problem,) = check(store)
    assert (problem.kind, problem.where) == ("digest", "a:latest")
    assert "doctor --repair" in problem.remedy
    assert [left.kind for left in check(store, repair=True)] == ["missing"]
    assert pull(str(path), name="a", store=store) == model
    assert check(store) == []


def test_one_bad_blob_is_named_for_each_model_that_uses_it(store: Store, path: Path) -> None:
    model = pull(str(path), name="a", store=store)
    pull(str(path), name="b", store=store)
    model.files["model.gguf"].unlink()
    assert [problem.where for problem in check(store)] == ["a:latest", "b:latest"]


def test_an_orphan_and_a_broken_off_write_go_with_a_repair(store: Store, path: Path) -> None:
    model = pull(str(path), name="a", store=store)
    orphan, _ = store.add_bytes(b"orphan")
    torn = store.layout.manifests / f"{atomic.TEMPORARY}1-1"
    torn.write_bytes(b"{")
    download = store.layout.incoming / "wheel-1"
    download.mkdir(parents=True)
    (download / "part").write_bytes(b"half")
    for place in (store.blob(orphan), torn, download / "part", download):
        os.utime(place, (time.time() - 7200,) * 2)
    assert environment(store)["unfinished_downloads_bytes"] == 4
    problems = check(store)
    assert sorted(problem.kind for problem in problems) == ["orphan", "temporary"]
    assert all("--repair" in problem.remedy for problem in problems)
    assert check(store, repair=True) == []
    assert not download.exists()
    assert find_model("a", store) == model


def test_a_torn_manifest_is_named_and_nothing_is_collected(store: Store, path: Path) -> None:
    pull(str(path), name="a", store=store)
    orphan, _ = store.add_bytes(b"orphan")
    manifest = store.root / "manifests/registry.ollama.ai/library/a/latest"
    manifest.write_bytes(manifest.read_bytes()[:-5])
    (problem,) = check(store, repair=True, grace_s=0)
    assert (problem.kind, problem.where, problem.remedy) == (
        "manifest",
        "a:latest",
        "`sizewise rm a:latest` removes the name",
    )
    assert store.blob(orphan).exists()
    assert list_models(store) == []


def test_a_linked_file_that_changed_is_named(store: Store, path: Path) -> None:
    pull(str(path), name="a", store=store, link=True)
    flip(path, -10)
    (problem,) = check(store, deep=False)
    assert problem.kind == "link"
    with pytest.raises(DigestMismatch):
        find_model("a", store)
    pull(str(path), name="a", store=store, link=True)
    check(store, repair=True, grace_s=0)
    assert check(store, grace_s=0) == []


def test_the_ledger_is_checked_if_there_is_one(store: Store, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    assert check(store, ledger=ledger) == []
    connection = sqlite3.connect(ledger)
    connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, answer TEXT)")
    connection.executemany("INSERT INTO items (answer) VALUES (?)", [("x" * 500,)] * 200)
    connection.commit()
    connection.close()
    assert check(store, ledger=ledger) == []
    data = bytearray(ledger.read_bytes())
    data[8192:12288] = bytes(4096)
    ledger.write_bytes(data)
    (problem,) = check(store, ledger=ledger)
    assert problem.kind == "ledger"
    assert str(ledger) in problem.what
    ledger.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    assert [problem.kind for problem in check(store, ledger=ledger)] == ["ledger"]


def test_a_problem_is_one_line_and_json(store: Store, path: Path) -> None:
    model = pull(str(path), name="a", store=store)
    model.files["model.gguf"].unlink()
    (problem,) = check(store)
    assert "\n" not in str(problem)
    assert set(problem.as_json()) == {"kind", "where", "message", "remedy"}


def test_the_environment_names_versions_and_room(store: Store) -> None:
    facts = environment(store)
    assert facts["xllamacpp"][0].isdigit()
    assert facts["ray"]
    assert facts["store_free_bytes"] > 0
    assert facts["memory_bytes"] >= facts["memory_free_bytes"] > 0
    assert facts["models"] == 0


def test_a_repair_waits_for_nobody_at_work(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save("a", "gguf", {"m": path}, lineage=Lineage(None), store=store)
    real = atomic._lock
    monkeypatch.setattr(atomic, "_lock", lambda descriptor, place, kind, wait_s: real(descriptor, place, kind, 0.1))
    with store.writing(), pytest.raises(SizewiseError, match="another process is at work") as caught:
        check(store, repair=True, grace_s=0)
    assert caught.value.exit_code == 3
    assert find_model("a", store) == model
