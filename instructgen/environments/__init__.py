"""Environments, in which the tools of a conversation are executed.

An environment is a Python class in a file that the user names on the command line. It loads data
and executes tools. It must be deterministic: the same calls always give the same results.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import orjson
import regex

from instructgen.config import read_small
from instructgen.errors import ConfigError, first_line
from instructgen.schema.messages import json_text

# As for OpenAI, with letters of other scripts, and dots.
_NAME = re.compile(r"[\w.-]{1,64}")
# The form of the calls of models that are trained with the template of Hermes or Qwen.
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_FENCED = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)
# What the check of one call may need, because schemas can be written by anybody.
_STEPS, _PATTERN_S = 100_000, 1.0


class ToolError(Exception):
    """An error that a tool reports to the assistant, such as an unknown number."""


class Environment(ABC):
    """Base class for environments. Each object has its own copy of the data.

    A tool is a method with the same name. It takes the arguments of a call, and returns a value
    that JSON can express, or raises `ToolError`.
    """

    name: ClassVar[str]

    @abstractmethod
    def state(self) -> Any:
        """Return everything that tools can change, as a value that JSON can express."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Execute a tool. The name and the arguments have been checked against the definitions.

        Raises:
            ToolError: the tool says so, there is no such tool, or its method does not take these
                arguments, because the schema allows more than it does.
        """
        if not has_tool(type(self), name):
            raise ToolError(f"there is no tool {name!r}")
        tool = getattr(self, name)
        try:
            inspect.signature(tool).bind(**arguments)
        except TypeError as error:
            raise ToolError(str(error)) from None
        return tool(**arguments)

    def close(self) -> None:  # noqa: B027 (most environments have nothing to release)
        """Release the data."""


def has_tool(environment: type[Environment], name: str) -> bool:
    """Return whether a method of an environment is a tool, and not one of the base class."""
    own = not name.startswith("_") and not hasattr(Environment, name)
    return own and callable(getattr(environment, name, None))


class SqliteEnvironment(Environment):
    """An environment whose data is an SQLite database in memory.

    ``script`` is a file of SQL statements that creates the tables and fills them. Tools use
    ``self.database``. What a tool changed before it raised `ToolError` is undone.
    """

    script: ClassVar[Path]

    def __init__(self) -> None:
        """Create the database."""
        self.database = sqlite3.connect(":memory:")
        self.database.row_factory = sqlite3.Row
        self.database.executescript(self.script.read_text("utf-8"))

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Execute a tool, in a transaction."""
        with self.database:
            try:
                return super().call(name, arguments)
            except OverflowError as error:
                # A number of more than 64 bits.
                raise ToolError(str(error)) from None

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query as dicts."""
        return [dict(row) for row in self.database.execute(query, values)]

    def state(self) -> dict[str, list[list[Any]]]:
        """Return the rows of all tables, in the order of their values."""
        names = self.rows("select name from sqlite_schema where type = 'table' order by name")
        tables = [each["name"] for each in names]
        return {
            table: sorted(
                (list(row) for row in self.database.execute(f'select * from "{table}"')),  # noqa: S608
                key=repr,
            )
            for table in tables
        }

    def close(self) -> None:
        """Close the database."""
        self.database.close()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, as an assistant wrote it; ``arguments`` may be any JSON value."""

    name: str
    arguments: Any

    def to_dict(self) -> dict[str, Any]:
        """Return the call as a dict."""
        return {"name": self.name, "arguments": self.arguments}


class Tools:
    """The tools of a conversation, in the form of OpenAI: names, descriptions and JSON Schemas.

    Args:
        definitions: the list of tools, each as {"type": "function", "function": {...}} or only the
            part under "function".

    Raises:
        ValueError: a definition or a schema is invalid.
    """

    def __init__(self, definitions: Any) -> None:
        from jsonschema import Draft202012Validator, SchemaError
        from referencing import Registry

        validator = _limited_validator()
        if not isinstance(definitions, list) or not definitions:
            raise ValueError("the tools must be a list of definitions")
        self._validators: dict[str, Any] = {}
        listed: list[dict[str, Any]] = []
        for number, item in enumerate(definitions, start=1):
            function = item.get("function", item) if isinstance(item, dict) else None
            if not isinstance(function, dict):
                raise ValueError(f"tool {number} is not an object")
            name = function.get("name")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"tool {number} has no valid name")
            if name in self._validators:
                raise ValueError(f"two tools have the name {name}")
            schema = function.get("parameters", {"type": "object"})
            if not isinstance(schema, dict):
                raise ValueError(f"the parameters of {name} are not an object")
            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"the parameters of {name}: {first_line(error)}") from None
            _check_references(name, schema)
            # With an empty registry, nothing is read from files or the network.
            self._validators[name] = validator(schema, registry=Registry())
            listed.append({"type": "function", "function": {**function, "parameters": schema}})
        self.text = json_text(listed)

    @property
    def names(self) -> list[str]:
        """The names of the tools, in order."""
        return [*self._validators]

    def call_schema(self) -> dict[str, Any]:
        """Return a JSON Schema for a call that engines enforce while they generate.

        It has the names, and of the arguments the names, simple types and choices: engines support
        only parts of JSON Schema. What it allows may still be invalid.
        """
        return {"anyOf": [_call_schema(each["function"]) for each in orjson.loads(self.text)]}

    def fault(self, call: Call) -> tuple[str, str] | None:
        """Return the reason and a sentence if a call is invalid, or None.

        The reason is ``unknown_tool`` or ``invalid_arguments``.
        """
        if call.name not in self._validators:
            known = ", ".join(self._validators)
            return "unknown_tool", f"there is no tool {call.name!r}; the tools are: {known}"
        if not isinstance(call.arguments, dict):
            return "invalid_arguments", "invalid arguments: they are not an object"
        _steps.left = _STEPS
        try:
            errors = sorted(
                self._validators[call.name].iter_errors(call.arguments),
                key=lambda e: [str(part) for part in e.path],
            )
        except (RecursionError, TimeoutError):
            return "invalid_arguments", "invalid arguments: they cannot be checked in time"
        if not errors:
            return None
        place = ".".join(map(str, errors[0].path))
        where = f"{place}: " if place else ""
        return "invalid_arguments", f"invalid arguments: {where}{errors[0].message}"[:400]


_SIMPLE = ("string", "integer", "number", "boolean", "array", "object")


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function["parameters"]
    properties = parameters.get("properties")
    arguments: dict[str, Any] = {"type": "object"}
    if properties:
        arguments |= {
            "properties": {name: _enforced(each) for name, each in properties.items()},
            "required": [name for name in parameters.get("required", ()) if name in properties],
            "additionalProperties": False,
        }
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": [function["name"]]},
            "arguments": arguments,
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _enforced(schema: Any) -> dict[str, Any]:
    """Return the part of a schema that all engines support, which may be empty."""
    kept: dict[str, Any] = {}
    if isinstance(schema, dict):
        if schema.get("type") in _SIMPLE:
            kept["type"] = schema["type"]
        choices = schema.get("enum")
        if choices and all(isinstance(choice, str) for choice in choices):
            kept |= {"type": "string", "enum": choices}
    return kept


_steps = threading.local()


@cache
def _limited_validator() -> Any:
    """Return the class that checks arguments, with a limit of steps and of the time of patterns.

    A schema of a few lines can need any number of steps, and so can a regular expression.
    """
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def counted(check: Any) -> Any:
        def step(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            _steps.left -= 1
            if _steps.left < 0:
                raise TimeoutError
            return check(validator, value, instance, schema)

        return step

    def pattern(validator: Any, value: str, instance: Any, schema: Any) -> Any:
        found = not isinstance(instance, str) or regex.search(value, instance, timeout=_PATTERN_S)
        if not found:
            yield ValidationError(f"{instance!r} does not match {value!r}")

    checks = {**Draft202012Validator.VALIDATORS, "pattern": pattern}
    return extend(Draft202012Validator, {key: counted(check) for key, check in checks.items()})


def _check_references(name: str, schema: Any) -> None:
    """Raise ValueError if a schema refers to something else, or to a part that it does not have."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            if not reference.startswith("#"):
                raise ValueError(f"the parameters of {name} refer to {reference!r}")
            resolver.lookup(reference)
        except (Unresolvable, TypeError):
            raise ValueError(
                f"the parameters of {name} refer to {reference!r}, which they do not have"
            ) from None


def _references(schema: Any) -> Iterator[str]:
    """Yield the references in a schema. Raise ValueError for what is not supported."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef"):
                yield str(value)
            elif key in ("$id", "$anchor", "$dynamicAnchor", "patternProperties"):
                # A property can have such a name; its value is then a schema.
                if not isinstance(value, dict) or key == "patternProperties":
                    raise ValueError(f"a schema has {key!r}, which is not supported")
            elif key == "pattern" and isinstance(value, str):
                try:
                    regex.compile(value)
                except regex.error as error:
                    raise ValueError(f"the pattern {value!r} is invalid: {error}") from None
            yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


@lru_cache(maxsize=256)
def tools_of(text: str) -> Tools:
    """Return the tools that a JSON text defines.

    Raises:
        ValueError: the text is not JSON, or a definition is invalid.
    """
    return Tools(json.loads(text))


def read_tools(path: Path) -> str:
    """Return the definitions of the tools in a JSON file, as one line of JSON.

    Raises:
        ConfigError: the file cannot be read or a definition is invalid.
    """
    try:
        return tools_of(read_small(path).decode()).text
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--tools={path}: {first_line(error)}.",
            "Pass a JSON file with a list of tools, each with a name, a description and parameters "
            "(a JSON Schema).",
        ) from error


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text, possibly with other text around it, or {}."""
    start, end = text.find("{"), text.rfind("}")
    try:
        value: Any = orjson.loads(text[start : end + 1])
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def calls_of(values: Any) -> list[Call] | None:
    """Return calls that JSON describes, or None if one does not have the form."""
    if not isinstance(values, list):
        return None
    calls = []
    for value in values:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            # Servers write the arguments as JSON text.
            try:
                arguments = orjson.loads(arguments)
            except orjson.JSONDecodeError:
                return None
        try:
            orjson.dumps(arguments)
        except TypeError:
            # It reads deeper values than it writes.
            return None
        calls.append(Call(value["name"], arguments))
    return calls


def read_turn(text: str) -> tuple[list[Call] | None, str]:
    """Return the calls and the text of a turn; None for calls that do not have the form."""
    if tagged := _TAGGED.findall(text):
        values = [json_object(part) for part in tagged]
        # A model that continues after a call invents the result.
        return calls_of(values), text[: text.index("<tool_call>")].strip()
    stripped = text.strip()
    if fenced := _FENCED.fullmatch(stripped):
        stripped = fenced[1].strip()
    if not stripped.startswith("{"):
        # Calls in another form are not an answer.
        is_call = '"calls"' in stripped or ('"name"' in stripped and '"arguments"' in stripped)
        return (None, "") if is_call else ([], text.strip())
    turn = json_object(stripped)
    message = turn.get("message", "")
    if not isinstance(message, str) or not turn.keys() & {"calls", "message"}:
        return None, ""
    return calls_of(turn.get("calls") or []), message.strip()


def executed(environment: type[Environment], calls: Sequence[Call]) -> tuple[list[Any], str, str]:
    """Execute calls in a new environment.

    Returns:
        The result of each call (of a failed one {"error": the message}), and the digests of the
        state before the first and after the last call.

    Raises:
        TypeError, ValueError: a result or the state cannot be expressed in JSON.
    """
    place = environment()
    try:
        before = digest_of_state(place)
        results: list[Any] = []
        for call in calls:
            try:
                result = place.call(call.name, call.arguments)
            except ToolError as error:
                result = {"error": str(error)}
            # A result must not change with the environment, and a number must fit into 64 bits.
            results.append(orjson.loads(orjson.dumps(json.loads(json_text(result)))))
        return results, before, digest_of_state(place)
    finally:
        place.close()


def digest_of_state(environment: Environment) -> str:
    """Return a digest of the state of an environment: 16 hex digits."""
    text = json.dumps(environment.state(), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
