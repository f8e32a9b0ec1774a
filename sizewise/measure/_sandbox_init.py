"""Builds the sandbox around a program and takes it down again. Run as a script by `sandbox.py`, standard library alone.

Three processes, each the parent of the next:

    keeper     outside; writes the user mapping, waits, and on any sign from its own parent kills all and reaps all
    first      pid 1 of the new namespaces; mounts, then starts the program and ends with it: the kernel then kills
               whatever else is left in the namespace
    program    user nobody, no capabilities, a filter of system calls, limits; becomes a fresh Python interpreter

A namespace that cannot be made is told to the parent in a message; nothing is run in a weaker one.
"""

import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any

CONTROL, LINK = 3, 4
NOBODY = 65534
_UNSHARE = 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000 | 0x08000000 | 0x04000000  # user pid net mount ipc uts
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 18, 2, 4
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_PDEATHSIG, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS, _CAPBSET_DROP, _SECCOMP = 1, 4, 36, 38, 24, 22
_X86 = platform.machine() == "x86_64"
# System calls that a program of functions has no use for, and attacks have: (x86-64, 64-bit ARM) numbers.
_DENIED = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "memfd_create": (319, 279), "shmget": (29, 194),
    "io_uring_setup": (425, 425), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "mount_setattr": (442, 442), "memfd_secret": (447, 447),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 435) if _X86 else (220, 435)
_AUDIT_ARCH = 0xC000003E if _X86 else 0xC00000B7

_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise the error that a C function left behind."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process."""
    checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system, or a folder at a second place."""
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    checked(_libc.mount(*arguments), f"mount {target}")


def main() -> int:
    """The keeper."""
    settings = json.loads(sys.argv[1])
    prctl(_SUBREAPER, 1)  # what loses its parent in the take-down becomes ours to reap
    made, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(0)
        os.close(made[0])
        os.close(mapped[1])
        _guarded(_enter, settings, made[1], mapped[0])
    os.close(CONTROL)
    os.close(LINK)
    os.close(made[1])
    os.close(mapped[0])
    if os.read(made[0], 1):
        try:
            _map_users(child)
            os.write(mapped[1], b"1")
        except OSError as error:
            os.write(mapped[1], str(error).encode()[:500])
    with suppress(OSError):  # the child may have ended by now
        _wait(child, settings["wall_s"], 2 * settings["memory_bytes"])
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    return 0


def _wait(child: int, seconds: float, memory_bytes: int) -> None:
    """Until the child ends, the parent closes our standard input (or dies), or time or memory is used up."""
    watch = select.poll()
    watch.register(os.pidfd_open(child), select.POLLIN)
    watch.register(0, select.POLLHUP | select.POLLIN)
    deadline = time.monotonic() + seconds
    # The limit on memory is one for each process; together they could still have many times as much.
    while time.monotonic() < deadline and not watch.poll(100) and _resident(child) <= memory_bytes:
        continue


def _resident(process: int) -> int:
    """Bytes of memory that a process and its descendants hold."""
    total, waiting = 0, [str(process)]
    while waiting:
        current = waiting.pop()
        with suppress(OSError):  # it may end at any moment
            with open(f"/proc/{current}/statm") as file:
                total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            with open(f"/proc/{current}/task/{current}/children") as file:
                waiting += file.read().split()
    return total


def _map_users(child: int) -> None:
    """Root inside is us; `nobody` inside is nobody, where we may say so."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        with suppress(OSError):
            _write(f"/proc/{child}/uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            _write(f"/proc/{child}/gid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            return
    _write(f"/proc/{child}/setgroups", "deny")
    _write(f"/proc/{child}/uid_map", f"0 {user} 1\n")
    _write(f"/proc/{child}/gid_map", f"0 {group} 1\n")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _guarded(step: Any, *arguments: Any) -> None:
    """Run the next step of the set-up; if it fails, tell the parent why and end."""
    try:
        step(*arguments)
    except BaseException as error:  # noqa: BLE001 - nothing may go on in a half-built sandbox
        message = json.dumps({"refused": f"{type(error).__name__}: {error}"[:1000]}).encode()
        with suppress(OSError):
            os.write(CONTROL, struct.pack(">I", len(message)) + message)
    os._exit(1)


def _enter(settings: dict[str, Any], made: int, mapped: int) -> None:
    """Into new namespaces; the process after this one is the first of them."""
    checked(_libc.unshare(_UNSHARE), "unshare")
    _die_with_parent()
    os.write(made, b"1")
    answer = os.read(mapped, 1000)
    if answer != b"1":
        raise OSError(f"user mapping: {answer.decode(errors='replace') or 'the keeper died'}")
    os.close(made)
    os.close(mapped)
    outside = os.getpid()
    first = os.fork()
    if first == 0:
        _guarded(_first, settings, outside)
    os.close(CONTROL)
    os.close(LINK)
    os.waitpid(first, 0)
    os._exit(0)


def _die_with_parent() -> None:
    """Be killed when the parent dies."""
    prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it has died before we asked
        os._exit(1)


def _first(settings: dict[str, Any], outside: int) -> None:
    """Process 1 of the namespaces: build the file system, start the program, end when it ends."""
    prctl(_PDEATHSIG, signal.SIGKILL)
    prctl(_DUMPABLE, 0)
    os.umask(0o022)
    with suppress(OSError):  # a second lock: the filter of system calls refuses new namespaces too
        _write("/proc/sys/user/max_user_namespaces", "0")
    with open("/proc/self/uid_map") as users:
        single = len(users.readlines()) == 1
    _build_root(settings, 0 if single else NOBODY)
    program = os.fork()
    if program == 0:
        _guarded(_become_program, settings, single)
    os.close(CONTROL)
    os.close(LINK)
    while os.wait()[0] != program:
        continue
    os._exit(0)


def _build_root(settings: dict[str, Any], owner: int) -> None:
    """A root that holds the interpreter, read-only, and little else; then make it the only one."""
    root = settings["root"]
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    mount("sandbox", root, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={settings['disk_bytes']},nr_inodes=8192,mode=755")
    for path in settings["folders"]:
        os.makedirs(root + path)
        mount(path, root + path, "", _MS_BIND | _MS_REC)
        _read_only(root + path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in settings["files"]:
        _bind_file(root, path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _bind_file(root, path, _ATTR_NOSUID)
    for path, target in settings["links"].items():
        if not os.path.lexists(root + path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(target, root + path)
    for path in ("/box", "/tmp", "/dev/shm"):
        os.makedirs(root + path, mode=0o700)
        os.chown(root + path, owner, owner)
    os.chdir(root)
    checked(_libc.syscall(155 if _X86 else 41, b".", b"."), "pivot_root")
    checked(_libc.umount2(b".", 2), "umount the old root")  # 2: detach
    os.chdir("/box")


def _bind_file(root: str, path: str, attributes: int) -> None:
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    if not os.path.exists(root + path):
        os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(path, root + path, "", _MS_BIND)
        _read_only(root + path, attributes)


def _read_only(path: str, attributes: int) -> None:
    """Lock a mount and all below it, without clearing the flags that it has."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    arguments = (_AT_FDCWD, path.encode(), _AT_RECURSIVE, ctypes.byref(wanted), ctypes.sizeof(wanted))
    checked(_libc.syscall(_MOUNT_SETATTR, *arguments), f"mount_setattr {path}")


def _become_program(settings: dict[str, Any], single: bool) -> None:
    """Give everything up, then become the interpreter."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
        os.set_inheritable(fd, True)  # dup2 leaves it as it is where both are one
    os.closerange(LINK + 1, 65536)
    os.set_inheritable(CONTROL, True)
    os.set_inheritable(LINK, True)
    os.setsid()
    _drop_rights(single)
    for limit, value in (
        (resource.RLIMIT_AS, settings["memory_bytes"]),
        (resource.RLIMIT_CPU, settings["cpu_s"]),
        (resource.RLIMIT_FSIZE, settings["disk_bytes"]),
        (resource.RLIMIT_NPROC, settings["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_STACK, 8 << 20),
    ):
        resource.setrlimit(limit, (value, value))
    _filter_system_calls()
    # Not -I, which ignores PYTHONHASHSEED: a fixed order of sets makes a score repeatable. -P and -s are the rest of
    # it; -S leaves out what happens to be installed, so that an answer passes everywhere or nowhere.
    arguments = [settings["python"], "-P", "-s", "-S", "-B", "-c", settings["source"]]
    os.execve(settings["python"], arguments, {"PYTHONHASHSEED": "0"})


def _drop_rights(single: bool) -> None:
    """No capabilities now or ever again; the user nobody, where there are two users."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the last that this kernel knows
    if not single:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("Ii", 0x20080522, 0)
    checked(_libc.capset(header, bytes(24)), "capset")
    prctl(_NO_NEW_PRIVS, 1)


def _filter_system_calls() -> None:
    """Answer EPERM to what no such program needs. On other processors the namespaces alone must do."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    deny, allow, kill, missing = 0x00050001, 0x7FFF0000, 0x80000000, 0x00050026  # EPERM, ..., ENOSYS
    denied = sorted(numbers[0 if _X86 else 1] for numbers in _DENIED.values())
    rules = [
        (load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH), (give, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (give, 0, 0, deny),  # the x32 numbers
        # C libraries fall back from clone3, whose flags a filter cannot see, to clone.
        (equal, 0, 1, _CLONE3), (give, 0, 0, missing),
    ]  # fmt: skip
    for number in denied:
        rules += [(equal, 0, 1, number), (give, 0, 0, deny)]
    rules += [
        (equal, 0, 3, _CLONE), (load, 0, 0, 16), (any_bit, 0, 1, 0x7E020000), (give, 0, 0, deny),
        (give, 0, 0, allow),
    ]  # fmt: skip
    program = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    kept = ctypes.create_string_buffer(program, len(program))
    wrapped = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(kept))
    checked(_libc.prctl(_SECCOMP, ctypes.c_ulong(2), ctypes.c_char_p(wrapped), 0, 0), "seccomp")


if __name__ == "__main__":
    sys.exit(main())
