"""Builds the command-line flags and arguments of a command from its class of options."""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from instructgen.commands.interface import Options, bounds_of, facts_of, flag_of
from instructgen.commands.options import ABLATE_FLAGS, TRAIN_FLAGS, AblateOptions, TrainOptions
from instructgen.config import parse_toml
from instructgen.errors import ConfigError, first_line, quoted
from instructgen.plugins import load_plugin

# Settings of a trainer that have their own flags in addition to --set.
_OWN_FLAGS: Mapping[type[Options], Mapping[str, FieldInfo]] = {
    TrainOptions: TRAIN_FLAGS,
    AblateOptions: ABLATE_FLAGS,
}


def takes(options: type[Options], *excluded: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that adds the flags of a class of options to a click command.

    The decorated function receives an instance of the class.

    Args:
        options: the class of options.
        excluded: the names of fields that get no flag here, because the command adds them itself.
    """
    own = _OWN_FLAGS.get(options, {})
    fields = {n: f for n, f in options.model_fields.items() if n not in excluded}

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            checked = options.checked(values_of(options, values))
            used = {*options.model_fields, *own, "format_and_path"}
            rest = {k: v for k, v in values.items() if k not in used}
            return function(checked, **rest)

        call.options = options  # type: ignore[attr-defined]
        call = plugin_option(call)
        for name, field in reversed([*fields.items()]):
            if name == options.open_field:
                for key, setting in reversed([*own.items()]):
                    call = _parameter(key, f"--{key.replace('_', '-')}", setting)(call)
            call = _parameter(name, flag_of(options, name), field)(call)
        return call

    return decorate


def values_of(options: type[Options], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parsed arguments as a dict, keyed by the names of the fields of ``options``.

    Raises:
        ConfigError: a setting is passed both by its flag and by --set, or several files are passed.
    """
    values = {k: v for k, v in params.items() if k in options.model_fields}
    if (words := params.get("format_and_path")) is not None:
        if len(words) > 2:
            raise ConfigError("more than one file is passed.", "Pass only one file or Hub name.")
        values |= {"path": words[-1], "format": words[0] if len(words) == 2 else None}
    rest = options.open_field
    own = _OWN_FLAGS.get(options, {})
    by_flag = {k: params[k] for k in own if params.get(k) is not None}
    if rest is not None:
        if both := sorted(by_flag.keys() & values[rest].keys()):
            flag = f"--{both[0].replace('_', '-')}"
            raise ConfigError(f"{flag} and --set={both[0]} are both set.", "Use only one of them.")
        values[rest] = {**values[rest], **by_flag}
    return values


def _parameter(name: str, flag: str, field: FieldInfo) -> Callable[[Any], Any]:
    facts = facts_of(field)
    kind, is_flag, several = _click_type(field.annotation)
    metavar = facts.get("metavar") or None
    if facts.get("argument"):
        nargs = -1 if several else 1
        required = field.is_required()
        default = _default(None if required or several else field.default)
        return click.argument(
            name, type=kind, nargs=nargs, required=required, metavar=metavar, **default
        )
    settings: dict[str, Any] = {"help": help_text(field), "required": field.is_required()}
    many = facts.get("many")
    if is_flag:
        return click.option(flag, name, is_flag=True, default=field.default, **settings)
    if many in ("repeat", "words"):
        cls = Words if many == "words" else click.Option
        return click.option(
            flag, name, cls=cls, multiple=True, type=kind, metavar=metavar, **settings
        )
    if many in _PARSERS:
        repeated = many != "commas"
        settings |= _default(None if repeated or field.is_required() else ",".join(field.default))
        return click.option(
            flag, name, multiple=repeated, callback=_PARSERS[many], metavar=metavar, **settings
        )
    settings |= _default(None if field.is_required() else field.default)
    return click.option(flag, name, type=kind, metavar=metavar, **settings)


def _default(value: Any) -> dict[str, Any]:
    """Return the keyword argument ``default`` for click, or no argument if the value is None."""
    return {} if value is None else {"default": value}


def help_text(field: FieldInfo) -> str:
    """Return the help text of an option, followed by its valid range and its default."""
    facts = facts_of(field)
    default = facts.get("shown") or _shown(field)
    notes = [bounds_of(field), f"default: {default}" if default else ""]
    extra = "; ".join(note for note in notes if note)
    return f"{field.description}{f'  [{extra}]' if extra else ''}"


def _shown(field: FieldInfo) -> str:
    value = field.default
    if field.is_required() or value in (None, "", (), {}) or isinstance(value, bool):
        return ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _click_type(annotation: Any) -> tuple[Any, bool, bool]:
    """Return the click type of an annotation, whether it is a flag, and whether it is a list."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kinds = [a for a in inner if a is not type(None)]
        return _click_type(kinds[0]) if len(kinds) == 1 else (click.STRING, False, False)
    if origin is Literal:
        return click.Choice(inner), False, False
    if origin is tuple:
        return _click_type(inner[0])[0], False, True
    if annotation is Path:
        return click.Path(path_type=Path), False, False
    known: dict[Any, Any] = {int: click.INT, float: click.FLOAT}
    return known.get(annotation, click.STRING), annotation is bool, False


def _commas(_ctx: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


def _pairs(_ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals and text):
            raise click.BadParameter(f"{value!r} must have the form {option.metavar}.")
        pairs[name] = text
    return pairs


def _settings(
    _ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not (key.strip() and equals):
            raise click.BadParameter(f"{value!r} must have the form {option.metavar}.")
        try:
            settings[key.strip()] = parse_toml(b"v = " + os.fsencode(text))["v"]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            # A string does not need quotes.
            settings[key.strip()] = text
        except ValueError as error:
            raise click.BadParameter(f"{quoted(value)}: {first_line(error)}.") from None
    return settings


def _numbers(
    _ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> float | dict[str, float] | None:
    """Parse thresholds of `dedup`: one number for all stages, or one STAGE=NUMBER per stage."""
    by_stage: dict[str, float] = {}
    for value in values:
        stage, _, number = value.rpartition("=")
        try:
            by_stage[stage] = float(number)
        except ValueError:
            raise click.BadParameter(
                f"{value!r} must have the form NUMBER or STAGE=NUMBER."
            ) from None
    if "" not in by_stage:
        return by_stage or None
    if len(by_stage) > 1:
        raise click.BadParameter("pass one number for all stages, or STAGE=NUMBER for each stage.")
    return by_stage[""]


_PARSERS: Mapping[str | None, Callable[..., Any]] = {
    "commas": _commas,
    "pairs": _pairs,
    "settings": _settings,
    "numbers": _numbers,
}


class OptionsCommand(click.Command):
    """A click command whose options come from a class. Its help also describes the arguments."""

    @property
    def options(self) -> type[Options] | None:
        """The class that declares the options, or None if the command has no such class."""
        return getattr(self.callback, "options", None)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; if a flag was renamed, the error message states the new name."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            old = error.option_name.removeprefix("--").replace("-", "_")
            new = self.options.renamed.get(old) if self.options else None
            if self.options is None or new is None:
                raise
            flag = flag_of(self.options, new)
            raise click.UsageError(f"{error.option_name} was renamed to {flag}.", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help for the arguments, then the help for the options."""
        fields = (self.options.model_fields if self.options else {}).values()
        rows = [
            (str(facts_of(field)["metavar"]), help_text(field))
            for field in fields
            if facts_of(field).get("argument")
        ]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


def _load(_ctx: click.Context, _option: click.Parameter, files: tuple[Path, ...]) -> None:
    for file in files:
        load_plugin(file)


def plugin_option(command: Any) -> Any:
    """Add the option --plugin, which runs a Python file before the other options are parsed."""
    return click.option(
        "--plugin",
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=_load,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Python file that defines filters, methods, formats or engines. The file is executed.",
    )(command)


class Words(click.Option):
    """An option that takes all arguments up to the next option as values; it may be repeated."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Register the option so that the parser reads several values after its name."""
        super().add_to_parser(parser, ctx)
        for name in self.opts:
            option = parser._long_opt.get(name)
            if option is None:
                continue
            first = option.process

            def process(value: str, state: Any, first: Any = first) -> None:
                first(value, state)
                while state.rargs and not state.rargs[0].startswith("-"):
                    first(state.rargs.pop(0), state)

            option.process = process
