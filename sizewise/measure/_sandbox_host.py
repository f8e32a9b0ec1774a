"""What runs inside the sandbox, and how two sandboxes talk: calls and values as JSON, nothing else.

This file is sent as text to a fresh interpreter that sees no package of ours, so it imports the standard library alone.

Only values of built-in types cross. What arrives has been built anew from JSON by the receiver: an object that claims
to be equal to everything arrives as an opaque thing that is equal to nothing. Functions cross as handles to call back.
"""

import ast
import builtins
import collections.abc
import io
import json
import os
import site
import struct
import sys
import types
from typing import Any

CONTROL, LINK = 3, 4  # file descriptors: to the parent; to the other sandbox
MAX_FRAME = 16_000_000  # bytes
MAX_PRINTED = 1_000_000  # characters kept of what one call prints
_MAX_ITERATED = 10_000  # items taken from a generator
_BASES: tuple[Any, ...] = (dict, list, tuple, set, frozenset, str, bytes, int, float)


class Closed(Exception):
    """The other side ended, or sent what is no message."""


class Channel:
    """Messages over a file descriptor: four bytes of length, then JSON."""

    def __init__(self, fd: int, limit: int = MAX_FRAME) -> None:
        self.fd, self.limit = fd, limit

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        data = json.dumps(message).encode()
        if len(data) > self.limit:
            raise ValueError(f"a value of {len(data)} bytes is too large to pass on")
        data = struct.pack(">I", len(data)) + data
        while data:
            data = data[os.write(self.fd, data) :]

    def receive(self) -> dict[str, Any]:
        """Wait for one message."""
        (size,) = struct.unpack(">I", self._exactly(4))
        if size > self.limit:
            raise Closed("a message is too large")
        try:
            message = json.loads(self._exactly(size))
        except (ValueError, RecursionError) as error:
            raise Closed("a message is not JSON") from error
        if not isinstance(message, dict):
            raise Closed("a message is no object")
        return message

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.fd, min(size, 1 << 20))
            if not part:
                raise Closed("the program ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Opaque:
    """A value that could not cross. It can be shown, but is equal to nothing, true or false to no one."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return self._shown

    def _refuse(self, *_: object) -> Any:
        raise TypeError("this value is of no built-in type; only its repr is known")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = __contains__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class Remote(Opaque):
    """A function of the other side."""

    def __init__(self, peer: "Peer", number: int, shown: str) -> None:
        super().__init__(shown)
        self._peer, self._number = peer, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.call(self._number, args, kwargs)


class Peer:
    """One end of a link over which both sides may call functions of the other, also while they are being called."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.exported: list[Any] = []

    def export(self, function: Any) -> int:
        """Let the other side call a function, by the number returned."""
        self.exported.append(function)
        return len(self.exported) - 1

    def call(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the other side and wait, answering its calls meanwhile."""
        self.channel.send({"call": number, "args": self.encode(list(args)), "kwargs": self.encode(kwargs)})
        while "call" in (message := self.channel.receive()):
            self.serve(message)
        sys.stdout.write(str(message.get("printed", "")))
        if "raised" in message:
            raise _exception(message["raised"])
        for index, value in dict(message.get("changed", {})).items():
            _overwrite(args[int(index)], self.decode(value))
        return self.decode(message["value"])

    def serve(self, message: dict[str, Any]) -> None:
        """Answer one call."""
        args, kwargs = self.decode(message["args"]), self.decode(message["kwargs"])
        before = sys.stdout
        printed = sys.stdout = _Kept()
        try:
            value = self.exported[message["call"]](*args, **kwargs)
            changed = {str(i): self.encode(arg) for i, arg in enumerate(args) if type(arg) in (list, dict, set)}
            reply = {"value": self.encode(value), "changed": changed}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            reply = {"raised": [type(error).__name__, str(error)[:10_000]]}
        finally:
            sys.stdout = before
        self.channel.send(reply | {"printed": printed.text()})

    def encode(self, value: Any) -> Any:
        """A value as JSON: scalars and lists as they are, everything else as {kind: content}."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is list:
            return [self.encode(item) for item in value]
        if kind in (tuple, set, frozenset):
            return {kind.__name__: [self.encode(item) for item in value]}
        if kind is dict:
            return {"dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if kind in (bytes, bytearray):
            return {kind.__name__: value.hex()}
        if kind is complex:
            return {"complex": [value.real, value.imag]}
        if kind is range:
            return {"range": [value.start, value.stop, value.step]}
        return self._encode_other(value)

    def _encode_other(self, value: Any) -> Any:
        if isinstance(value, Remote) and value._peer is self:
            return {"yours": value._number}
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"builtin": name}
        for base in _BASES:
            if isinstance(value, base):  # a subclass, such as Counter: its content, and how it shows itself
                plain = base(value.items()) if base is dict else base(value)
                return {"shown": [self.encode(plain), repr(value)[:MAX_PRINTED]]}
        if isinstance(value, collections.abc.Iterator):
            items = [item for item, _ in zip(value, range(_MAX_ITERATED + 1), strict=False)]
            return {"iterator": [self.encode(item) for item in items]}
        if callable(value):
            return {"function": [self.export(value), repr(value)[:1000]]}
        return {"opaque": repr(value)[:MAX_PRINTED]}

    def decode(self, value: Any) -> Any:
        """A value from JSON, built of built-in types only."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind in ("tuple", "set", "frozenset"):
            return getattr(builtins, kind)(self.decode(content))
        if kind == "dict":
            return {self.decode(key): self.decode(item) for key, item in content}
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind).fromhex(content)
        if kind in ("complex", "range"):
            return getattr(builtins, kind)(*content)
        return self._decode_other(kind, content)

    def _decode_other(self, kind: str, content: Any) -> Any:
        if kind == "yours":
            return self.exported[content]
        if kind == "builtin":
            return getattr(builtins, content)
        if kind == "shown":
            return _shown(self.decode(content[0]), str(content[1]))
        if kind == "iterator":
            return _iterated(self.decode(content))
        if kind == "function":
            return Remote(self, int(content[0]), str(content[1]))
        return Opaque(str(content))


class _Kept(io.StringIO):
    """What is printed, up to a limit: a program may print for ever."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) <= MAX_PRINTED:
            super().write(text)
        return len(text)

    def text(self) -> str:
        """What was kept."""
        return io.StringIO.getvalue(self)


def _shown(value: Any, text: str) -> Any:
    """A built-in value that is shown as `text`."""
    base = type(value)
    if base not in _BASES:
        return value
    return type(base.__name__, (base,), {"__repr__": lambda _: text, "__str__": lambda _: text})(value)


def _iterated(items: list[Any]) -> Any:
    yield from items[:_MAX_ITERATED]
    if len(items) > _MAX_ITERATED:
        raise RuntimeError(f"more than {_MAX_ITERATED} items were taken from a generator")


def _overwrite(mine: Any, changed: Any) -> None:
    """Make a list, dictionary or set that was passed what the function made of it."""
    if type(mine) is type(changed) and mine != changed:
        mine.clear()
        (mine.extend if type(mine) is list else mine.update)(changed)


def _exception(raised: list[Any]) -> Exception:
    """The exception of that name; never one that ends the program, such as SystemExit."""
    name, text = str(raised[0]), str(raised[1])
    known: Any = getattr(builtins, name, None)
    if not (isinstance(known, type) and issubclass(known, Exception)) or issubclass(known, UnicodeError):
        known = type(name, (Exception,), {})
    if issubclass(known, KeyError):  # str() of it is the repr of its argument
        known = type(name, (KeyError,), {"__str__": lambda _: text})
    made: Exception = known(text)
    return made


def host_candidate(order: dict[str, Any]) -> None:
    """Run a program, then let the other side call one function of it."""
    peer = Peer(Channel(LINK))
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.argv = ["solution.py"]
    try:
        exec(_first_that_compiles(order["programs"]), module.__dict__)
    except SystemExit:  # a script that ends by saying so has still defined its functions
        pass
    except BaseException as error:  # noqa: BLE001 - a program may fail in any way
        peer.channel.send({"failed": f"{type(error).__name__}: {error}"[:1000]})
        return
    function = module.__dict__.get(order["entry"])
    if not callable(function):
        peer.channel.send({"failed": f"defines no function {order['entry']}"})
        return
    peer.channel.send({"ready": peer.export(function)})
    while True:
        peer.serve(peer.channel.receive())


def _first_that_compiles(programs: list[str]) -> types.CodeType:
    """The first of several ways to read an answer as a program that is a program."""
    for program in programs[:-1]:
        try:
            return compile(program, "solution.py", "exec")
        except (SyntaxError, ValueError):
            continue
    return compile(programs[-1], "solution.py", "exec")


def host_tests(order: dict[str, Any]) -> None:
    """Run tests against the function of another sandbox, and tell the parent whether they pass."""
    peer = Peer(Channel(LINK))
    verdict: dict[str, Any] = {"nonce": order["nonce"], "passed": False}
    try:
        started = peer.channel.receive()
        if "ready" not in started:
            verdict["reason"] = str(started.get("failed", "the program did not start"))
        else:
            function = Remote(peer, int(started["ready"]), order["entry"])
            reason = _examples_fail(order, function) if order["examples"] else _tests_fail(order, function)
            verdict |= {"passed": not reason, "reason": reason}
    except BaseException as error:  # noqa: BLE001 - whatever goes wrong in a test is a failure
        verdict["reason"] = f"{type(error).__name__}: {error}"[:1000]
    Channel(CONTROL).send(verdict)


def _tests_fail(order: dict[str, Any], function: Remote) -> str:
    """Run test code that asserts, and its `check(candidate)` if it has one. Returns what failed, or nothing."""
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(order["setup"], "setup.py", "exec"), space)
    space |= {order["entry"]: function, "candidate": function}
    exec(compile(order["tests"], "tests.py", "exec"), space)
    if callable(space.get("check")):
        space["check"](function)
    return ""


def _examples_fail(order: dict[str, Any], function: Remote) -> str:
    """Run the examples in the docstring of the function to be written. Returns what failed, or nothing."""
    import doctest  # slow to import, and most tests are not examples

    tree = ast.parse(order["setup"])
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == order["entry"]]
    text = ast.get_docstring(documented[-1]) if documented else order["setup"]
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(tree, "setup.py", "exec"), space)
    space[order["entry"]] = function
    examples = doctest.DocTestParser().get_doctest(text or "", space, order["entry"], None, None)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report = io.StringIO()
    result = doctest.DocTestRunner(verbose=False, optionflags=flags).run(examples, out=report.write)
    if not result.attempted:
        return "there are no examples"
    return report.getvalue()[:1000] if result.failed else ""


def main() -> None:
    """Say that the sandbox stands, wait for the order, do it."""
    sys.set_int_max_str_digits(0)
    os.environ.clear()
    site.setquit()  # exit() and quit(), which programs use and Python without site-packages lacks
    control = Channel(CONTROL)
    control.send({"hello": True})
    order = control.receive()
    if order["role"] == "tests":
        host_tests(order)
    else:
        os.close(CONTROL)
        host_candidate(order)


if __name__ == "__main__":
    main()
