"""Runs Python programs that a model wrote, in a sandbox of the operating system.

The sandbox is bubblewrap (https://github.com/containers/bubblewrap): no network, a read-only view
of the parts of the system that Python needs and of nothing else, a private /tmp of limited size, no
/proc, no view of other processes, an unprivileged user, and an end together with the parent. A
filter of system calls forbids to start processes and threads, and what could use memory that no
limit counts. Where bubblewrap does not work, nothing is run, unless the user accepts the risk.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from instructgen.errors import ConfigError

# Nobody, on every Linux system.
_USER = "65534"
_TMP_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a program: seconds of CPU and of the clock, and bytes of memory and files."""

    seconds: int = 5
    clock_s: float = 15.0
    memory: int = 512 * 2**20
    file: int = 2**20
    open_files: int = 32

    def source(self) -> str:
        """Return the statements with which a program sets the limits, before anything else."""
        limits = {
            "CPU": self.seconds,
            "AS": self.memory,
            "FSIZE": self.file,
            "NOFILE": self.open_files,
            "CORE": 0,
            # In the sandbox a filter of system calls does this, also for root.
            "NPROC": 0,
        }
        lines = [f"resource.setrlimit(resource.RLIMIT_{n}, ({v}, {v}))" for n, v in limits.items()]
        return "\n".join(["import resource", *lines, ""])


@cache
def works() -> bool:
    """Return whether bubblewrap is installed and may create a sandbox here."""
    if shutil.which("bwrap") is None or platform.machine() not in _MACHINES:
        return False
    reading, writing = os.pipe()
    try:
        process = Process(f"import os\nos.write({writing}, b'1')", Limits(), [writing])
        os.close(writing)
        done = os.read(reading, 1)
        process.end()
    except OSError:
        return False
    finally:
        os.close(reading)
    return done == b"1"


def check(*, unsafe: bool) -> None:
    """Check that programs can be run here.

    Args:
        unsafe: whether the user accepts that they run without a sandbox.

    Raises:
        ConfigError: there is no sandbox on this machine, and the user has not accepted the risk.
    """
    if not unsafe and not works():
        raise ConfigError(
            "code that a model wrote is run only in a sandbox, and bubblewrap does not work here.",
            "Install it (Debian: apt install bubblewrap). To accept that such code can read and "
            "change your files and use the network, pass --unsafe-code-execution.",
        )


class Process:
    """A Python program without standard input and output.

    Args:
        source: the program.
        limits: its limits.
        fds: file descriptors that the program may use.
        unsafe: whether to run it without a sandbox, with the limits only.
    """

    def __init__(
        self, source: str, limits: Limits, fds: Sequence[int] = (), *, unsafe: bool = False
    ) -> None:
        python = [os.path.realpath(sys.executable), "-I", "-S", "-c", limits.source() + source]
        python += map(str, fds)
        self._folder = tempfile.mkdtemp(prefix="instructgen-code-") if unsafe else None
        with ExitStack() as stack:
            passed = list(fds)
            if not unsafe:
                file = stack.enter_context(tempfile.TemporaryFile())
                file.write(_system_calls())
                file.seek(0)
                passed.append(file.fileno())
                python = [*_command(), "--seccomp", str(file.fileno()), *python]
            self._popen = subprocess.Popen(  # noqa: S603 (running it is the task)
                python,
                cwd=self._folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
            )

    def end(self) -> None:
        """Kill the program and everything that it started, and remove its files."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        if self._folder is None:
            return
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
        except RecursionError:
            subprocess.run(["/bin/rm", "-rf", self._folder], check=False)  # noqa: S603


@cache
def _command() -> tuple[str, ...]:
    """Return the command that runs what follows it in a sandbox."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    words += ["--uid", _USER, "--gid", _USER, "--hostname", "sandbox", "--cap-drop", "ALL"]
    for path in _visible():
        words += ["--ro-bind", str(path), str(path)]
    # /proc is left out: a program that root runs could write to /proc/sys, also as nobody.
    words += ["--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]
    # The folder /dev has no limit of its own.
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    program = shutil.which(words[0])
    return (str(program), *words[1:])


def _visible() -> list[Path]:
    """Return the folders and files that Python needs."""
    found = [Path(p) for p in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib")]
    compiled = Path(sys.base_exec_prefix, sys.platlibdir, f"python{sysconfig.get_python_version()}")
    found += [Path(sysconfig.get_path("stdlib")), compiled]
    found.append(Path(os.path.realpath(sys.executable)))
    libraries = Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent")
    found += libraries.glob("libpython*")
    return [path for path in dict.fromkeys(found) if path.exists()]


# The numbers of the system calls that are forbidden, by machine. Without clone3 (which is reported
# as not implemented) and clone there are no processes and threads. Shared memory, queues and keys
# are memory that no limit counts; the others are for the administration of a system.
_CLONE_3 = 435
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {
            "clone": 56, "fork": 57, "vfork": 58, "ptrace": 101, "socket": 41, "shmget": 29,
            "semget": 64, "msgget": 68, "mq_open": 240, "add_key": 248, "request_key": 249,
            "keyctl": 250, "syslog": 103,
            "unshare": 272, "setns": 308, "mount": 165, "umount2": 166,
            "pivot_root": 155, "chroot": 161, "io_uring_setup": 425, "userfaultfd": 323,
            "bpf": 321, "perf_event_open": 298, "process_vm_readv": 310, "process_vm_writev": 311,
            "name_to_handle_at": 303, "open_by_handle_at": 304,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "clone": 220, "ptrace": 117, "socket": 198, "shmget": 194, "semget": 190,
            "msgget": 186, "mq_open": 180, "add_key": 217, "request_key": 218, "keyctl": 219,
            "syslog": 116,
            "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41,
            "chroot": 51, "io_uring_setup": 425, "userfaultfd": 282, "bpf": 280,
            "perf_event_open": 241, "process_vm_readv": 270, "process_vm_writev": 271,
            "name_to_handle_at": 264, "open_by_handle_at": 265,
        },
    ),
}  # fmt: skip


@cache
def _system_calls() -> bytes:
    """Return the filter of system calls as a program of BPF.

    See https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html.
    """
    architecture, forbidden = _MACHINES[platform.machine()]
    allow, kill, not_permitted, not_implemented = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    load, equal, at_least, back = 0x20, 0x15, 0x35, 0x06

    def line(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = [
        line(load, 0, 0, 4),
        line(equal, 1, 0, architecture),
        line(back, 0, 0, kill),
        line(load, 0, 0, 0),
        # The second set of numbers of x86 (x32) would avoid the checks below.
        line(at_least, 0, 1, 0x40000000),
        line(back, 0, 0, kill),
        line(equal, 0, 1, _CLONE_3),
        line(back, 0, 0, not_implemented),
    ]
    for number in forbidden.values():
        program += [line(equal, 0, 1, number), line(back, 0, 0, not_permitted)]
    return b"".join([*program, line(back, 0, 0, allow)])
