"""Runs inside the sandbox: executes an answer's code, and calls its functions for the tests.

The code shares this process, so nothing here is a secret or a verdict: whatever it changes, it can
only change what its own functions return. `code.py` passes this file as the source of a process.
"""

import json
import sys

LONGEST = 1 << 20


class Broken(Exception):
    """The other side sent something that is not a message."""


def encode(value, keep):
    """Return a value as JSON values with tags; ``keep`` returns the number of another object.

    Subclasses of the basic types become the basic types, so that no method of theirs is called.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"i": hex(int.__index__(value))}
    if isinstance(value, float):
        return {"n": float.hex(value)}
    if isinstance(value, complex):
        return {"c": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        return {"b" if isinstance(value, bytes) else "a": bytes(value).hex()}
    for tag, kind in (("l", list), ("t", tuple), ("s", set), ("f", frozenset)):
        if isinstance(value, kind):
            return {tag: [encode(each, keep) for each in kind.__iter__(value)]}
    if isinstance(value, dict):
        return {"d": [[encode(k, keep), encode(v, keep)] for k, v in dict.items(value)]}
    return {"r": keep(value)}


def decode(value, find):
    """Return the value that `encode` encoded; ``find`` returns the object with a number."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise Broken
    ((tag, inner),) = value.items()
    if tag == "i":
        return int(inner, 16)
    if tag == "n":
        return float.fromhex(inner)
    if tag == "c":
        return complex(float.fromhex(inner[0]), float.fromhex(inner[1]))
    if tag in ("b", "a"):
        return (bytes if tag == "b" else bytearray).fromhex(inner)
    if tag in ("l", "t", "s", "f"):
        kind = {"l": list, "t": tuple, "s": set, "f": frozenset}[tag]
        return kind(decode(each, find) for each in inner)
    if tag == "d":
        return {decode(k, find): decode(v, find) for k, v in inner}
    if tag == "r":
        return find(inner)
    raise Broken


def send(stream, message):
    """Write a message; one that is too long becomes an error."""
    text = json.dumps(message)
    if len(text) >= LONGEST:
        text = json.dumps({"error": [["ValueError"], "the value is too large"]})
    stream.write(text.encode() + b"\n")
    stream.flush()


def receive(stream):
    """Return the next message. Raise Broken if there is none."""
    line = stream.readline(LONGEST + 1)
    if not line.endswith(b"\n"):
        raise Broken
    try:
        message = json.loads(line)
    except ValueError:
        raise Broken from None
    if not isinstance(message, dict):
        raise Broken
    return message


class Answers:
    """Answers the messages of the other side: reads attributes and calls functions."""

    def __init__(self, reading, writing):
        self.reading, self.writing = reading, writing
        self.objects = []

    def keep(self, value):
        for number, known in enumerate(self.objects):
            if known is value:
                return number
        self.objects.append(value)
        return len(self.objects) - 1

    def find(self, number):
        return self.callback(number[0]) if isinstance(number, list) else self.objects[number]

    def callback(self, number):
        """Return a function that calls function ``number`` of the tests."""

        def call(*args, **kwargs):
            arguments = {
                "args": [encode(a, self.keep) for a in args],
                "kwargs": {k: encode(v, self.keep) for k, v in kwargs.items()},
            }
            send(self.writing, {"callback": number, **arguments})
            while "returned" not in (message := receive(self.reading)):
                self.answer(message)
            if message["returned"] == "error":
                raise RuntimeError("a function of the tests failed")
            return decode(message["value"], self.find)

        return call

    def answer(self, message):
        """Send the value that a message asks for, or the names of the classes of the error."""
        args = [decode(a, self.find) for a in message.get("args", ())]
        kwargs = {k: decode(v, self.find) for k, v in message.get("kwargs", {}).items()}
        try:
            target = self.objects[message["object"]]
            result = (
                getattr(target, message["name"]) if "name" in message else target(*args, **kwargs)
            )
            reply = {
                "value": encode(result, self.keep),
                "args": [encode(a, self.keep) for a in args],
            }
        except BaseException as error:
            # The answer's code can raise anything, and the other side is told.
            names = [c.__name__ for c in type(error).__mro__]
            try:
                text = str(error)[:1000]
            except BaseException:
                text = ""
            reply = {"error": [names, text]}
        send(self.writing, reply)

    def load(self, program):
        """Execute the program, and send the names that it defines."""
        scope = {"__name__": "__main__"}
        try:
            exec(compile(program, "answer", "exec"), scope)
        except BaseException:
            send(self.writing, {"loaded": False})
            return False
        names = {}
        for name, value in list(scope.items()):
            if isinstance(name, str) and not name.startswith("__"):
                module = isinstance(value, type(sys))
                known = (
                    {"module": value.__name__} if module else {"value": encode(value, self.keep)}
                )
                names[name] = known
        send(self.writing, {"loaded": True, "names": names})
        return True


def main():
    """Load the program that the other side sends, then answer its messages until it ends."""
    answers = Answers(open(int(sys.argv[1]), "rb"), open(int(sys.argv[2]), "wb"))
    if not answers.load(receive(answers.reading)["program"]):
        return
    while True:
        try:
            message = receive(answers.reading)
        except Broken:
            return
        answers.answer(message)


if __name__ == "__main__" and len(sys.argv) == 3:
    main()
