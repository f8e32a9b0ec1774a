"""The file name is the registration: each module in a folder defines one public thing of the module's own name."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sizewise.core.errors import UnknownName


class Registry:
    """The things in one package folder. Listing imports none of them; `kind` names them in error messages.

    File `prune_wanda.py` holds `prune_wanda`; users write `prune-wanda`. Files that begin with `_` are not listed.
    """

    def __init__(self, kind: str, package: str, folder: Path) -> None:
        self.kind, self.package, self.folder = kind, package, folder

    def names(self) -> tuple[str, ...]:
        """Names as users write them, sorted."""
        found = (module.name for module in pkgutil.iter_modules([str(self.folder)]))
        return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))

    def get(self, name: str) -> Any:
        """Import and return the thing of that name.

        Raises:
            UnknownName: the folder has no such file.
        """
        if name not in self.names():
            raise UnknownName(self.kind, name, self.names())
        attribute = name.replace("-", "_")
        return getattr(importlib.import_module(f"{self.package}.{attribute}"), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
