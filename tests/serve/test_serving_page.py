"""The programs in docs/serving.md run, unchanged but for the address."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from served import StartServer

PAGE = Path(__file__).parent.parent.parent / "docs" / "serving.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.model
@pytest.mark.parametrize("program", PROGRAMS, ids=[re.findall(r"import (\w+)", one)[0] for one in PROGRAMS])
def test_a_program_of_the_page_runs(program: str, start_server: StartServer, smollm2_home: Path) -> None:
    server = start_server(smollm2_home, "--context", "512")  # no program bounds its answer, and SmolLM2 may never end
    here = program.replace("127.0.0.1:11434", server.host)
    environment = {"OLLAMA_HOST": server.url, "PATH": "/bin:/usr/bin", "HOME": str(server.home)}
    done = subprocess.run(
        [sys.executable, "-c", here], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
