"""Which engine runs which kind of model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import UnknownName, Unsupported
from sizewise.core.model import Model
from sizewise.core.requests import ScoreRequest
from sizewise.load.open import ENGINES, open_runner
from sizewise.load.runner import Options


def test_a_path_is_enough(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    with open_runner(str(path), options=Options(threads=1)) as runner:
        assert runner.engine.startswith("llamacpp")
        assert runner.score([ScoreRequest("a", (" b",))])[0][0].logprob < 0


def test_a_typo_in_the_engine_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'llamacpp'"):
        open_runner("x.gguf", engine="lamacpp")


@pytest.mark.parametrize(("kind", "engine"), [("gguf", "linear"), ("checkpoint", "llamacpp"), ("endpoint", "torch")])
def test_an_engine_that_does_not_run_the_kind_says_which_does(kind: str, engine: str) -> None:
    model = replace(Model("m", "gguf", "d", {}, 0), kind=kind)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=f"use {ENGINES[kind][0]}"):
        open_runner(model, engine=engine)


def test_only_the_engine_that_is_needed_is_imported(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    code = (
        "import sys; from sizewise.load.open import open_runner\n"
        f"open_runner({str(path)!r}).close()\n"
        "heavy = {'torch', 'transformers', 'xllamacpp', 'httpx', 'sklearn', 'sizewise.load.runners.http'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
