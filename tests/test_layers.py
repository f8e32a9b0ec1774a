"""Imports go one way, and the light parts stay light."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pyarrow", "xllamacpp", "sacrebleu", "numpy", "huggingface_hub")


def test_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_help_and_import_load_nothing_heavy() -> None:
    program = (
        "import sys, sizewise; from sizewise.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
