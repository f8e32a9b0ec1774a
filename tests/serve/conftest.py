"""Real servers for the tests: one for all (`server`), special ones (`start_server`), and the application in process."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gallery_home import fill_gallery
from loopback_servers import RegistryServer, running
from served import Served, StartServer, launch, save_smollm2, save_tiny
from starlette.testclient import TestClient
from tiny_gguf import write_tiny_llama
from ui_pages import check, opened

from sizewise.core.recipe import Lineage
from sizewise.load.models import save_model
from sizewise.load.store.store import Store
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.settings import Settings


@pytest.fixture(scope="session")
def smollm2_home(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose store holds SmolLM2 as `smollm2`."""
    home = tmp_path_factory.mktemp("served")
    save_smollm2(home, smollm2)
    return home


@pytest.fixture(scope="session")
def server(smollm2_home: Path) -> Iterator[Served]:
    """A server with SmolLM2 as `smollm2`; leave its store as it was."""
    served = launch(smollm2_home)
    yield served
    served.stop()


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose store holds three random Llamas: `tiny`, `tiny2`, `tiny3`."""
    home = tmp_path_factory.mktemp("tiny")
    for seed, name in enumerate(("tiny", "tiny2", "tiny3")):
        save_tiny(Store(home / "models"), home, name, seed)
    return home


@pytest.fixture(scope="session")
def tiny_server(tiny_home: Path) -> Iterator[Served]:
    """A server with the tiny models; leave its store as it was."""
    served = launch(tiny_home, "--context", "256")
    yield served
    served.stop()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """`launch`, with the servers ended after the test."""
    started: list[Served] = []

    def start(home: Path, *arguments: str, **variables: str) -> Served:
        started.append(launch(home, *arguments, **variables))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def app_client(tiny_home: Path) -> Iterator[TestClient]:
    """The application in this process, with the tiny models (a child process runs each); base URL http://localhost."""
    with open(os.devnull, "w") as nowhere:
        app = create_app(Settings(threads=2, context=256), Store(tiny_home / "models"), log=Log(nowhere))
        with TestClient(app, base_url="http://localhost") as client:
            yield client
            assert client.portal
            client.portal.call(app.state.manager.close, 0.0)


@pytest.fixture(scope="session")
def ui_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with something to show: tiny models, evaluations, a fit, a comparison, a model that writes attacks."""
    home = tmp_path_factory.mktemp("ui")
    fill_gallery(home)
    served = launch(home)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama."""
    return write_tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def store_served(tmp_path_factory: pytest.TempPathFactory, gguf_file: Path) -> Iterator[Served]:
    """A server whose store may be changed; it holds a random Llama as `base`."""
    home = tmp_path_factory.mktemp("store-served")
    save_model("base", "gguf", {"m": gguf_file}, lineage=Lineage(recipe=None), store=Store(home / "models"))
    found = launch(home, SIZEWISE_REGISTRIES="")
    yield found
    found.stop()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry with weights that nobody has yet, as `library/tiny`."""
    with running(RegistryServer()) as found:
        assert isinstance(found, RegistryServer)
        weights = write_tiny_llama(tmp_path / "tiny.gguf", seed=random.SystemRandom().randrange(2**32))
        found.add("tiny", {"model": weights.read_bytes(), "system": b"Be brief."})
        yield found


@pytest.fixture
def page(browser: Any, ui_server: Served) -> Iterator[Any]:
    """The page in a window of its own; no word on the console, no violation of the policy, no request to others."""
    one = opened(browser, ui_server)
    yield one
    check(one)
    one.context.close()
