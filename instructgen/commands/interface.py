"""Defines how a command is declared: by a subclass of `Options` and a function that takes it.

From the options class, cli/flags.py builds the flags of the command line, and `command` builds the
Python function. The options class also validates the steps of pipelines, and docs/commands.md is
created from it. This module does not depend on any particular command.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from pydantic.fields import FieldInfo

from instructgen.commands.inputs import is_data, write_data
from instructgen.config import describe, renamed_option
from instructgen.errors import ConfigError, InstructgenError, quoted
from instructgen.plugins import suggest
from instructgen.schema.progress import Watch

O = TypeVar("O", bound="Options")  # noqa: E741
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Options(BaseModel):
    """The options of one command; each field is a flag, a Python parameter and a pipeline key.

    Attributes:
        renamed: maps the old names of renamed fields to the new names, for error messages.
        open_field: the field, such as ``settings``, whose dict receives the keyword arguments of
            the Python function that are not names of fields; None to reject such arguments.
        open_keys: the known keys of that dict.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[Mapping[str, str]] = {}
    open_field: ClassVar[str | None] = None
    open_keys: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return _expanded(value)

    @field_validator("*", mode="after")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        # A path may consist of any bytes, but other values are recorded in JSON files.
        for text in _texts(value):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"{quoted(text)} is not valid UTF-8; pass text in UTF-8")
        return value

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Validate a dict of values by field name, and return the options.

        Raises:
            ConfigError: a value is invalid or missing, or a name is unknown; the message has one
                line per problem, which starts with the command-line flag.
        """
        known = list(cls.model_fields)
        for name in values:
            if name not in known:
                hint = renamed_option(cls, name) or suggest(name, known)
                raise ConfigError(f"{name}: unknown option.", hint)
        try:
            return cls(**values)
        except ValidationError as error:
            lines = dict.fromkeys(
                f"{flag_of(cls, str(e['loc'][0])) if e['loc'] else ''}: {describe(e)}".lstrip(": ")
                for e in error.errors()
            )
            raise ConfigError("\n".join(lines)) from None


def _expanded(value: Any) -> Any:
    """Replace ``~`` at the beginning of paths, which a shell does not do in ``--out=~/data``."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))  # noqa: PTH111 - keeps ~name if there is no such user
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~/") else value  # noqa: PTH111
    if isinstance(value, tuple | list):
        return type(value)(_expanded(v) for v in value)
    if isinstance(value, dict):
        return {key: _expanded(v) for key, v in value.items()}
    return value


def _texts(value: Any) -> Iterator[str]:
    """Yield all strings in a value, except paths."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def option(
    default: Any,
    help: str,
    *,
    flag: str = "",
    metavar: str = "",
    shown: str = "",
    many: str = "",
    takes: str = "",
    **bounds: Any,
) -> Any:
    """Declare a field of `Options` that is a flag on the command line.

    Args:
        default: the default value; ``...`` if the option is required.
        help: the description: one or two sentences that start with a noun or an imperative.
        flag: the flag, if it is not the field's name with dashes (``--max-rows`` for max_rows).
        metavar: the placeholder for the value in the help, such as FILE.
        shown: the default to show in the help, if it differs from ``default``.
        many: how several values are passed on the command line: by repeating the flag
            (``repeat``), separated by spaces (``words``) or commas (``commas``), or by repeating
            the flag with NAME=VALUE, where the value is text (``pairs``), TOML (``settings``)
            or a number (``numbers``, which also accepts one number without a name).
        takes: ``rows`` if Python callers may pass a DataFrame or a list of dicts in place
            of a file, ``recipe`` if they may pass a dict in place of a TOML file.
        bounds: bounds of the value, as in `pydantic.Field`, such as ``ge=0``.
    """
    facts: dict[str, JsonValue] = {
        "flag": flag,
        "metavar": metavar,
        "shown": shown,
        "many": many,
        "takes": takes,
    }
    return Field(default, description=help, json_schema_extra={"cli": facts}, **bounds)


def argument(
    help: str,
    *,
    metavar: str,
    many: bool = False,
    takes: str = "",
    default: Any = ...,
    **bounds: Any,
) -> Any:
    """Declare a field of `Options` that is a positional argument; parameters as for `option`."""
    facts: dict[str, JsonValue] = {
        "argument": True,
        "metavar": metavar,
        "many": "words" * many,
        "takes": takes,
    }
    return Field(default, description=help, json_schema_extra={"cli": facts}, **bounds)


def inherited(model: type[BaseModel], name: str, **facts: Any) -> Any:
    """Declare an option that overrides a key in a TOML table of a recipe.

    The default of the option is None, which means that the recipe's value applies. The option has
    the help text and the bounds of the key.

    Args:
        model: the pydantic class that describes the table.
        name: the name of the key in the table.
        facts: arguments for `option`, such as a different ``help``.
    """
    field = model.model_fields[name]
    if "shown" not in facts and field.default not in (None, ""):
        facts["shown"] = str(field.default)
    copy: FieldInfo = option(None, facts.pop("help", sentence(field.description or "")), **facts)
    copy.annotation, copy.metadata = field.annotation, [*copy.metadata, _Bounds(field)]
    return copy


class _Bounds:
    """Marks an option from `inherited`; ``field`` is the recipe key whose bounds it has."""

    def __init__(self, field: FieldInfo) -> None:
        self.field = field


def bounds_of(field: FieldInfo) -> str:
    """Return the allowed range of a numeric option as text, or an empty string."""
    for mark in field.metadata:
        if isinstance(mark, _Bounds):
            return bounds_of(mark.field)
    limits = {
        name: getattr(m, name) for m in field.metadata for name in _LIMITS if hasattr(m, name)
    }
    limits = {name: value for name, value in limits.items() if value < _HUGE}
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']:,} to {limits['le']:,}"
    return ", ".join(_LIMITS[name].format(value) for name, value in limits.items())


# Bounds at or above this value are not shown, because users do not reach them.
_HUGE = 2**31
_LIMITS = {
    "ge": "at least {:,}",
    "gt": "more than {:,}",
    "le": "at most {:,}",
    "lt": "less than {:,}",
}


def sentence(text: str) -> str:
    """Return a description as a sentence, capitalized and with a final period."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def facts_of(field: FieldInfo) -> Mapping[str, Any]:
    """Return what `option` or `argument` recorded about a field, such as its flag or metavar."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return cast(Mapping[str, Any], extra["cli"])


def flag_of(options: type[Options], name: str) -> str:
    """Return the command-line name of a field: its flag or, for an argument, its metavar."""
    facts = facts_of(options.model_fields[name])
    if facts.get("argument"):
        return str(facts["metavar"])
    return str(facts.get("flag") or f"--{name.replace('_', '-')}")


class Command(Protocol[R_co]):
    """A command as a Python function, created by the decorator `command`.

    Call it with the options as arguments, or with one options object; its error messages name
    Python parameters. ``run`` takes only an options object, and its error messages name
    command-line flags.
    """

    options: type[Options]
    __name__: str

    def run(self, options: Any, watch: Watch | None = None) -> R_co:
        """Run the command with an options object."""

    def __call__(self, *args: Any, **values: Any) -> R_co:
        """Run the command with its options as arguments, or with one options object."""


def command(
    options: type[O], *positional: str
) -> Callable[[Callable[[O, Watch | None], R]], Command[R]]:
    """Return a decorator that turns a function into a command.

    The function takes an options object and a callback for the progress.

    Args:
        options: the class of the options.
        positional: the fields that Python callers may pass by position, in this order.
    """

    def decorate(run: Callable[[O, Watch | None], R]) -> Command[R]:
        @functools.wraps(run)
        def call(*args: Any, **values: Any) -> R:
            watch = values.pop("watch", None)
            try:
                if len(args) == 1 and isinstance(args[0], options) and not values:
                    return run(args[0], watch)
                named = _named(options, positional, args, values)
                with _files(options, named) as replaced:
                    return run(options.checked(replaced), watch)
            except InstructgenError as error:
                error.translate(_in_python(options))
                raise

        call.__signature__ = _signature(options, positional, run)  # type: ignore[attr-defined]
        call.__doc__ = _documented(options, positional, run)
        call.options, call.run = options, run  # type: ignore[attr-defined]
        return cast(Command[R], call)

    return decorate


def _named(
    options: type[Options], positional: Sequence[str], args: Sequence[Any], values: dict[str, Any]
) -> dict[str, Any]:
    if len(args) > len(positional):
        raise TypeError(f"expected at most {len(positional)} positional arguments, not {len(args)}")
    named = dict(zip(positional, args, strict=False))
    if both := [name for name in named if name in values]:
        raise TypeError(f"multiple values for argument {both[0]!r}")
    named |= values
    rest = options.open_field
    if rest is None:
        return named
    known = options.model_fields.keys() | options.renamed.keys()
    others = {k: named.pop(k) for k in list(named) if k not in known}
    if others:
        settings = named.get(rest) or {}
        if isinstance(settings, BaseModel):
            settings = settings.model_dump(exclude_unset=True)
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{rest}: must be a dict or options object.", "Pass a dict.")
        named[rest] = {**settings, **others}
    return named


@contextmanager
def _files(options: type[Options], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the values, with rows and recipes saved to temporary files and replaced by paths."""
    with ExitStack() as stack:
        folder: Path | None = None
        replaced = dict(values)
        for name, value in values.items():
            field = options.model_fields.get(name)
            takes = "" if field is None else facts_of(field)["takes"]
            if not takes or not is_data(value, takes):
                continue
            folder = folder or Path(stack.enter_context(TemporaryDirectory()))
            replaced[name] = write_data(name, value, takes, folder)
        try:
            yield replaced
        except InstructgenError as error:
            if folder is not None:
                error.translate({f"{folder}/": ""})
            raise


def _in_python(options: type[Options]) -> dict[str, str]:
    """Return a dict from the flags of a command to its Python parameters, longest flags first."""
    names = {flag_of(options, name): name for name in options.model_fields}
    flags = {flag: name for flag, name in names.items() if flag.startswith("--")}
    if options.open_field is not None:
        flags |= {f"--{key.replace('_', '-')}": key for key in options.open_keys}
    # An argument has no flag; its messages begin with the name that the usage line shows.
    flags |= {f"{name}: ": f"{names[name]}: " for name in names if not name.startswith("--")}
    return dict(sorted(flags.items(), key=lambda item: -len(item[0])))


def _signature(
    options: type[Options], positional: Sequence[str], run: Callable[..., Any]
) -> inspect.Signature:
    others = [name for name in options.model_fields if name not in positional]
    parameters = []
    required = [n for n in positional if options.model_fields[n].is_required()]
    for name in (*positional, *others):
        field = options.model_fields[name]
        kind = (
            inspect.Parameter.POSITIONAL_OR_KEYWORD
            if name in positional
            else inspect.Parameter.KEYWORD_ONLY
        )
        # Python allows no default before a parameter without one, although callers may omit it.
        before = name in positional and any(
            positional.index(name) <= positional.index(n) for n in required
        )
        default = inspect.Parameter.empty if before or field.is_required() else field.get_default()
        parameters.append(
            inspect.Parameter(name, kind, default=default, annotation=field.annotation)
        )
    watch = inspect.Parameter(
        "watch", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Watch | None"
    )
    parameters.append(watch)
    if options.open_field is not None:
        parameters.append(inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD))
    returns = inspect.signature(run).return_annotation
    return inspect.Signature(parameters, return_annotation=returns)


def _documented(options: type[Options], positional: Sequence[str], run: Callable[..., Any]) -> str:
    """Return the function's docstring with an added section that describes the options."""
    about, marker, raises = inspect.getdoc(run).partition("\nRaises:")  # type: ignore[union-attr]
    others = [name for name in options.model_fields if name not in positional]
    lines = [
        f"    {name}: {options.model_fields[name].description}" for name in (*positional, *others)
    ]
    lines.append("    watch: A function that is called with the progress.")
    return "\n".join(
        [about.rstrip(), "", "Args:", *lines, "", f"{marker.strip()}{raises}"]
    ).rstrip()
