"""Where sizewise keeps things. The only place that reads these environment variables."""

import os
from pathlib import Path

from sizewise.core.errors import StorageError
from sizewise.core.references import DEFAULT_HOST


def home() -> Path:
    """`$SIZEWISE_HOME`, else `~/.sizewise`: the ledger, caches and (unless told otherwise) the store."""
    if told := os.environ.get("SIZEWISE_HOME"):
        return Path(told).expanduser()
    try:
        return Path.home() / ".sizewise"
    except RuntimeError as error:
        raise StorageError("no home folder is known; set SIZEWISE_HOME to a folder that can be written") from error


def models_folder() -> Path:
    """`$SIZEWISE_MODELS`, else `$OLLAMA_MODELS`, else `models` in `home()`."""
    told = os.environ.get("SIZEWISE_MODELS") or os.environ.get("OLLAMA_MODELS")
    return Path(told).expanduser() if told else home() / "models"


def ledger_file() -> Path:
    """The SQLite database that holds every item that was ever measured."""
    return home() / "ledger.db"


def reports_folder() -> Path:
    """Where the results of fits and comparisons are kept."""
    return home() / "reports"


def registries() -> tuple[str, ...]:
    """Hosts that models may be pulled from and pushed to on request over HTTP: `$SIZEWISE_REGISTRIES`, by commas.

    The first of them is also asked for plain names that the catalogue does not have. Unset: Ollama's own registry.
    """
    told = os.environ.get("SIZEWISE_REGISTRIES", DEFAULT_HOST)
    return tuple(host.strip().lower() for host in told.split(",") if host.strip())
