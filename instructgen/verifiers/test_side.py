"""Runs inside the sandbox: executes the tests of a row, and counts those that pass.

The answer's code is in another process (`answer_side.py`); its functions are called over a pipe.
The result goes to a pipe that only this process has. What the answer's code returns is compared as
plain values: its objects are not asked whether they equal a value of the tests. `code.py` passes
this file, after `answer_side.py`, as the source of a process.
"""

import ast
import builtins
import importlib
import json
import os
import signal
import sys

NONCE = os.urandom(8).hex()


class Late(BaseException):
    """The answer's code has used up its time."""


class Remote:
    """An object of the answer's code."""

    def __init__(self, side, number):
        self.__dict__["_side"], self.__dict__["_number"] = side, number

    def __getattr__(self, name):
        return self._side.ask({"object": self._number, "name": name})

    def __call__(self, *args, **kwargs):
        return self._side.call(self._number, args, kwargs)

    def __eq__(self, other):
        if not isinstance(other, Remote):
            return False
        return self._number == other._number or self._says("__eq__", other)

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return hash(self._number)

    def __contains__(self, value):
        return self._says("__contains__", value)

    def _says(self, name, value):
        """Return the object's answer, unless it gives the same one for a value of no meaning."""
        return self._special(name, value) is True and self._special(name, NONCE) is not True

    def _special(self, name, *args):
        try:
            method = self._side.ask({"object": self._number, "name": name})
        except AttributeError:
            # As Python does for an object without this method.
            raise TypeError(name) from None
        return method(*args)


def _forwarded(name, binary):
    def method(self, *args):
        # An object that is asked whether it is below a value of the tests would say yes, and one
        # from which the value is subtracted would return 0.
        if binary and not all(isinstance(arg, Remote) for arg in args):
            raise TypeError("an object of the answer's code is not a number")
        return self._special(name, *args)

    return method


for _names, _binary in (
    (
        "len getitem setitem delitem iter next str repr bool int float index abs neg enter exit",
        False,
    ),
    ("add sub mul truediv floordiv mod pow lt le gt ge and or xor", True),
):
    for _name in _names.split():
        setattr(Remote, f"__{_name}__", _forwarded(f"__{_name}__", _binary))


class Side:
    """The process with the answer's code."""

    def __init__(self, reading, writing):
        self.reading, self.writing = reading, writing
        self.functions = []
        self.ended = False

    def keep(self, value):
        if isinstance(value, Remote):
            return value._number
        if not callable(value):
            raise TypeError("such an object cannot be passed to the answer's code")
        self.functions.append(value)
        return [len(self.functions) - 1]

    def find(self, number):
        return Remote(self, int(number))

    def call(self, number, args, kwargs):
        message = {
            "object": number,
            "args": [encode(a, self.keep) for a in args],
            "kwargs": {k: encode(v, self.keep) for k, v in kwargs.items()},
        }
        return self.ask(message, args)

    def ask(self, message, args=()):
        """Return the reply to a message. All tests after the end of the other process fail."""
        if self.ended:
            raise RuntimeError("the process with the answer's code has ended")
        try:
            send(self.writing, message)
            while "callback" in (reply := receive(self.reading)):
                self._serve(reply)
            if "error" not in reply:
                return self._value(reply, args)
            error = _error(*reply["error"])
        except (Broken, Late, OSError, TypeError, KeyError, ValueError) as reason:
            self.ended = True
            raise RuntimeError("the process with the answer's code sent no reply") from reason
        raise error

    def _value(self, reply, args):
        for mine, changed in zip(args, reply.get("args", ()), strict=False):
            _update(mine, decode(changed, self.find))
        return decode(reply["value"], self.find)

    def _serve(self, message):
        try:
            args = [decode(a, self.find) for a in message["args"]]
            kwargs = {k: decode(v, self.find) for k, v in message["kwargs"].items()}
            value = encode(self.functions[message["callback"]](*args, **kwargs), self.keep)
            send(self.writing, {"returned": "value", "value": value})
        except Broken:
            raise
        except Exception:
            send(self.writing, {"returned": "error"})


def _error(names, text):
    """Return an exception of the nearest built-in class; those that end a program are not used."""
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(str(text))
            except TypeError:
                continue
    return RuntimeError(str(text))


def _update(mine, changed):
    """Change an argument as the answer's code has changed its copy of it."""
    if type(mine) is not type(changed):
        return
    if isinstance(mine, (list, bytearray)):
        mine[:] = changed
    elif isinstance(mine, (dict, set)):
        mine.clear()
        mine.update(changed)


def _late(*_):
    raise Late


class Counting(ast.NodeTransformer):
    """Replaces each assertion by one that is counted and does not end the tests."""

    def visit_Assert(self, node):
        passed = ast.Expr(ast.Call(ast.Name("__passed__", ast.Load()), [], []))
        handlers = [
            ast.ExceptHandler(
                ast.Name(kind, ast.Load()),
                None,
                [ast.Expr(ast.Call(ast.Name(name, ast.Load()), [], []))],
            )
            for kind, name in (("AssertionError", "__false__"), ("Exception", "__failed__"))
        ]
        return ast.copy_location(ast.Try([node], handlers, [passed], []), node)


def run(tests, scope):
    """Execute the tests; return the numbers of passed and failed ones.

    ``false`` is the number of those that failed because the assertion was false.
    """
    counts = {"passed": 0, "failed": 0, "false": 0}

    def count(*names):
        def add():
            for name in names:
                counts[name] += 1

        return add

    scope |= {"__passed__": count("passed"), "__failed__": count("failed")}
    scope["__false__"] = count("failed", "false")
    tree = ast.parse(tests)
    written = sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
    entered = set()
    scope["__entered__"] = entered.add
    calls = _test_calls(tree.body)
    for call, function in calls.items():
        function.body[:0] = ast.parse(f"__entered__({call!r})").body

    def execute(statement):
        try:
            exec(compile(ast.Module([statement], []), "tests", "exec"), scope)
        except Exception:
            counts["failed"] += 1

    for statement in tree.body:
        execute(ast.fix_missing_locations(Counting().visit(statement)))
    # As pytest does, functions are called that are tests, unless the tests have called them.
    for call in calls:
        if call not in entered:
            execute(ast.parse(call).body[0])
    if counts["failed"]:
        # An exception outside of an assertion skips those after it.
        counts["failed"] = max(counts["failed"], written - counts["passed"])
    return counts


def _test_calls(body, before=""):
    """Return the calls of functions and methods that are tests, each with its definition."""
    calls = {}
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test") and not node.bases:
            calls |= _test_calls(node.body, f"{node.name}().")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            if ast.unparse(node.args) == ("self" if before else ""):
                calls[f"{before}{node.name}()"] = node
    return calls


def _of_python(name, task):
    """Return whether the tests use a name for what it is in Python, whatever the answer defines."""
    if name in task["own"]:
        return False
    if hasattr(builtins, name):
        return True
    # A function may have the name of a module, but not what the tests get from the module.
    return name in sys.stdlib_module_names and f"{name}." in task["tests"]


def main():
    """Run the tests of the task against the answer's functions, and write the verdict."""
    reading, writing, task, verdict = (
        open(int(number), mode)
        for number, mode in zip(sys.argv[1:5], ("rb", "wb", "rb", "wb"), strict=True)
    )
    side, task = Side(reading, writing), receive(task)
    result = {"loaded": False, "passed": 0, "failed": 0, "false": 0}
    try:
        send(side.writing, {"program": task["program"]})
        names = receive(side.reading)
        result["loaded"] = names["loaded"] is True
        if result["loaded"]:
            scope = {"__name__": "__tests__"}
            for name, what in names["names"].items():
                if "module" in what:
                    if what["module"] in sys.stdlib_module_names:
                        scope[name] = importlib.import_module(what["module"])
                elif not _of_python(name, task):
                    scope[name] = decode(what["value"], side.find)
                elif not hasattr(builtins, name):
                    scope[name] = importlib.import_module(name)
            # The answer's code may never end. Then the tests after that fail at once.
            signal.signal(signal.SIGALRM, _late)
            signal.setitimer(signal.ITIMER_REAL, float(task["seconds"]))
            result |= run(task["tests"], scope)
    except (Broken, Late, KeyError, TypeError, ValueError, AttributeError, OSError, ImportError):
        result["failed"] += 1
    verdict.write(json.dumps(result).encode())
    verdict.close()


if __name__ == "__main__" and len(sys.argv) == 5:
    main()
