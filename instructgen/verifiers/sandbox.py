"""Runs Python programs that a model wrote, in a sandbox of the operating system.

The sandbox is bubblewrap (https://github.com/containers/bubblewrap): no network, a read-only view
of the parts of the system that Python needs and of nothing else, a private /tmp of limited size, no
view of other processes, an unprivileged user, and no way to start a process or to outlive its
parent. Where bubblewrap does not work, nothing is run, unless the user accepts the risk.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from instructgen.errors import ConfigError

# Nobody, on every Linux system.
_USER = 65534
_TMP_BYTES = 16 * 2**20
# What `unsafe` sets. A user who does not trust the model must not set it.
_unsafe = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a program: seconds of CPU and of the clock, and bytes of memory and files."""

    seconds: int = 5
    clock_s: float = 15.0
    memory: int = 512 * 2**20
    file: int = 2**20
    open_files: int = 32


def allow_unsafe() -> None:
    """Run programs without a sandbox where bubblewrap does not work, with limits only."""
    global _unsafe
    _unsafe = True


@cache
def works() -> bool:
    """Return whether bubblewrap is installed and may create a sandbox here."""
    program = shutil.which("bwrap")
    if program is None or _numbers() is None:
        return False
    try:
        with ExitStack() as stack:
            command = _command(program, stack)
            fds = [int(command[command.index("--seccomp") + 1])]
            done = subprocess.run(  # noqa: S603 (the sandbox itself)
                [*command, sys.executable, "-I", "-S", "-c", "print(1)"],
                capture_output=True,
                timeout=20,
                env={},
                pass_fds=fds,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout == b"1\n"


def check() -> None:
    """Check that programs can be run.

    Raises:
        ConfigError: there is no sandbox on this machine, and the user has not accepted the risk.
    """
    if not works() and not _unsafe:
        raise ConfigError(
            "code that a model wrote is run only in a sandbox, and bubblewrap does not work here.",
            "Install it (Debian: apt install bubblewrap), or accept that such code can read and "
            "change your files: --unsafe-code-execution.",
        )


class Process:
    """A Python program in the sandbox, without standard input and output.

    Args:
        source: the program.
        limits: its limits.
        fds: file descriptors that the program may use; their numbers are its arguments.
    """

    def __init__(self, source: str, limits: Limits, fds: Sequence[int] = ()) -> None:
        check()
        self._folder = tempfile.mkdtemp(prefix="instructgen-code-")
        python = [sys.executable, "-I", "-S", "-c", source, *map(str, fds)]
        with ExitStack() as stack:
            passed = list(fds)
            command = python
            if works():
                sandbox = _command(str(shutil.which("bwrap")), stack)
                passed.append(int(sandbox[sandbox.index("--seccomp") + 1]))
                command = [*sandbox, *python]
            self.popen = subprocess.Popen(  # noqa: S603 (running it is the task)
                command,
                cwd=self._folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                preexec_fn=lambda: _limit(limits),
                start_new_session=True,
            )

    def end(self) -> None:
        """Kill the program and everything that it started, and remove its files."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
        except RecursionError:
            subprocess.run(["/bin/rm", "-rf", self._folder], check=False)  # noqa: S603


def _limit(limits: Limits) -> None:
    for name, value in (
        (resource.RLIMIT_CPU, limits.seconds),
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))
    if not works():
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _command(program: str, stack: ExitStack) -> list[str]:
    """Return the command that runs what follows it in a sandbox."""
    filter_ = stack.enter_context(tempfile.TemporaryFile())
    filter_.write(_no_processes())
    filter_.seek(0)
    words = [program, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    words += [
        "--uid",
        str(_USER),
        "--gid",
        str(_USER),
        "--hostname",
        "sandbox",
        "--cap-drop",
        "ALL",
    ]
    for path in _visible():
        words += ["--ro-bind", str(path), str(path)]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]
    words += ["--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(filter_.fileno())]
    return words


@cache
def _visible() -> tuple[Path, ...]:
    """Return the folders that Python needs."""
    found: list[Path] = []
    system = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib")
    python = (sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)))
    for path in map(Path, (*system, *python, os.path.dirname(sys.executable))):
        if path.exists() and path not in found:
            found.append(path)
    return tuple(found)


def _numbers() -> tuple[int, dict[str, int]] | None:
    """Return the architecture's number and those of its system calls, or None if unknown."""
    return {
        "x86_64": (
            0xC000003E,
            {"fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "ptrace": 101, "kill": 62},
        ),
        "aarch64": (0xC00000B7, {"clone": 220, "clone3": 435, "ptrace": 117, "kill": 129}),
    }.get(platform.machine())


@cache
def _no_processes() -> bytes:
    """Return a seccomp filter (BPF) that forbids to start processes; threads are allowed.

    See https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html.
    """
    found = _numbers()
    assert found is not None
    architecture, calls = found
    allow, kill = 0x7FFF0000, 0x80000000
    not_permitted, not_implemented = 0x00050001, 0x00050026
    load_architecture, load_call, load_argument = 4, 0, 16

    def line(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, set_, back = 0x20, 0x15, 0x45, 0x06
    program = [
        line(load, 0, 0, load_architecture),
        line(equal, 1, 0, architecture),
        line(back, 0, 0, kill),
        line(load, 0, 0, load_call),
    ]
    if architecture == 0xC000003E:
        # The second set of numbers of x86 (x32) would avoid the checks below.
        program += [line(set_, 0, 1, 0x40000000), line(back, 0, 0, kill)]
    # Python falls back to clone, whose flags can be seen here.
    program += [line(equal, 0, 1, calls["clone3"]), line(back, 0, 0, not_implemented)]
    for name in ("fork", "vfork", "ptrace"):
        if name in calls:
            program += [line(equal, 0, 1, calls[name]), line(back, 0, 0, not_permitted)]
    thread = 0x00010000
    program += [
        line(equal, 0, 4, calls["clone"]),
        line(load, 0, 0, load_argument),
        line(set_, 1, 0, thread),
        line(back, 0, 0, not_permitted),
        line(back, 0, 0, allow),
        line(back, 0, 0, allow),
    ]
    return b"".join(program)
