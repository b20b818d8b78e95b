"""Runs inside the sandbox: executes the tests of a row, and counts those that pass.

The answer's code is in another process (`answer_side.py`); its functions are called over a pipe. The
result goes to a pipe that only this process has. An answer's object is never asked whether it equals
a value of the tests. `code.py` passes this file, after `answer_side.py`, as the source of a process.
"""

import ast
import builtins
import importlib
import json
import sys


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
        return self._number == other._number or self._special("__eq__", other) is True

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return hash(self._number)

    def _special(self, name, *args):
        try:
            method = self._side.ask({"object": self._number, "name": name})
        except AttributeError:
            # As Python does for an object without this method.
            raise TypeError(name) from None
        return method(*args)


def _forwarded(name):
    def method(self, *args):
        return self._special(name, *args)

    return method


for _name in (
    "len getitem setitem delitem contains iter next str repr bool int float index abs neg add sub mul "
    "truediv floordiv mod pow lt le gt ge enter exit radd rsub rmul and or xor"
).split():
    setattr(Remote, f"__{_name}__", _forwarded(f"__{_name}__"))


class Side:
    """The process with the answer's code."""

    def __init__(self, reading, writing):
        self.reading, self.writing = reading, writing
        self.functions = []

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
        send(self.writing, message)
        while "callback" in (reply := receive(self.reading)):
            self._serve(reply)
        if "error" in reply:
            raise _error(*reply["error"])
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


class Counting(ast.NodeTransformer):
    """Replaces each assertion by one that is counted and does not end the tests."""

    def visit_Assert(self, node):
        passed = ast.Expr(ast.Call(ast.Name("__passed__", ast.Load()), [], []))
        failed = ast.Expr(ast.Call(ast.Name("__failed__", ast.Load()), [], []))
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [failed])
        return ast.copy_location(ast.Try([node], [handler], [passed], []), node)


def run(tests, scope):
    """Execute the tests; return the numbers of passed and failed ones."""
    counts = {"passed": 0, "failed": 0}

    def count(name):
        def add():
            counts[name] += 1

        return add

    scope |= {"__passed__": count("passed"), "__failed__": count("failed")}
    for statement in ast.parse(tests).body:
        changed = ast.fix_missing_locations(Counting().visit(statement))
        try:
            exec(compile(ast.Module([changed], []), "tests", "exec"), scope)
        except Broken:
            counts["failed"] += 1
            break
        except Exception:
            counts["failed"] += 1
    return counts


def main():
    reading, writing, task, verdict = (
        open(int(number), mode)
        for number, mode in zip(sys.argv[1:5], ("rb", "wb", "rb", "wb"), strict=True)
    )
    side, task = Side(reading, writing), receive(task)
    result = {"loaded": False, "passed": 0, "failed": 0}
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
                else:
                    scope[name] = decode(what["value"], side.find)
            result |= run(task["tests"], scope)
    except (Broken, KeyError, TypeError, ValueError, AttributeError, OSError, ImportError):
        result["failed"] += 1
    verdict.write(json.dumps(result).encode())
    verdict.close()


if __name__ == "__main__" and len(sys.argv) == 5:
    main()
