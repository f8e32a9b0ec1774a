"""The door: exit codes, one-line errors, suggestions, nothing heavy."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sizewise.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["pul"], "Did you mean 'pull'?"),
        (["pull", "smollm2", "--nam", "x"], "--name"),
        (["pull", "smolm2"], "did you mean 'smollm2'"),
        (["pull", "ftp://x"], "unknown kind of reference"),
        (["show", "nothing-like-it"], "no model named"),
        (["run", "nothing-like-it", "hi"], "no model named"),
        (["eval", "nowhere.toml", "m"], "nowhere.toml"),
        (["eval", "examples/sentiment.toml", "nothing-like-it"], "no model named"),
        (["eval", "examples/sentiment.toml", "m", "--split", "tset"], "did you mean 'test'"),
        (["fit", "examples/sentiment.toml", "--at-least", "0.8", "--margin", "2"], "not both"),
        (["fit", "examples/sentiment.toml", "--budget", "5 parsecs"], "no duration"),
        (["fit", "examples/sentiment.toml", "--max-disk", "big"], "no size"),
        (["make", "quantise-gguf", "m", "--name", "n"], "quantize-gguf"),
        (["make", "quantize-gguf", "m", "--name", "n", "--type", "Q9_Z"], "Q9_Z"),
        (["report", "nowhere.json"], "no such file"),
        (["cp", "a/b/c/d", "x"], "no model name"),
        (["rm", "nothing-like-it"], "no model named"),
    ],
)
def test_a_typo_in_each_argument_is_told_in_one_line(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.err.startswith("sizewise: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_unwritable_store_is_exit_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SIZEWISE_MODELS", str(tmp_path / "file" / "models"))
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"GGUF")
    assert run(["pull", str(gguf), "--name", "x"]) in (2, 5)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_in_one_line(sent: signal.Signals, code: int) -> None:
    """`run` waits for its prompt on stdin; the signal comes while it waits."""
    command = [sys.executable, "-m", "sizewise", "run", "some-model"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True)
    time.sleep(1.5)
    process.send_signal(sent)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code, error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_an_empty_store_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    assert "sizewise pull smollm2" in capsys.readouterr().out
    assert run(["list", "--json"]) == 0
    assert capsys.readouterr().out.strip() == "[]"
