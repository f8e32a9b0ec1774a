"""Documentation is executed: the README's Python runs, its commands exist, the help pages are up to date."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sizewise

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_public_names_are_all_there() -> None:
    for name in sizewise.__all__:
        assert getattr(sizewise, name) is not None
    assert set(sizewise.__all__) - {"__version__"} == set(sizewise._HOMES)


def test_help_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def _commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            found += [line.removeprefix("$ ") for line in block.splitlines() if "sizewise " in line]
    return sorted(set(found))


@pytest.mark.parametrize("line", _commands())
def test_every_command_in_the_documentation_has_the_flags_that_it_uses(line: str) -> None:
    words = shlex.split(line.split("#")[0].split("|")[-1])
    words = words[words.index("sizewise") + 1 :]
    if not words or words[0].startswith("-"):
        return
    command = words[:2] if words[0] == "make" and len(words) > 1 and not words[1].startswith("-") else words[:1]
    asked = [sys.executable, "-m", "sizewise", *command, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, env={"COLUMNS": "200", "PATH": "/bin"})
    assert done.returncode == 0, done.stderr
    for flag in (word.split("=")[0] for word in words if word.startswith("--")):
        assert flag in done.stdout, f"{flag} is no option of {' '.join(command)}"


@pytest.mark.model
@pytest.mark.slow
def test_the_python_in_the_readme_runs(smollm2: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    from sizewise.load.pull import pull

    pull(str(smollm2), name="smollm2")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
