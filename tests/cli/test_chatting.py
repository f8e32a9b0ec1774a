"""`run` as people use it: at a terminal (a pseudo-terminal here), with pipes, and with a model to pull."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_checkpoint import write_encoder
from tiny_gguf import write_tiny_llama

from sizewise.cli.chatting import Chat
from sizewise.cli.main import run
from sizewise.cli.running import spelled_out
from sizewise.cli.talk import Printer
from sizewise.core.recipe import Lineage
from sizewise.load.models import find_model, save_model

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|\r")


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C there is a signal here


class Terminal:
    """`sizewise run MODEL` with a person at a terminal."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.seen = ""
        environment = os.environ | {"SIZEWISE_HOME": str(home), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sizewise", "run", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            preexec_fn=_own_terminal,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, seconds: float = 90.0) -> str:
        """Wait until the screen shows a text; what came before it and the text itself are taken away."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come; seen: {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], min(left, 0.2))[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:
                    data = b""
                if b"\x1b[6n" in data:  # "where is the cursor?"
                    os.write(self.master, b"\x1b[1;1R")
                assert data or text in self.seen, f"it ended; seen: {self.seen[-2000:]!r}"
                self.seen += _CODES.sub("", data.decode(errors="replace"))
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def say(self, line: str, answer: str) -> str:
        """Type a line at the prompt and wait for what it shows, and for the next prompt."""
        self.type(line + "\r")
        shown = self.expect(answer)
        self.expect(">>>")
        return shown

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def home(own_home: Path, tmp_path: Path) -> Path:
    """The home of this test, whose store holds `tiny` and `other`."""
    for seed, name in enumerate(("tiny", "other")):
        save_model(
            name,
            "gguf",
            {"m": write_tiny_llama(tmp_path / f"{name}.gguf", seed=seed)},
            template=CHAT,
            license="MIT",
            defaults={"num_predict": 12},
            lineage=Lineage(recipe=None),
        )
    return own_home / ".sizewise"


@pytest.fixture
def terminal(home: Path) -> Iterator[Terminal]:
    found = Terminal(home, "tiny")
    found.expect("Send a message (/? for help)")
    found.expect(">>>")
    yield found
    found.close()


@pytest.mark.slow
def test_a_person_talks_sets_shows_saves_and_leaves(terminal: Terminal, home: Path) -> None:
    terminal.say("/set verbose", "Set verbose.")
    terminal.say("hello", "\neval rate:")
    assert "/load <model>" in terminal.say("/?", "/bye")
    assert "think [level]" in terminal.say("/? set", "nothink")
    terminal.say("/set parameter temperature 0.5", "Set parameter 'temperature' to '0.5'.")
    terminal.say("/set parameter temprature 1", "did you mean 'temperature'?")
    terminal.say("/set parameter temperature hot", "error: temperature must be a number, not 'hot'")
    terminal.say("/set parameter stop User:", "Set parameter 'stop'")
    terminal.say("/set system Be brief.", "Set system message.")
    terminal.say("/sett", "did you mean '/set'?")
    assert "temperature        0.5" in terminal.say("/show parameters", "User:")
    terminal.say("/show system", "Be brief.")
    terminal.say("/show license", "MIT")
    terminal.say("/show template", "assistant:")
    terminal.say("/show modelfile", "FROM tiny")
    terminal.say("/show info", "architecture")
    assert "prompt eval count" in terminal.say("and now?", "\neval rate:")
    terminal.say("/list", "other")
    terminal.say("/save mine", "Created new model 'mine'.")
    terminal.say("/load mine", "Loaded mine.")
    terminal.say("/load nothing-like-it", "error: no model")
    terminal.say("/clear", "forgotten")
    terminal.type("/bye\r")
    assert terminal.process.wait(30) == 0
    saved = find_model("mine")
    assert (saved.system, saved.defaults["stop"], saved.defaults["temperature"]) == ("Be brief.", ["User:"], 0.5)
    assert [turn.content for turn in saved.messages if turn.role == "user"] == ["hello", "and now?"]
    assert "hello" in (home / "history").read_text()
    assert (home / "history").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_several_lines_and_the_end(terminal: Terminal) -> None:
    terminal.say("/set verbose", "Set verbose.")
    terminal.type('"""first\r')
    terminal.expect("...")
    terminal.type('second"""\r')
    terminal.expect("\neval rate:")
    terminal.expect(">>>")
    terminal.say("/show info", "architecture")
    terminal.type("half a line\x03")
    terminal.expect("Use Ctrl-D or /bye to exit.")
    terminal.expect(">>>")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.model
def test_ctrl_c_stops_the_answer_and_not_the_program(home: Path, smollm2: Path) -> None:
    terminal = Terminal(home, str(smollm2))
    try:
        terminal.expect(">>>")
        terminal.say("/set verbose", "Set verbose.")
        terminal.say("/set parameter num_ctx 4096", "Set parameter")
        terminal.type("Write a very long story about a king and his three daughters.\r")
        terminal.expect("daughters.")
        terminal.expect(" the ")
        terminal.type("\x03")
        terminal.expect("(stopped)")
        terminal.expect(">>>")
        terminal.say("/set parameter num_predict 5", "Set parameter")
        assert "5 token(s)" in terminal.say("And what is two and two?", "\neval rate:")
        terminal.type("/bye\r")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()


@pytest.mark.model
def test_an_answer_by_a_schema(home: Path, smollm2: Path) -> None:
    asked = ["run", str(smollm2), "Is the sky blue?", "--format"]
    assert command(home, *asked, '{"type": "boolean"}').stdout.strip() in ("true", "false")
    answer = json.loads(command(home, *asked, '{"type":"object","properties":{"blue":{"type":"boolean"}}}').stdout)
    assert isinstance(answer, dict)


def command(home: Path, *arguments: str, piped: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sizewise", *arguments],
        input=piped,
        stdin=subprocess.DEVNULL if piped is None else None,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SIZEWISE_HOME": str(home)},
        timeout=120,
    )


def test_piped_input_is_appended_to_the_prompt(home: Path) -> None:
    plain = command(home, "run", "tiny", "one", "two", "--json")
    asked = command(home, "run", "tiny", "one two", "--json", piped="three")
    joined = command(home, "run", "tiny", "--json", piped="one two\n\nthree")
    assert plain.returncode == asked.returncode == joined.returncode == 0, asked.stderr
    texts = [json.loads(done.stdout)["text"] for done in (plain, asked, joined)]
    counts = [json.loads(done.stdout)["prompt_tokens"] for done in (plain, asked, joined)]
    assert texts[1] == texts[2]
    assert counts[1] == counts[2] > counts[0]
    assert json.loads(plain.stdout)["completion_tokens"] <= 12  # as stored with the model


def test_flags_of_run(home: Path) -> None:
    done = command(home, "run", "tiny", "hi", "--verbose", "--keepalive", "5m")
    assert "eval count:" in done.stderr
    assert "--keepalive has no effect" in done.stderr
    assert "does not support thinking" in command(home, "run", "tiny", "hi", "--think").stderr
    for flags in (["--format", "xml"], ["--think=much"], ["--format", "[1]"]):
        done = command(home, "run", "tiny", "hi", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    done = command(home, "run", "tiny", piped="  \n")
    assert (done.returncode, "the prompt is empty" in done.stderr) == (2, True)


@pytest.mark.slow
def test_an_encoder_prints_its_vector(home: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    done = command(home, "run", str(folder), "a text")
    vector = json.loads(done.stdout)
    assert sum(value * value for value in vector) == pytest.approx(1.0, abs=1e-4)
    short = json.loads(command(home, "run", str(folder), "a text", "--dimensions", "4").stdout)
    assert len(short) == 4
    scale = sum(value * value for value in vector[:4]) ** 0.5
    assert short == pytest.approx([value / scale for value in vector[:4]], abs=1e-5)


def test_create_show_push_and_list(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Modelfile").write_text('FROM tiny\nPARAMETER stop "<end>"\nSYSTEM Be brief.\nPARAMETER mirostat 1\n')
    assert run(["create", "mine", "-f", str(tmp_path / "Modelfile"), "-q", "q8_0"]) == 0
    captured = capsys.readouterr()
    assert "using existing layer" in captured.out
    assert "quantizing F32 model to Q8_0" in captured.out
    assert "Modelfile:4: parameter mirostat has no effect" in captured.err
    for flag, part in {
        "--modelfile": 'SYSTEM "Be brief."',
        "--parameters": '"<end>"',
        "--system": "Be brief.",
        "--template": "assistant:",
        "--license": "MIT",
        "-v": "token_embd.weight",
    }.items():
        assert run(["show", "mine", flag]) == 0
        assert part in capsys.readouterr().out
    assert run(["show", "mine", "--system", "--license"]) == 2
    capsys.readouterr()
    assert run(["list", "MI"]) == 0
    listed = capsys.readouterr().out
    assert "mine" in listed
    assert "other" not in listed
    assert "just now" in listed
    assert run(["cp", "mine", "127.0.0.1:9/team/mine"]) == 0
    assert run(["push", "127.0.0.1:9/team/mine"]) == 3
    assert "does not answer" in capsys.readouterr().err
    assert run(["rm", "mine", "127.0.0.1:9/team/mine"]) == 0


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("FROM tiny\nFORM x", 2, "Modelfile:2: unknown instruction 'FORM'"),
        ("FROM nothing-like-it", 2, "no model"),
        ("FROM ./nowhere.gguf", 2, "there is no such file"),
        ("FROM new", 2, "no model"),
    ],
)
@pytest.mark.usefixtures("home")
def test_bad_modelfiles_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, part: str
) -> None:
    (tmp_path / "Modelfile").write_text(text)
    assert run(["create", "new", "-f", str(tmp_path / "Modelfile")]) == code
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("home")
def test_create_refuses_what_is_no_modelfile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (
        "/dev/zero",
        str(tmp_path / "pipe"),
        str(tmp_path),
        str(tmp_path / "nowhere"),
        str(tmp_path / "binary"),
    ):
        begin = time.monotonic()
        assert run(["create", "new", "-f", path]) == 2
        assert time.monotonic() - begin < 1.0
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("home")
def test_names_of_every_kind_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["../../etc/passwd", "a/b/c/d/e", "C:\\x", "x" * 81, "a\nb", "a\u202eb", "😀", "", "a:", "a..b"]
    for name in bad:
        for arguments in (["cp", "tiny", name], ["rm", name], ["create", name, "-f", os.devnull], ["push", name]):
            assert run(arguments) == 2, (arguments, capsys.readouterr())
            assert capsys.readouterr().err.count("\n") == 1


def test_lines_are_broken_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(10)
    for piece in ("one tw", "o thr", "ee four\n\nfive s", "ixsevene", "ightnine ten"):
        printer(piece)
    printer.end()
    assert capsys.readouterr().out == "one two \nthree four\n\nfive \nsixsevenei\nghtnine \nten\n"


def test_think_stands_alone() -> None:
    assert spelled_out(["run", "m", "--think", "why"]) == ["run", "m", "--think=true", "why"]
    assert spelled_out(["run", "m", "--", "--think"]) == ["run", "m", "--", "--think"]
    assert spelled_out(["make", "--think"]) == ["make", "--think"]
    assert Chat.__doc__
