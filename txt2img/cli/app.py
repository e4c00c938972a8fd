"""Run a command line; report any error as one line and an exit code.

0 success, 1 failure, 2 usage error, 3 some pictures of a batch failed, 4 a picture was rejected,
5 out of memory, 130 and 143 stopped by a signal.
"""

import errno
import os
import signal
import traceback
from collections.abc import Sequence
from itertools import pairwise

import typer

from txt2img.cli import last_line, registry
from txt2img.cli.options.command import ConfiguredCommand, SectionedCommand
from txt2img.cli.registry import MODEL_VERBS, NAMES, OTHER_VERBS
from txt2img.cli.terminal.console import BrokenStdout, log, open_missing
from txt2img.cli.terminal.signals import STOP, STOPPED, Stopped
from txt2img.errors import BadRequest, Txt2imgError
from txt2img.system.files import reason
from txt2img.system.text import nearest, shown

WIDTH_MAX = 100  # columns of help
LISTS = {("--sampler", "list"), ("--schedule", "list")}
COMPLETE = "_TXT2IMG_COMPLETE"  # set by the completion scripts of shells


def run(arguments: Sequence[str]) -> int:
    """Run a command line. Returns the exit code."""
    try:
        _prepare()
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
        return _fail("this machine has too little memory; choose a smaller size", 5)
    except ImportError as error:
        from txt2img.system.missing import explain

        return _fail(*explain(error))
    except OSError as error:
        return _fail(*_system_failed(error))
    except Exception as error:  # noqa: BLE001 - the last resort: one line for any error
        line = f"unexpected {type(error).__name__}: {error}"
        return _fail(f"{line} (TXT2IMG_DEBUG=1 shows where)", 1)


def _dispatch(arguments: Sequence[str]) -> int:
    """Run the command that the line names first, or generate. Returns the exit code."""
    if COMPLETE in os.environ:
        return _complete()
    topic, arguments = _help_asked(list(arguments))
    if any(pair in LISTS for pair in pairwise(arguments)):
        arguments = ["samplers"]
    named = bool(arguments) and arguments[0] in NAMES
    name, rest = (arguments[0], arguments[1:]) if named else ("generate", arguments)
    if name == "models":
        rest = ["--help"] if rest and rest[0] == "-h" else rest
        if not rest:
            raise BadRequest(f"models needs a verb: txt2img models {'|'.join(MODEL_VERBS)}")
        check_model_verb(rest[0])
        app = _models()
    else:
        app = _app(completion=not named)
        function, epilog = registry.command(name)
        # generate reports a second prompt itself: quotes are missing.
        # again hands all other options on.
        settings = {
            "allow_extra_args": name in ("generate", "again"),
            "ignore_unknown_options": name == "again",
            "max_content_width": WIDTH_MAX,
            "obj": topic,
        }
        # Only generate reads config.toml.
        cls = ConfiguredCommand if name == "generate" else SectionedCommand
        app.command(epilog=epilog, context_settings=settings, cls=cls)(function)
    program = f"txt2img {name}" if named else "txt2img"
    command = typer.main.get_command(app)
    code = int(command.main(list(rest), prog_name=program, standalone_mode=False) or 0)
    if name == "generate" and not code:
        last_line.save(rest)
    return code


def _help_asked(arguments: list[str]) -> tuple[str, list[str]]:
    """The topic of txt2img help [COMMAND|TOPIC], and the line that prints it; else the line."""
    if arguments[:1] != ["help"]:
        return "", arguments
    about = arguments[1:]
    if about[:1] == ["models"] and about[1:] and about[1] in MODEL_VERBS:
        return "", [*about[:2], "--help"]
    if len(about) > 1:  # a prompt without quotes
        return "", arguments
    word = "".join(about)
    return ("", [word, "--help"]) if word in NAMES else (word, ["--help"])


def _app(completion: bool = False) -> typer.Typer:
    """A typer application, optionally with --install-completion and --show-completion."""
    return typer.Typer(
        add_completion=completion, rich_markup_mode=None, pretty_exceptions_enable=False
    )


def _models() -> typer.Typer:
    """The commands of `txt2img models`."""
    app = _app()
    app.callback()(models_help)
    for verb, (function, epilog) in registry.model_commands().items():
        app.command(verb, epilog=epilog, cls=SectionedCommand)(function)
    return app


def check_model_verb(verb: str) -> None:
    """Raise BadRequest for a verb that `txt2img models` does not have."""
    if verb in MODEL_VERBS or verb.startswith("-"):
        return
    known = "|".join(MODEL_VERBS)
    hint = (
        f"; did you mean {OTHER_VERBS[verb]}?"
        if verb in OTHER_VERBS
        else nearest(verb, MODEL_VERBS)
    )
    raise BadRequest(f"no verb {shown(verb)}; say txt2img models {known}{hint}")


def models_help() -> None:
    """List, show, convert and pull models."""


def _complete() -> int:
    """Print completions of an unfinished command line, for a shell."""
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


def _prepare() -> None:
    """Open missing standard streams, handle signals, set torch's environment. BadRequest."""
    open_missing()
    STOP.listen()
    # Huge pages for torch's large buffers, which Linux then fills several times as fast.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait sleep soon: if two programs on the same cores spin, both take ten times as
    # long as they need.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        os.getcwd()
    except OSError:
        raise BadRequest("the current folder is gone; cd to one that exists") from None


def _system_failed(error: OSError) -> tuple[str, int]:
    """The line and exit code for what the system refused: its reason, and the file's name."""
    if error.errno == errno.ENOMEM:
        return "this machine has too little memory; choose a smaller size", 5
    where = "" if error.filename is None else f"{shown(str(error.filename), 200)}: "
    return f"{where}{reason(error)} (TXT2IMG_DEBUG=1 shows where)", 1


def _fail(line: str, code: int) -> int:
    """Log an error in one line, with a traceback if TXT2IMG_DEBUG is set. Returns the code."""
    if os.environ.get("TXT2IMG_DEBUG"):
        traceback.print_exc()
    log(f"Error: {line}")
    return code
