"""Memory of a model that runs inside the process that asks it: measured in a fresh process that does nothing else.

The process of a search also trains heads and keeps rows; what it holds says nothing about the model. Run as a program,
`python -m sizewise.pick.footprint STORE NAME`, this file opens the model, classifies the texts that come in as JSON,
says so, and waits to be dismissed.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sizewise.core.errors import EngineFailed
from sizewise.core.measurement import Measurement
from sizewise.core.model import Model
from sizewise.load.store.store import Store
from sizewise.measure.meters.memory import memory

_GRACE_S = 10.0  # to close an encoder


def footprint(model: Model, store: Store, texts: Sequence[str]) -> Measurement:
    """Peak memory of a process that loads the model and classifies some texts.

    Args:
        model: a linear model in the store.
        store: where it is.
        texts: what it is asked.

    Raises:
        EngineFailed: the process ended before its time.
    """
    command = [sys.executable, "-P", "-m", __name__, str(store.root), model.name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with memory([process.pid]) as watch:
            process.stdin.write(json.dumps(list(texts)) + "\n")
            process.stdin.flush()
            if process.stdout.readline().strip() != "done":
                raise EngineFailed(f"{model.name}: the process that measures its memory ended with an error")
            return watch.measurement()  # while the process is there: the kernel forgets its mark with it
    except BrokenPipeError as error:
        raise EngineFailed(f"{model.name}: the process that measures its memory did not start") from error
    finally:
        with suppress(OSError):  # it has ended by itself
            process.stdin.close()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """The program."""
    from sizewise.core.requests import GenerateRequest
    from sizewise.load.open import open_runner

    root, name = sys.argv[1:]
    texts = json.loads(sys.stdin.readline())
    with open_runner(name, store=Store(Path(root))) as runner:
        runner.generate([GenerateRequest(prompt=text) for text in texts])
        print("done", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
