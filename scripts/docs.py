"""Write docs/cli.md from the program's own help. `--check` only says whether it is up to date."""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
COMMANDS = (
    "pull",
    "push",
    "create",
    "list",
    "show",
    "cp",
    "rm",
    "run",
    "make",
    "compare",
    "eval",
    "bench",
    "account",
    "fit",
    "report",
    "catalog",
)
INTRO = """# The command line

Made by `make docs` from the program itself. Every command takes `--help`; those that print a table take `--json`.

Exit codes: 0 done, 1 an engine failed, 2 the command or its input is wrong, 3 locked, unreachable or from a newer
version, 4 not enough memory, 5 disk or permission, 6 refused as unsafe, 130 Ctrl-C, 143 SIGTERM.
"""


def help_of(arguments: list[str]) -> str:
    """The help page of one command, at a fixed width and without colour."""
    environment = os.environ | {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "sizewise", *arguments, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def page() -> str:
    """The whole page."""
    from sizewise.make.method import methods

    made = (*methods().names(), "recipe")
    asked = [[], *([command] for command in (*COMMANDS, "doctor")), *(["make", name] for name in made)]
    parts = [INTRO]
    for arguments in asked:
        title = " ".join(["sizewise", *arguments])
        parts.append(f"## {title}\n\n```text\n{help_of(arguments)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == text else f"{PAGE.name} is out of date: run `make docs`")
    PAGE.write_text(text, encoding="utf-8")
