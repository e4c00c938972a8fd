"""The command with the options of config.toml: the command line's come before a profile's."""

from typing import TYPE_CHECKING

from txt2img.cli.options.command import Direct
from txt2img.errors import BadFile
from txt2img.request.fields import COMPONENTS, FIELDS
from txt2img.system import user_config
from txt2img.system.text import shown

if TYPE_CHECKING:
    import typer

# What only a command line can say.
UNSET = ("prompt", "prompts_file", "picture", "profile", "version", "help", "dry_run", "no_warm")
# What must not come before a picture's own request.
NOT_WITH_FROM = (*(field.option for field in FIELDS.values() if field.flags), *COMPONENTS)


class Configured(Direct):
    """A command whose blanks are filled from the config file before the program's defaults."""

    def parse_args(self, ctx: "typer.Context", args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse a command line. BadFile, BadRequest."""
        said, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if not ctx.resilient_parsing and not said.get("help") and not said.get("version"):
            found = user_config.read()
            self._check(found)
            values = self._values(f"{found.path}", found.options(said.get("profile")))
            skipped = NOT_WITH_FROM if said.get("picture") else ()
            ctx.default_map = {n: value for n, value in values.items() if n not in skipped}
        return super().parse_args(ctx, args)

    def _options(self) -> dict[str, tuple[str, bool]]:
        """Each option that a config may give: its parameter and whether it is a switch."""
        return {
            max(param.opts, key=len).lstrip("-"): (param.name or "", bool(vars(param)["is_flag"]))
            for param in self.params
            if param.param_type_name == "option" and param.name not in UNSET
        }

    def _check(self, found: user_config.Settings) -> None:
        tables = {"defaults": found.defaults}
        tables |= {f"profiles.{name}": rows for name, rows in found.profiles.items()}
        for name, rows in tables.items():
            self._values(f"{found.path}: {name}", rows)

    def _values(self, where: str, rows: user_config.Values) -> dict[str, object]:
        """Options by their parameters, as a command line would give them. BadFile."""
        options = self._options()
        spelt = {key.replace("_", "-"): value for key, value in rows.items()}
        user_config.check_keys(where, spelt, options)
        values: dict[str, object] = {}
        for key, value in spelt.items():
            name, switch = options[key]
            many = isinstance(value, list)
            single = value if isinstance(value, list) else [value]
            odd = [
                one
                for one in single
                if not isinstance(one, bool if switch else str | int | float)
                or isinstance(one, bool) != switch
            ]
            repeats = any(param.name == name and param.multiple for param in self.params)
            if odd or (many and not repeats):
                kind = "true or false" if switch else "a text or a number"
                raise BadFile(f"{shown(where, 200)}: {key} must be {kind}, got {shown(value)}")
            texts = [one if switch else str(one) for one in single]
            values[name] = texts if repeats else texts[0]
        return values
