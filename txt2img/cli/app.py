"""The commands, and what goes wrong in them as one line and an exit code.

0 all done, 1 failed, 2 asked for something that cannot be, 3 some pictures of a batch failed,
4 a picture was rejected, 5 out of memory, 130 and 143 stopped.
"""

import os
import signal
import traceback
from collections.abc import Sequence

import typer

from txt2img.cli import registry
from txt2img.cli.names import MODEL_VERBS, NAMES
from txt2img.cli.options.command import ConfiguredCommand, SectionedCommand
from txt2img.cli.terminal.console import BrokenStdout, log
from txt2img.cli.terminal.signals import STOP, STOPPED, Stopped
from txt2img.cli.terminal.streams import open_missing
from txt2img.errors import BadRequest, Txt2imgError

COMPLETE = "_TXT2IMG_COMPLETE"  # set by the shells' scripts


def run(arguments: Sequence[str]) -> int:
    """Run one command line; gives the exit code. Nothing but this turns errors into words."""
    try:
        _settle()
        return _dispatch(arguments)
    except (Stopped, KeyboardInterrupt) as stop:
        log(STOPPED)
        return stop.code if isinstance(stop, Stopped) else 128 + signal.SIGINT
    except Txt2imgError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        from txt2img.cli.usage_errors import message_for

        named = bool(arguments) and arguments[0] in NAMES
        return _fail(message_for(error, arguments[0] if named else ""), 2)
    except BrokenStdout:
        return 1
    except MemoryError:
        return _fail("the memory of this machine does not suffice; choose a smaller size", 5)
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it is one line
        line = f"unexpected {type(error).__name__}: {error}"
        return _fail(f"{line} (TXT2IMG_DEBUG=1 shows where)", 1)


def _dispatch(arguments: Sequence[str]) -> int:
    """Hand the line to the command it names first, or to generate; gives the exit code."""
    if COMPLETE in os.environ:
        return _complete()
    if arguments and arguments[0] == "help" and set(arguments[1:]) <= {*NAMES}:
        arguments = [*arguments[1:2], "--help"]
    if arguments and arguments[0] == "models":
        if len(arguments) == 1:
            raise BadRequest(f"what of the models? say txt2img models {'|'.join(MODEL_VERBS)}")
        group = typer.main.get_command(_models())
        said = group.main(list(arguments[1:]), prog_name="txt2img models", standalone_mode=False)
        return int(said or 0)
    named = bool(arguments) and arguments[0] in NAMES
    name, rest = (arguments[0], arguments[1:]) if named else ("generate", arguments)
    function, epilog = registry.command(name)
    app = _app(completion=not named)
    # More words than one prompt are no option's fault: generate says what to do about them.
    settings = {"allow_extra_args": name == "generate"}
    app.command(epilog=epilog, context_settings=settings, cls=_class_of(name))(function)
    command = typer.main.get_command(app)
    shown_as = f"txt2img {name}" if named else "txt2img"
    return int(command.main(list(rest), prog_name=shown_as, standalone_mode=False) or 0)


def _class_of(name: str) -> type[SectionedCommand]:
    """The class of a command: only the one that draws reads config.toml."""
    return ConfiguredCommand if name == "generate" else SectionedCommand


def _app(completion: bool = False) -> typer.Typer:
    """A plain application, with the options that install completions if wanted."""
    return typer.Typer(
        add_completion=completion, rich_markup_mode=None, pretty_exceptions_enable=False
    )


def _models() -> typer.Typer:
    """The commands of `txt2img models`."""
    app = _app()
    app.callback()(models_help)
    for verb, (function, epilog) in registry.model_commands().items():
        app.command(verb, epilog=epilog)(function)
    return app


def models_help() -> None:
    """List, show, hash and pull models."""


def _complete() -> int:
    """Print what a shell may offer next, for the command that its line names first."""
    text = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = text.split()[1:]
    app = _app(completion=True)
    if words and words[0] in NAMES:
        app.callback()(models_help)
        app.add_typer(_models(), name="models")
        for name in NAMES:
            if name != "models":
                app.command(name, cls=SectionedCommand)(registry.command(name)[0])
    else:
        app.command(cls=SectionedCommand)(registry.command("generate")[0])
    command = typer.main.get_command(app)
    try:
        command.main([], prog_name="txt2img", complete_var=COMPLETE, standalone_mode=False)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _settle() -> None:
    """Make the process fit to work: descriptors, signals, and a folder to be in."""
    open_missing()
    STOP.listen()
    try:
        os.getcwd()
    except OSError:
        raise BadRequest("the current folder is gone; cd to one that exists") from None


def _fail(line: str, code: int) -> int:
    """Say what went wrong, in one line; where it did only if TXT2IMG_DEBUG is set."""
    if os.environ.get("TXT2IMG_DEBUG"):
        traceback.print_exc()
    log(f"Error: {line}")
    return code
