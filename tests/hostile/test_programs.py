"""Programs that try to get a verdict that they have not earned, or to reach beyond the sandbox."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from instructgen.errors import ConfigError
from instructgen.schema.sample import Label, Sample
from instructgen.training.rewards import verifiers_of
from instructgen.verifiers import sandbox
from instructgen.verifiers.code import Code
from instructgen.verifiers.sandbox import Limits, Process
from tests.conftest import ROOT, needs_sandbox, real

pytestmark = needs_sandbox
TESTS = "assert add(1, 2) == 3\nassert add(-1, 3) == 2\nassert add(10, 5) == 15\n"
ALWAYS = "class E:\n    def {}(self, *a): return {}\n    __hash__ = None\ndef add(a, b): return E()"


def score(program: str, tests: str = TESTS, **options: int) -> float:
    task = Sample("Add two numbers.", labels=(Label("test", tests),))
    return Code(**{"seconds": 1, "megabytes": 256, **options}).check(task, program)


# Each of them would get a verdict without adding anything.
CHEATS = {
    "echo": "print(input(), end='')",
    "echo all": "import sys\nsys.stdout.write(sys.stdin.read())",
    "copy descriptors": "import os\nos.sendfile(1, 0, 0, 10**6)",
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit when called": "import os\ndef add(a, b): os._exit(0)",
    "SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "GeneratorExit": "def add(a, b): raise GeneratorExit",
    "own base exception": "class X(BaseException): pass\ndef add(a, b): raise X",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return 0",
    "excepthook": "import sys\nsys.excepthook = lambda *a: None\ndef add(a, b): return 1/0",
    "unraisablehook": "import sys\nsys.unraisablehook = print\ndef add(a, b): return 1/0",
    "equal to all": ALWAYS.format("__eq__", "True"),
    "never different": ALWAYS.format("__ne__", "False"),
    "equal in a list": "class E(list):\n    def __eq__(s, o): return True\n"
    "    __hash__ = None\ndef add(a, b): return E()",
    "equal integer": "class E(int):\n    def __eq__(s, o): return True\n"
    "    __hash__ = int.__hash__\ndef add(a, b): return E(9)",
    "equal text": "class E(str):\n    def __eq__(s, o): return True\n"
    "    __hash__ = str.__hash__\ndef add(a, b): return E('x')",
    "equal by metaclass": "class M(type):\n    def __eq__(s, o): return True\n"
    "    __hash__ = type.__hash__\nclass E(metaclass=M): pass\ndef add(a, b): return E",
    "pretends to be an int": "class E:\n    __class__ = int\n    def __eq__(s, o): return True\n"
    "    __hash__ = None\ndef add(a, b): return E()",
    "mock": "from unittest import mock\ndef add(a, b): return mock.ANY",
    "frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n"
    "        for v in f.f_locals.values():\n            if v == 3: return v\n        f = f.f_back",
    "frames changed": "import sys\ndef add(a, b):\n    f = sys._getframe().f_back\n    while f:\n"
    "        f.f_locals.update(passed=9, failed=0); f.f_globals.update(passed=9)\n"
    "        f = f.f_back",
    "garbage collector": "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict) and 'tests' in o: return o['tests']",
    "main module": "import __main__\nfor n in dir(__main__):\n    if not n.startswith('__'):\n"
    "        setattr(__main__, n, lambda *a: {'value': 3})\ndef add(a, b): return 0",
    "writes a verdict": "import os\nfor f in range(3, 40):\n    try: os.write(f, b'{\"loaded\": true,"
    ' "passed": 9, "failed": 0}\\n\' * 3)\n    except OSError: pass\ndef add(a, b): return 0',
    "writes replies": "import os, sys\nfor f in range(3, 40):\n    try: os.write(f, b'"
    '{"loaded": true, "names": {"add": {"value": 3}}}\\n{"value": {"i": "0x3"}}\\n'
    '{"value": {"i": "0x3"}}\\n\')\n    except OSError: pass\n',
    "builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.__build_class__ = 1\n"
    "def add(a, b): return 0",
    "isinstance": "import builtins\nbuiltins.isinstance = lambda *a: True\ndef add(a, b): return 0",
    "json": "import json\njson.dumps = lambda m: '{\"value\": {\"i\": \"0x3\"}}'\n"
    "def add(a, b): return 0",
    "compile": "import builtins\nbuiltins.compile = builtins.exec = lambda *a, **k: None\n"
    "def add(a, b): return 0",
    "trace": "import sys\nsys.settrace(lambda *a: None)\ndef add(a, b): return 0",
    "profile": "import sys\nsys.setprofile(lambda f, e, a: f.f_locals.clear())\n"
    "def add(a, b): return 0",
    "audit hook": "import sys\nsys.addaudithook(lambda *a: None)\ndef add(a, b): return 0",
    "import hook": "import sys\nclass F:\n    def find_spec(*a): raise SystemExit\n"
    "sys.meta_path.insert(0, F())\ndef add(a, b): return 0",
    "modules": "import sys\nsys.modules.clear()\ndef add(a, b): return 0",
    "recursion limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "callback": "def add(a, b):\n    return a.__class__.__base__.__subclasses__()",
    "returns itself": "def add(a, b): return add",
    "nested answer": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "deep answer": "def add(a, b):\n    x = 0\n    for _ in range(10**5): x = [x]\n    return x",
    "huge answer": "def add(a, b): return 'x' * 10**8",
    "huge number": "def add(a, b): return 1 << 10**7",
    "flood of output": "while True: print('x' * 10**6)",
    "flood when called": "def add(a, b):\n    while True: print('x' * 10**6)",
    "flood of replies": "import os\ndef add(a, b):\n    while True:\n"
    "        for f in range(3, 9):\n            try: os.write(f, b'x' * 4096)\n"
    "            except OSError: pass",
    "loop": "while True: pass",
    "sleeps": "def add(a, b):\n    import time\n    time.sleep(99)",
    "ignores signals": "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)"
    "\n    except (OSError, ValueError): pass\ndef add(a, b):\n    while True: pass",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "kills all": "import os\nfor p in range(1, 40):\n    try: os.kill(p, 9)\n    except OSError: pass",
    "memory": "x = 'a' * 10**10",
    "memory when called": "def add(a, b): return [0] * 10**10",
    "regular expression": "import re\ndef add(a, b): return re.match('(a+)+$', 'a' * 50 + '!')",
    "subclass of float": "class F(float):\n    def __sub__(s, o): return 0.0\n"
    "    def __rsub__(s, o): return 0.0\n    def __eq__(s, o): return True\n"
    "    __hash__ = None\ndef add(a, b): return F()",
    "null bytes": "\0" * 100,
    "surrogates": "def add(a, b): return '\\ud800'",
    "encoding line": "# -*- coding: rot13 -*-\ndef add(a, b): return 0",
    "syntax": "def add(a, b:",
    "deep source": "(" * 5000 + ")" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_a_program_that_does_not_solve_the_task_is_not_rewarded(name: str) -> None:
    assert score(CHEATS[name]) <= 0.1


def test_objects_of_an_answer_are_not_asked_about_values_of_the_tests() -> None:
    near = "assert abs(add(1, 2) - 3) < 1e-6\nassert add(1, 2) > 2\nassert 3 <= add(1, 2) <= 3\n"
    body = "".join(
        f"    def __{n}__(s, *a): return {v}\n"
        for n, v in {"sub": "0.0", "abs": "s", "lt": "True", "gt": "True", "le": "True",
                     "ge": "True", "rsub": "0.0", "bool": "True"}.items()
    )  # fmt: skip
    assert score(f"class E:\n{body}\ndef add(a, b): return E()", near) <= 0.1
    inside = "assert 3 in add(1, 2)\n"
    assert score(ALWAYS.format("__contains__", "True"), inside) <= 0.1


def test_passed_tests_are_counted_to_the_end() -> None:
    tests = "for i in range(10):\n    assert add(i, 0) == i\n"
    once = (
        "import os\nn = 0\ndef add(a, b):\n    global n\n    n += 1\n    if n > 2: os._exit(0)\n"
        "    return a"
    )
    assert score(once, tests) == pytest.approx(0.2)
    assert score("def add(a, b):\n    while a > 2: pass\n    return a", tests) == pytest.approx(0.3)
    skipped = "x = add(1, 1)\nassert x == 2\nassert add(2, 2) == 4\n"
    assert score("def add(a, b): raise ValueError", f"def t():\n{indented(skipped)}\nt()") <= 0.1


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("import sys\nx = sys.stdin.read()\ndef add(a, b): return a + b", TESTS),
        ("def srt(x): x.sort()", "v = [3, 1]\nsrt(v)\nassert v == [1, 3]"),
        ("def app(f, v): return [f(i) for i in v]", "assert app(lambda i: i + 1, [1]) == [2]"),
        ("def g():\n    yield 1\n    yield 2", "assert list(g()) == [1, 2]"),
        ("class S(set): pass\ns = S()", "s.add(3)\nassert 3 in s\nassert 4 not in s"),
        (
            "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n"
            "    def __eq__(s, o): return isinstance(o, V) and s.x == o.x",
            "assert V(1) + V(2) == V(3)\nassert V(1) != V(2)",
        ),
        (
            "def f(x):\n    if x < 0: raise ValueError(x)\n    return x",
            "try:\n    f(-1)\n    assert False\nexcept ValueError: pass\nassert f(1) == 1",
        ),
        ("import math\ndef root(x): return math.sqrt(x)", "assert abs(root(2) ** 2 - 2) < 1e-9"),
        ("def f(): return {1: (2, 3.5)}, {4}, b'5', 6j, None, True, 2**90",
         "assert f() == ({1: (2, 3.5)}, {4}, b'5', 6j, None, True, 2**90)"),
    ],
)  # fmt: skip
def test_honest_programs_pass(program: str, tests: str) -> None:
    assert score(program, tests) == 1.0


def observed(source: str, limits: Limits | None = None) -> list[str]:
    """Return the lines that a program in the sandbox passes to its function `say`."""
    reading, writing = os.pipe()
    say = f"import os\ndef say(*a): os.write({writing}, (' '.join(map(str, a)) + '\\n').encode())\n"
    process = Process(say + source, limits or Limits(seconds=1, clock_s=5), [writing])
    os.close(writing)
    text = b""
    while part := os.read(reading, 65536):
        text += part
    os.close(reading)
    process.end()
    return text.decode().splitlines()


def attempt(statement: str) -> str:
    """Return a program that says "refused" if a statement raises an exception, else "done"."""
    return f"try:\n{indented(statement)}\n    say('done')\nexcept BaseException: say('refused')\n"


REFUSED = {
    "fork": "os.fork()",
    "vfork": "import _posixsubprocess, subprocess\nsubprocess.run(['/bin/true'])",
    "posix_spawn": "os.posix_spawn('/usr/bin/python3', ['python3'], {})",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "many threads": "import _thread\n_thread.start_new_thread(print, ())",
    "forkpty": "os.forkpty()",
    "multiprocessing": "import multiprocessing as m\nm.Process(target=print).start()",
    "clone by number": "import ctypes\nassert ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0",
    "socket": "import socket\nsocket.socket()",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "names": "import socket\nsocket.getaddrinfo('example.org', 80)",
    "write to the system": "open('/usr/lib/x', 'w')",
    "write to the root": "open('/x', 'w')",
    "write to /dev/shm": "open('/dev/shm/x', 'w')",
    "write to /proc": "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)",
    "oom score": "os.open('/proc/self/oom_score_adj', os.O_WRONLY)",
    "read passwords": "open('/etc/passwd').read()",
    "read shadow": "open('/etc/shadow').read()",
    "read the home": "os.listdir(os.path.expanduser('~nobody')) or os.listdir('/home')",
    "read the repository": f"os.listdir({str(ROOT)!r})",
    "read another process": "os.listdir('/proc/1/cwd')",
    "read memory of another": "open('/proc/1/mem', 'rb').read(1)",
    "list processes": "os.listdir('/proc/self')",
    "kernel log": "import ctypes\nassert ctypes.CDLL(None).klogctl(10, 0, 0) >= 0",
    "trace": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "shared memory": "import ctypes\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
    "message queue": "import ctypes\nassert ctypes.CDLL(None).msgget(0, 0o1600) >= 0",
    "keys": "import ctypes\nassert ctypes.CDLL(None).syscall(248, b'user', b'k', b'v', 1, -3) >= 0",
    "new namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0",
    "chroot": "os.chroot('/tmp')",
    "become root": "os.setuid(0)",
    "raise a limit": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))",
    "device": "os.mknod('/tmp/d', 0o60600, os.makedev(259, 0))",
    "load a module": "import ctypes\nassert ctypes.CDLL(None).syscall(175, b'', 0, b'') == 0",
    "priority": "os.nice(-5)",
    "clock": "import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)",
    "host name": "import socket\nsocket.sethostname('x')",
    "reboot": "import ctypes\nassert ctypes.CDLL(None).reboot(0x4321fedc) == 0",
    "packages": "import numpy",
    "large file": "open('/tmp/x', 'wb').write(b'0' * 2**22)",
    "many files": "[open(f'/tmp/{i}', 'wb').write(b'0' * 2**19) for i in range(99)]",
    "many open files": "x = [open('/dev/null') for _ in range(99)]",
    "memory": "bytearray(2**30)",
    "mapped memory": "import mmap\nx = [mmap.mmap(-1, 2**27) for _ in range(9)]",
    "terminal": "open('/dev/tty', 'w').write('x')",
    "parent's environment": "assert len(os.environ) > 2",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_sandbox_refuses(name: str) -> None:
    assert observed(attempt(REFUSED[name])) == ["refused"]


def test_the_program_ends_with_its_sandbox_and_leaves_nothing() -> None:
    before = set(Path(tempfile.gettempdir()).glob("instructgen-*"))
    start = time.monotonic()
    process = Process("import time\ntime.sleep(1000)", Limits())
    process.end()
    assert time.monotonic() - start < 20
    assert set(Path(tempfile.gettempdir()).glob("instructgen-*")) == before


def test_a_program_dies_with_its_parent() -> None:
    code = (
        "import os, sys\nfrom instructgen.verifiers.sandbox import Limits, Process\n"
        "r, w = os.pipe()\nos.set_inheritable(w, True)\n"
        "p = Process(f'import os, time\\nos.write({w}, b\"x\")\\ntime.sleep(1000)', Limits(), [w])\n"
        "os.read(r, 1)\nprint(p._popen.pid, flush=True)\nos._exit(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    pid = Path(f"/proc/{int(done.stdout)}")
    end = time.monotonic() + 10
    while pid.exists() and " Z " not in (pid / "stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_code_is_refused_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "works", lambda: False)
    with pytest.raises(ConfigError) as caught:
        verifiers_of(["verifiers:code"])
    assert "--unsafe-code-execution" in str(caught.value)
    with pytest.raises(ConfigError):
        score("def add(a, b): return a + b")
    (code,) = verifiers_of(["verifiers:code"], unsafe=True)
    task = Sample("Add two numbers.", labels=(Label("test", TESTS),))
    assert code.check(task, "def add(a, b): return a + b") == 1.0
    assert code.check(task, "def add(a, b): return a") < 1.0


WRONG = """
def _wrong(v):
    if v is None: return 0
    if isinstance(v, bool): return not v
    if isinstance(v, (int, float)): return v + 1
    if isinstance(v, str): return v + "x"
    if isinstance(v, dict): return {**v, "x": 1}
    return type(v)([*v, "x"]) if isinstance(v, (list, tuple)) else None
_right = %s
def %s(*args): return _wrong(_right(*args))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.long)])
def test_humaneval_solutions_pass_and_changed_ones_fail(step: int) -> None:
    with gzip.open(real("humaneval/HumanEval.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 164
    rows = rows[::step]

    def scores(change: Callable[[str], str]) -> list[float]:
        def one(row: dict[str, str]) -> float:
            solution = row["prompt"] + row["canonical_solution"]
            name = row["entry_point"]
            program = solution + change(name)
            return score(program, f"{row['test']}\ncheck({name})", seconds=8, megabytes=512)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, rows))

    assert scores(lambda _: "") == [1.0] * len(rows)
    assert max(scores(lambda name: WRONG % (name, name))) < 1.0
