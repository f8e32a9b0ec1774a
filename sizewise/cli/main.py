"""The door: one command, one library function. Errors become one line and an exit code here and nowhere else."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from sizewise import __version__
from sizewise.cli import accounting, choosing, creating, making, measuring, models, running, serving
from sizewise.core.errors import SizewiseError

INTERRUPTED, TERMINATED = 130, 143
_ClickError: Any = typer.BadParameter.__mro__[2]  # the root of the command line parser's own errors


class Terminated(BaseException):
    """SIGTERM came: unwind as Ctrl-C does, so that temporary files go and children end."""


def _version(asked: bool) -> None:
    if asked:
        print(f"sizewise {__version__}")
        raise typer.Exit


def build(argv: Sequence[str]) -> typer.Typer:
    """The whole command line. Methods of `make` are imported only when `argv` asks for `make`."""
    app = typer.Typer(
        name="sizewise",
        help="Find, make, run and prove the smallest language model that does a job.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def top(
        version: Annotated[
            bool, typer.Option("--version", "-v", callback=_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        """Find, make, run and prove the smallest language model that does a job."""

    models.register(app)
    creating.register(app)
    running.register(app)
    serving.register(app)
    making.register(app, with_methods="make" in argv)
    measuring.register(app)
    accounting.register(app)
    choosing.register(app)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; always leaves by SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""

    def terminate(_: int, __: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        code = build(arguments)(args=running.spelled_out(arguments), prog_name="sizewise", standalone_mode=False)
        if code == INTERRUPTED:  # the parser turns Ctrl-C into this code, without a word
            raise KeyboardInterrupt
        return int(code or 0)
    except SizewiseError as error:
        return _say(str(error), error.exit_code)
    except _ClickError as error:
        return _say(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; the same command goes on where this one stopped", INTERRUPTED)
    except Terminated:
        return _say("terminated; the same command goes on where this one stopped", TERMINATED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at exit
        return 0
    except PermissionError as error:
        return _say(f"{error.filename}: permission denied", 5)
    except Exception as error:  # the last resort: a fault of ours still ends in one line
        if os.environ.get("SIZEWISE_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}"
        return _say(f"a fault of sizewise itself ({what}); SIZEWISE_DEBUG=1 shows where, please report it", 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str, code: int) -> int:
    """One line on stderr, whatever the message held."""
    line = " ".join(text.split())
    print(f"sizewise: {line}", file=sys.stderr)
    return code
