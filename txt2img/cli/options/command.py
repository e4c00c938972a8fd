"""The class of every command: groups of options, sections in --help, config.toml's defaults."""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import fields, is_dataclass
from functools import cached_property
from inspect import Parameter, signature
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Protocol, get_args, get_type_hints

from typer import TyperException
from typer.core import TyperArgument, TyperCommand, TyperOption

from txt2img.cli.options.aliases import OTHER_NAMES
from txt2img.cli.options.completion import choices
from txt2img.cli.options.enhance import CONFIGURED, is_enhancer
from txt2img.cli.registry import NAMES
from txt2img.cli.terminal.console import print_line
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.request.fields import COMPONENTS, FIELDS, Transparent
from txt2img.system import user_config
from txt2img.system.text import shown

if TYPE_CHECKING:
    import typer

COMMON = (
    *("negative", "model", "width", "height", "steps", "cfg", "sampler", "seed", "count"),
    *("output", "overwrite", "quiet", "prompts", "params-from", "sweep", "lora", "image"),
    *("preview", "device", "dry-run"),
)
WIDTH_MAX = 100  # columns
_MORE = re.compile(r"[:;]\s|\.(?:\s|$)| \(default")  # after it an option's help has details


def short_help(rows: Sequence[tuple[str, str]], commands: Sequence[str], total: int) -> str:
    """The short help: rows of an option's flags and its help, and `total`, how many there are."""
    width = min(shutil.get_terminal_size().columns, WIDTH_MAX)
    column = max(len(flags) for flags, _ in rows) + 2
    lines = ['Usage: txt2img "what to draw" [OPTIONS]']
    for flags, text in rows:
        summary = _MORE.split(text)[0]
        room = width - column - 3
        cut = summary if len(summary) <= room else f"{summary[: room - 1].rstrip(' ,')}…"
        lines.append(f"  {flags:<{column}}{cut}")
    lines += wrap(f"Commands: {', '.join(commands)}", width, subsequent_indent=" " * 10)
    lines.append(f"txt2img --help describes all {total} options, txt2img COMMAND -h a command.")
    return "\n".join(lines)


def in_order(options: Iterable[TyperOption]) -> list[TyperOption]:
    """The options of the short help, the most common first."""
    by_flag = {flag.removeprefix("--"): option for option in options for flag in option.opts}
    return [by_flag[name] for name in COMMON]


# Other names of options, without hyphens. Single letters are for prompt files alone.
ALIASES = OTHER_NAMES | {
    alias.lstrip("-"): row.flags[0].lstrip("-")
    for row in FIELDS.values()
    for alias in row.aliases
    if row.flags and len(alias) > len("--n")
}
COMMAND_LINE_ONLY = (
    *("prompt_option", "prompts", "params_from", "profile", "version", "dry_run", "no_keep_alive"),
)
HELP = ("-h", "-help", "-?")
# Parameters that a picture has of its own, which come before config.toml's.
OF_PICTURES = {*(row.option for row in FIELDS.values() if row.flags), *COMPONENTS}


# Values that may be left out: by option, what it means then, and what its values are.
LEFT_OUT: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "--only-masked": ("32", str.isdecimal),
    "--enhance": (CONFIGURED, is_enhancer),
    "--transparent": (Transparent.MODEL, {*Transparent}.__contains__),
}


class HelpFormatter(Protocol):
    """The writer of a page of help."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """Write a title; what follows is indented."""

    def write_dl(self, rows: list[tuple[str, str]]) -> None:
        """Write rows of two columns."""


class SectionedCommand(TyperCommand):
    """A command with sections in its --help, and with hidden other names of its options."""

    def parse_args(self, ctx: "typer.Context", args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse a command line. BadFile, BadRequest."""
        args = with_left_out_values(args)
        if topic := ctx.obj:
            print_line(self.topic_page(ctx, str(topic)))
            ctx.exit()
        if (place := _place_of_short_help(args)) is not None:
            following = "".join(args[place + 1 : place + 2])
            if following.isdigit():
                raise BadRequest(
                    f"-h is help; for a height of {following} pixels use -H {following}"
                )
            if page := self.short_page(ctx):
                print_line(page)
                ctx.exit()
            args = [*args[:place], "--help", *args[place + 1 :]]
        self._check_values(args)
        ctx.token_normalize_func = self.canonical_name
        ctx.default_map = self.defaults(ctx, args)
        return super().parse_args(ctx, args)

    def short_page(self, ctx: "typer.Context") -> str:
        """What -h prints; empty if it is the same as --help."""
        return ""

    def defaults(self, ctx: "typer.Context", args: list[str]) -> dict[str, object]:
        """Values that replace the defaults of parameters."""
        return {}

    def canonical_name(self, name: str) -> str:
        """The name of the option that a name means, both without hyphens; unknown ones stay."""
        spelled = name.replace("_", "-")
        candidates = (name, spelled, ALIASES.get(spelled, name))
        return next((known for known in candidates if known in self.option_names), name)

    def _check_values(self, args: list[str]) -> None:
        """Raise BadRequest for an option whose value would be the next option: it lacks its own."""
        takes = {
            flag: o
            for o in self.params
            if isinstance(o, TyperOption) and not o.is_flag
            for flag in o.opts
        }
        for option, value in pairwise(args):
            if option == "--":
                return
            if option in takes and value.startswith("--") and value[2:] in self.option_names:
                raise BadRequest(
                    f"{option} needs a value, and {value} is an option; for this text as its value "
                    f"write {max(takes[option].opts, key=len)}={value}"
                )

    @cached_property
    def option_names(self) -> set[str]:
        """All options' names, without hyphens."""
        options = [param for param in self.params if isinstance(param, TyperOption)]
        return {name.lstrip("-") for o in options for name in (*o.opts, *o.secondary_opts)}

    def format_options(self, ctx: "typer.Context", formatter: HelpFormatter) -> None:  # type: ignore[override]
        """Write the arguments and the sections, in the order of the command's parameters."""
        for title, rows in self.sections(ctx).items():
            with formatter.section(title):
                formatter.write_dl([row for row, is_usual in rows if is_usual])

    def sections(self, ctx: "typer.Context") -> dict[str, list[tuple[tuple[str, str], bool]]]:
        """The rows of help by title, each with whether it is in --help, not in its topic alone."""
        sections: dict[str, list[tuple[tuple[str, str], bool]]] = {}
        for param in self.get_params(ctx):
            is_usual = not getattr(param, "hidden", False)
            shown_param = copy(param)
            if isinstance(shown_param, TyperOption):
                shown_param.hidden = not shown_param.help  # other names have none
            if row := shown_param.get_help_record(ctx):
                if isinstance(param, TyperArgument):  # without the type, which is Python's
                    row, title = (param.display_name_raw, row[1]), "Arguments"
                else:
                    title = getattr(param, "rich_help_panel", None) or "Options"
                sections.setdefault(title, []).append((row, is_usual))
        return sections

    def topic_page(self, ctx: "typer.Context", topic: str) -> str:
        """What txt2img help TOPIC prints: sections, else options, of that name. BadRequest."""
        word = topic.lower().strip("-").replace("_", "-")
        sections = {title: [row for row, _ in rows] for title, rows in self.sections(ctx).items()}
        if word in ("h", "help"):
            listed = "\n".join(f"  {title}" for title in sections)
            return f"Topics, besides options and words of their descriptions:\n{listed}"
        found = {title: rows for title, rows in sections.items() if word in title.lower()}
        for part in (0, 1):  # flags, then descriptions
            found = found or {
                title: matching
                for title, rows in sections.items()
                if (matching := [row for row in rows if word in row[part].lower()])
            }
        if not found:
            raise BadRequest(f"no topic {shown(topic)}; topics: {', '.join(sections)}")
        formatter = ctx.make_formatter()
        for title, rows in found.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        return formatter.getvalue().strip("\n")


def with_left_out_values(args: Sequence[str]) -> list[str]:
    """A command line with the values that may be left out, where none follows."""
    whole = list[str]()
    for word, after in pairwise([*args, ""]):
        whole.append(word)
        name = word.replace("_", "-")
        if "--" not in whole[:-1] and name in LEFT_OUT:
            left_out, is_value = LEFT_OUT[name]
            whole += [] if is_value(after) else [left_out]
    return whole


class ConfiguredCommand(SectionedCommand):
    """The command that draws: config.toml may replace its defaults, and -h is a short help."""

    def short_page(self, ctx: "typer.Context") -> str:
        """The most common options on one screen."""

        options = [o for o in self.params if isinstance(o, TyperOption) and not o.hidden]
        records = [common.get_help_record(ctx) for common in in_order(options)]
        return short_help([row for row in records if row], NAMES[1:], len(options))

    @cached_property
    def config_places(self) -> dict[str, str]:
        """Where config.toml sets each option, by the option's name."""
        return {}

    def parse_args(self, ctx: "typer.Context", args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse a command line. BadFile names the place of a value in config.toml. BadRequest."""
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            param = getattr(error, "param", None)
            if isinstance(param, TyperOption) and (place := self._place(ctx, param)):
                raise BadFile(f"{place} {getattr(error, 'message', error)}") from error
            raise

    def invoke(self, ctx: "typer.Context") -> object:  # type: ignore[override]
        """Run the command; an error about a value of config.toml names its place. Txt2imgError."""
        try:
            return super().invoke(ctx)
        except Txt2imgError as error:
            for param in (one for one in self.params if isinstance(one, TyperOption)):
                place = self._place(ctx, param)
                if place and _is_about(str(error), param, ctx.params.get(param.name or "")):
                    raise type(error)(f"{place}: {error}") from error
            raise

    def _place(self, ctx: "typer.Context", option: TyperOption) -> str:
        """Where config.toml sets an option; empty if its value is another one."""
        source = ctx.get_parameter_source(option.name or "")
        name = max(option.opts, key=len).lstrip("-")
        is_configured = source is not None and source.name == "DEFAULT_MAP"
        return self.config_places.get(name, "") if is_configured else ""

    def defaults(self, ctx: "typer.Context", args: list[str]) -> dict[str, object]:
        """Read config.toml, unless the line asks for help. BadFile, BadRequest."""
        line, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if ctx.resilient_parsing or line.get("help") or line.get("version"):
            return {}
        config = user_config.read_config()
        tables = {"defaults": config.defaults}
        tables |= {f"profiles.{name}": rows for name, rows in config.profiles.items()}
        for name, rows in tables.items():
            self._values(f"{config.path}: {name}", rows)
        values = self._values(f"{config.path}", config.options(line.get("profile")))
        for name in ("defaults", f"profiles.{line.get('profile')}"):
            for key in tables.get(name, {}):
                option = self.canonical_name(key)
                self.config_places[option] = f"{shown(config.path, 200)}: {name}.{key}"
        if line.get("params_from"):
            values = {name: value for name, value in values.items() if name not in OF_PICTURES}
        return values

    def _values(self, where: str, rows: user_config.Values) -> dict[str, object]:
        """A table's values by parameter, as a command line would give them. BadFile."""
        options = {
            max(param.opts, key=len).lstrip("-"): param
            for param in self.params
            if isinstance(param, TyperOption) and param.name not in COMMAND_LINE_ONLY
        }
        named = {self.canonical_name(key): value for key, value in rows.items()}
        user_config.check_keys(
            where, named, [k for k, o in options.items() if not o.hidden or k in named]
        )
        return {
            options[key].name: _value(f"{shown(where, 200)}: {key}", options[key], value)
            for key, value in named.items()
        }


def _place_of_short_help(args: list[str]) -> int | None:
    """Where a line asks for -h; None if it does not."""
    before = args[: args.index("--")] if "--" in args else args
    return next((i for i, text in enumerate(before) if text in HELP), None)


def _is_about(message: str, option: TyperOption, value: object) -> bool:
    """Whether an error is about an option's value: it says both, or a text that is no word."""
    texts = [str(one) for one in (value if isinstance(value, list | tuple) else [value])]
    said = [text for text in texts if text in message]
    name = max(option.opts, key=len).lstrip("-")
    names_it = re.search(rf"(?<![\w-])(?:--)?{re.escape(name)}(?![\w-])", message) is not None
    return bool(said) and (names_it or any("." in text for text in said))


def _value(where: str, option: TyperOption, value: object) -> object:
    """A value of config.toml as the command line would give it. BadFile."""
    if isinstance(value, bool) and (left_out := LEFT_OUT.get(max(option.opts, key=len))):
        return left_out[0] if value else None
    values = value if isinstance(value, list) else [value]
    kinds = bool if option.is_flag else str | int | float
    if (isinstance(value, list) and not option.multiple) or not all(
        isinstance(one, kinds) and isinstance(one, bool) == option.is_flag and not _is_huge(one)
        for one in values
    ):
        kind = "true or false" if option.is_flag else "a text or a number"
        raise BadFile(f"{where} must be {kind}, got {shown(value)}")
    texts = [one if option.is_flag else str(one) for one in values]
    return texts if option.multiple else texts[0]


def _is_huge(value: object) -> bool:
    """Whether a number has more digits than Python writes: TOML's in hexadecimal may."""
    return isinstance(value, int) and value.bit_length() > 4096


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Spread each parameter that is a dataclass of options out into its fields, for typer.

    A field may be such a dataclass itself. A dataclass's `section` is its options' in --help.
    """
    declared = signature(command, eval_str=True)
    spread = [option for parameter in declared.parameters.values() for option in _spread(parameter)]

    def run(**values: object) -> None:
        command(**{n: _build(p.annotation, n, values) for n, p in declared.parameters.items()})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in spread}
    vars(run)["__signature__"] = declared.replace(parameters=spread)
    return run


def _spread(parameter: Parameter) -> Iterator[Parameter]:
    """A parameter, or each option of the group that it is."""
    group = parameter.annotation
    if not is_dataclass(group):
        yield parameter
        return
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        if section := getattr(group, "section", None):
            kind, info = get_args(hint)
            info = copy(info)
            info.rich_help_panel = section
            info.autocompletion = info.autocompletion or choices(info.metavar)
            hint = Annotated[kind, info]
        yield from _spread(
            parameter.replace(name=field.name, default=field.default, annotation=hint)
        )


def _build(kind: object, name: str, values: Mapping[str, object]) -> object:
    """The value of a parameter, or the group that it is with the values of its options."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return values[name]
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{f.name: _build(hints[f.name], f.name, values) for f in fields(kind)})
