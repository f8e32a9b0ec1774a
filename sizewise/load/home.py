"""Where sizewise keeps things. The only place that reads these environment variables."""

import os
from pathlib import Path

from sizewise.core.errors import StorageError


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
