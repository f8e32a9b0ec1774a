"""Every method of `make` on one model, as a table and a picture: docs/methods.md and docs/images/methods.svg.

    python benchmarks/method_table.py                                             all of it: hours on two cores
    python benchmarks/method_table.py --only rtn,depth --tokens 4096 --account quick --docs /tmp/table

A model that comes quantized with one step for every 32 weights is unpacked and dithered as in `gguf_quality.py`, so
that the grid it came from helps nobody. Each method starts from the same model in 16 bits, is made with its listed
settings, measured, and removed again. What is known of a setting is kept in methods.json beside the page at once and
not measured a second time: an interrupted run goes on where it stopped, and a new method costs only itself. A setting
that fails gets a row with the reason.

Design: at equal bytes nothing keeps more of a small model than weights of 4 to 6 bits; zeros and thin factors save
bytes only where the file has a form for them; what is cut away and not healed by training is lost.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _method_page import Row, page
from gguf_quality import dither

from sizewise.core.errors import SizewiseError
from sizewise.core.measurement import Measurement
from sizewise.core.model import Model
from sizewise.core.params import schema_of
from sizewise.core.references import parse_name
from sizewise.load.models import find_model
from sizewise.load.store.atomic import write_atomic
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.method import kind_of, methods, needs_calibration, purpose_of
from sizewise.measure.account import Amount
from sizewise.measure.machine import describe, fingerprint
from sizewise.pick.account import account_of

BASE, CHECKPOINT = "table-base", "table-checkpoint"  # the model in 16 bits: as a GGUF, and as a checkpoint
MADE = "table-made"
_GGUF_TYPES = ("Q4_K_M", "Q2_K", "Q6_K", "Q3_K_M", "Q4_0")
# Settings of the methods. A method that is not named here is made with its defaults.
SETTINGS: dict[str, Sequence[dict[str, Any]]] = {
    **{name: ({"bits": 4}, {"bits": 3}) for name in ("hqq", "awq", "lut")},
    **{name: ({"bits": 4}, {"bits": 3}, {"bits": 4, "parts": "all"}) for name in ("rtn", "gptq")},
    **{name: [{"type": each} for each in _GGUF_TYPES] for name in ("quantize-gguf", "gguf")},
    "export-gguf": ({"type": "auto"},),
    **{name: ({"sparsity": 0.5},) for name in ("magnitude", "obd", "wanda")},
    "sparsegpt": ({"sparsity": 0.5}, {"pattern": "2:4"}),
    "depth": ({"share": 0.1},),
    "width": ({"ffn": 0.1},),
    "slicegpt": ({"share": 0.1},),
    **{name: ({"keep": 0.9},) for name in ("svd", "asvd", "svd-llm")},
}
_LEFT_OUT = ("import-gguf",)  # the checkpoint that others begin with


def main() -> None:
    """The program."""
    arguments = _arguments()
    os.environ.setdefault("SIZEWISE_HOME", str(arguments.work))
    store = Store()
    results = _Results(arguments.docs / "methods.json")
    begin = _bases(arguments.model, store)
    for method, options in _settings(arguments.only, arguments.tokens):
        row = results.find(method, options, begin.digest, arguments.account)
        if row is None or ("failed" in row and arguments.again):
            _say(f"{method} {options}")
            results.keep(_row(method, options, begin.digest, arguments.account, store))
    results.keep(_itself(begin.digest, arguments.account, store, results))
    _write(arguments.docs, results.rows(begin.digest, arguments.account))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).parent.parent
    parser.add_argument("--model", default="smollm2", help="reference of the model to start from")
    parser.add_argument("--only", default="", help="only these methods, by commas")
    parser.add_argument("--tokens", type=int, help="calibration tokens; else each method's default")
    parser.add_argument("--account", choices=("quick", "full"), default="full", help="how much is measured")
    parser.add_argument("--again", action="store_true", help="try once more what failed before")
    parser.add_argument("--docs", type=Path, default=root / "docs", help="where the page and its data go")
    parser.add_argument("--work", type=Path, default=root / ".cache" / "method_table", help="store and caches")
    return parser.parse_args()


def _settings(only: str, tokens: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Methods that make one network of another, each with its settings."""
    from sizewise.make.shrink import walk_settings

    registry = methods()
    wanted = [name for name in only.split(",") if name]
    for name in wanted:
        registry.get(name)  # a typo is told before an hour of work
    shared = {parameter.name for parameter in schema_of(walk_settings)}
    for name in sorted(registry.names(), key=lambda one: one == "gguf"):  # the slowest at the end
        function = registry.get(name)
        if kind_of(function) == "head" or name in _LEFT_OUT or (wanted and name not in wanted):
            continue
        known = {parameter.name for parameter in schema_of(function)} | shared
        limit = {"tokens": tokens} if tokens and needs_calibration(function) and "tokens" in known else {}
        for options in SETTINGS.get(name, ({},)):
            yield name, dict(options) | limit


def _bases(reference: str, store: Store) -> Model:
    """The model in 16 bits as a GGUF and as a checkpoint; made once."""
    if reference == "smollm2":
        from sizewise.load.pull import here

        reference = here(reference, store).name
    if not store.layout.entries(parse_name(BASE)):
        found = find_model(reference, store)
        with tempfile.TemporaryDirectory(dir=store.root.parent) as folder:
            if found.quantization in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
                reference = str(Path(folder, "dithered.gguf"))
                dither(found.files["model.gguf"], Path(reference))
            make("quantize-gguf", reference, name=BASE, options={"type": "F16"}, store=store)
    if not store.layout.entries(parse_name(CHECKPOINT)):
        make("import-gguf", BASE, name=CHECKPOINT, store=store)
    return find_model(BASE, store)


def _row(method: str, options: dict[str, Any], base: str, amount: Amount, store: Store) -> Row:
    """Make a model, measure it, remove it."""
    function = methods().get(method)
    row: Row = {"method": method, "options": options, "base": base, "amount": amount}
    row["purpose"] = purpose_of(function) if purpose_of(function) in ("Prune", "Quantize", "Factorize") else "Convert"
    row["machine"] = describe(fingerprint())
    begin = CHECKPOINT if method == "export-gguf" else BASE
    began = time.perf_counter()
    try:
        made = make(method, begin, name=MADE, options=options, store=store)
        row["seconds"] = round(time.perf_counter() - began, 1)
        made, measured = account_of(made, amount=amount, parent=begin, store=store)
    except SizewiseError as error:
        return row | {"failed": str(error)}
    row["account"] = _public(measured, store)
    row["note"] = made.lineage.note
    store.remove(parse_name(MADE))
    store.collect_garbage(grace_s=0)
    return row


def _itself(base: str, amount: Amount, store: Store, results: "_Results") -> Row:
    """The model that all began with, measured as they are."""
    known = results.find("(the model itself)", {}, base, amount)
    if known:
        return known
    _, measured = account_of(BASE, amount=amount, parent=BASE, store=store)
    account = _public(measured, store)
    row = {"method": "(the model itself)", "options": {}, "base": base, "amount": amount, "purpose": "Convert"}
    return row | {"seconds": 0.0, "account": account, "machine": describe(fingerprint()), "note": ""}


def _public(measured: Sequence[Measurement], store: Store) -> dict[str, Any]:
    """The account without the paths of this machine."""
    text = json.dumps({one.name: one.as_json() for one in measured})
    found: dict[str, Any] = json.loads(text.replace(f"{store.root.parent}/", ""))
    return found


def _write(docs: Path, rows: list[Row]) -> None:
    text, picture = page(rows, f"`python benchmarks/{Path(__file__).name}`")
    write_atomic(docs / "methods.md", [text.encode()])
    if picture:
        write_atomic(docs / "images" / "methods.svg", [picture.encode()])
    _say(f"{len(rows)} rows in {docs / 'methods.md'}")


class _Results:
    """What is known, in a JSON file that is written after every setting."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def find(self, method: str, options: dict[str, Any], base: str, amount: str) -> Row | None:
        """The row of one setting."""
        wanted = (method, options, base, amount)
        return next((row for row in self._rows if self._key(row) == wanted), None)

    def keep(self, row: Row) -> None:
        """Add a row, or replace the one of its setting."""
        self._rows = [*(other for other in self._rows if self._key(other) != self._key(row)), row]
        text = json.dumps(self._rows, indent=1, ensure_ascii=False)
        write_atomic(self.path, [text.encode(), b"\n"])

    def rows(self, base: str, amount: str) -> list[Row]:
        """All rows of one base."""
        return [row for row in self._rows if (row["base"], row["amount"]) == (base, amount)]

    @staticmethod
    def _key(row: Row) -> tuple[Any, ...]:
        return row["method"], row["options"], row["base"], row["amount"]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
