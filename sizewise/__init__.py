"""sizewise finds, makes, runs and proves the smallest language model that does a given job.

The public names are imported when they are first used, so that `import sizewise` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sizewise.core.errors import SizewiseError
    from sizewise.core.references import parse_reference
    from sizewise.core.requests import GenerateRequest, Message, Sampling, ScoreRequest
    from sizewise.core.results import Bar
    from sizewise.load.models import find_model, list_models
    from sizewise.load.open import open_runner
    from sizewise.load.pull import pull
    from sizewise.load.tasks.file import load_task
    from sizewise.make.apply import make
    from sizewise.measure.evaluate import evaluate
    from sizewise.measure.ledger import Ledger
    from sizewise.pick.compare import compare
    from sizewise.pick.fit import fit
    from sizewise.pick.report import write_report

_HOMES = {
    "Bar": "sizewise.core.results",
    "GenerateRequest": "sizewise.core.requests",
    "Ledger": "sizewise.measure.ledger",
    "Message": "sizewise.core.requests",
    "Sampling": "sizewise.core.requests",
    "ScoreRequest": "sizewise.core.requests",
    "SizewiseError": "sizewise.core.errors",
    "compare": "sizewise.pick.compare",
    "evaluate": "sizewise.measure.evaluate",
    "find_model": "sizewise.load.models",
    "fit": "sizewise.pick.fit",
    "list_models": "sizewise.load.models",
    "load_task": "sizewise.load.tasks.file",
    "make": "sizewise.make.apply",
    "open_runner": "sizewise.load.open",
    "parse_reference": "sizewise.core.references",
    "pull": "sizewise.load.pull",
    "write_report": "sizewise.pick.report",
}

__all__ = [
    "Bar",
    "GenerateRequest",
    "Ledger",
    "Message",
    "Sampling",
    "ScoreRequest",
    "SizewiseError",
    "__version__",
    "compare",
    "evaluate",
    "find_model",
    "fit",
    "list_models",
    "load_task",
    "make",
    "open_runner",
    "parse_reference",
    "pull",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sizewise' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
