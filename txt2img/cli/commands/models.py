"""txt2img models: list, show, search, hash, convert and download models."""

import os
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli import convert_model
from txt2img.cli.file_info import print_record, weights
from txt2img.cli.options.completion import known_models, pullable
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import (
    Bar,
    log,
    print_json,
    print_line,
    print_path,
    print_row,
    print_table,
    progress,
)
from txt2img.errors import BadFile, BadRequest, ModelNotFound, Txt2imgError
from txt2img.request.taught_words import describe, read_taught_words, words_in
from txt2img.system import user_config
from txt2img.system.files import cannot_read, open_regular
from txt2img.system.text import format_size, nearest, shown

if TYPE_CHECKING:
    from txt2img.weights.checkpoint import Summary

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A model's name or path.", autocompletion=known_models)
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME", help="Names or paths.", autocompletion=known_models),
]
HubId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A short name such as sd15, or a Hub id: owner/model[@REVISION][:FILE.safetensors].",
        autocompletion=pullable,
    ),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", metavar="NAME", help="Prefer weights of this variant, such as fp16."),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", help="Use another Hub, as HF_ENDPOINT."),
]
MaybeName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A model's name or path.", autocompletion=known_models),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
WordsModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model with a table of words (default).",
        autocompletion=known_models,
    ),
]
Query = Annotated[str | None, typer.Argument(metavar="QUERY", help="A word, or a part of one.")]
WordsJson = Annotated[bool, typer.Option("--json", help="Print one JSON record.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the path and errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON record per model.")]


SCHEMA = 1  # the version of --json records; raised when a key changes its meaning


def list_models(json: Json = False) -> None:
    """List models and LoRAs known by name.

    Prints their family, layout, size and path: as a table on a terminal, with tabs in a pipe.
    """
    from txt2img.weights.checkpoint import DEFAULT
    from txt2img.weights.file_kind import kind_of
    from txt2img.weights.registry import find, hub_cache

    unreadable: list[OSError] = []
    rows = []
    found = chain([("default", DEFAULT)], find.list_configured(), find.list_models(unreadable))
    seen = set[str]()
    for name, path in found:
        if name in seen:  # config.toml's comes first, as everywhere
            continue
        seen.add(name)
        if os.path.isfile(path) and (line := _unreadable(path)):
            log(f"Note: {line}")
            continue
        model = _summary(name, path)
        family, layout = (model.family.name, model.layout) if model else ("", "")
        kind = "model" if model else kind_of(path)
        if not kind and hub_cache.source(path):
            continue  # weights of other programs
        size = model.size if model else _size(path)
        if json:
            row = {"name": name, "kind": kind, "family": family, "layout": layout, "size": size}
            print_json({"schema": SCHEMA, **row, "path": str(path)})
        else:
            rows.append((name, family or kind or "-", layout or "-", format_size(size), path))
    print_table(("NAME", "KIND", "LAYOUT", "SIZE", "PATH"), rows)
    for line in cannot_read(unreadable):
        log(f"Note: {line}")


def _unreadable(path: Path) -> str:
    """The reason why a file cannot be read; empty if it can."""
    try:
        open_regular(path).close()
    except BadFile as error:
        return str(error)
    return ""


def show_model(name: Name, json: Json = False) -> None:
    """Show what a model is, and where it comes from."""
    from txt2img.weights.checkpoint import find_model
    from txt2img.weights.registry.find import source

    path = find_model(name)
    record: dict[str, object] = {
        **weights(str(path) if name != "default" else name),
        "path": str(path),
        **source(path),
    }
    if json:
        print_json({"schema": SCHEMA, **record})
        return
    print_record(name, record)


def words_of(model: WordsModel = None, query: Query = None, json: WordsJson = False) -> None:
    """List the words that a model was taught, or search them.

    Prints each word and the things that it names. Without a query, prints the things.
    """
    from txt2img.weights.checkpoint import find_model

    name, query = _model_and_query(model, query)
    table = read_taught_words(find_model(name))
    if table is None:
        raise ModelNotFound(
            f"{shown(name)} does not say which words it was taught: its folder has no words.json"
        )
    things = table.things
    if query is None:
        found: dict[str, Sequence[str]] = {thing: [thing] for thing in things} or {**table.words}
    elif not (found := table.search(query)):
        untaught = ", ".join(describe(table, word) for word in words_in(query)) or shown(query)
        raise ModelNotFound(f"{shown(name)} was never taught {untaught}")
    if json:
        print_json({"schema": SCHEMA, "model": name, "words": found})
        return
    for word, named in found.items():
        print_row(word, *([] if query is None else [", ".join(named)]))
    if query is None:
        log(f"{len(found):,} things; {len(table.words):,} words in all, which a QUERY searches.")


def _model_and_query(model: str | None, query: str | None) -> tuple[str, str | None]:
    """A lone argument is a model if there is one of that name, else a query of the default one."""
    from txt2img.weights.registry import find

    if model is None or query is not None or model == "default":
        return model or "default", query
    try:
        find.find(model)
    except ModelNotFound:
        return "default", model
    return model, None


def path_of(name: Name) -> None:
    """Print a model's path."""
    from txt2img.weights.checkpoint import find_model

    print_path(find_model(name))


def hash_models(names: Names, json: Json = False) -> None:
    """Print the hashes of models.

    A1111's (10 digits), a LoRA's (12), and the whole SHA-256; with --json also that of a folder's
    configs and tokenizers (8).
    """
    from txt2img.weights.checkpoint import find_model, open_checkpoint, weight_files
    from txt2img.weights.registry.hashes import model_hash, tensors_start

    for name in names:
        place = find_model(name)
        paths = weight_files(place)
        with progress(True, name) as bar:
            digests = {str(path): _digest(path, 0, bar) for path in paths}
            lora = sha256 = ""
            if len(paths) == 1:
                [path], [sha256] = paths, digests.values()
                lora = _digest(path, tensors_start(path), bar)[:12]  # of the tensors alone
        short = model_hash(paths)
        if json:
            config = open_checkpoint(name).config_hash() if place.is_dir() else ""
            record = {"name": name, "hash": short, "lora": lora, "sha256": sha256}
            print_json({**record, "config": config, "files": digests})
        else:
            print_row(short, lora or "-", sha256 or "-", name)


def _digest(path: Path, start: int, bar: Bar) -> str:
    """The SHA-256 of a file from an offset on."""
    from txt2img.weights.registry.hashes import hash_progress

    for read in hash_progress(path, start):
        bar.advance(path.name, read.done, read.size, "")
    return read.digest


def pull_model(
    name: HubId, variant: Variant = None, endpoint: Endpoint = None, quiet: Quiet = False
) -> None:
    """Download a model from the Hub, for use offline too. Prints its path."""
    from txt2img.weights.registry import hub
    from txt2img.weights.registry.aliases import ALIASES
    from txt2img.weights.registry.find import hub_ref

    ref = hub_ref(name)
    if ref is None:
        hint = nearest(name, ALIASES) or f"; short names: {', '.join(ALIASES)}"
        raise BadRequest(f"{shown(name)} is not a Hub id such as owner/model{hint}")
    hub.keep_quiet(quiet or not sys.stderr.isatty())
    plan = hub.plan_download(ref, variant, endpoint)
    if not quiet:
        contents = f"{len(plan.files)} files, {format_size(plan.size)}"
        log(f"{ref.id} at {plan.revision[:12]}: {contents}; licence: {shown(plan.licence)[1:-1]}")
    print_path(hub.download(plan, endpoint))


def _summary(name: str, path: Path) -> "Summary | None":
    """The summary of a model; None for other weights, such as LoRAs."""
    from txt2img.weights.checkpoint import summary

    try:
        return summary("default" if name == "default" else str(path), hashed=False)
    except BadFile:
        return None
    except Txt2imgError as error:
        log(f"Note: {path}: {error}")
        return None


def _size(path: Path) -> int:
    """The bytes of a file, or of all in a folder that can be read."""
    files = [path] if os.path.isfile(path) else [*path.rglob("*")]
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def remove_model(name: Name, yes: Yes = False) -> None:
    """Delete a model from this machine, after asking. Prints its path.

    A model of the Hugging Face cache goes with all its revisions.
    """
    from txt2img.weights.checkpoint import DEFAULT, find_model
    from txt2img.weights.registry import find, hub_cache

    path = find_model(name)
    pulled = hub_cache.source(path)
    owned = any(folder.absolute() in path.absolute().parents for folder in find.folders())
    if path == DEFAULT or DEFAULT in path.absolute().parents:
        raise BadRequest(f"{shown(name)} comes with txt2img, and stays")
    if pulled is None and not owned:
        raise BadRequest(f"{shown(path)} is in no folder of models; delete it yourself")
    target = f"{pulled.id}, with all its revisions," if pulled else shown(path)
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise BadRequest(f"{target} is deleted for good; say --yes")
        if not typer.confirm(f"Delete {target} for good?", err=True):
            raise typer.Exit(1)
    parents = path.absolute().parents
    repository = next((one for one in parents if one.name.startswith("models--")), path)
    find.delete(repository if pulled else path)
    print_path(path)


def default_model(name: MaybeName = None) -> None:
    """Print the model that is used without --model, or make NAME that one, in config.toml."""
    from txt2img.weights.checkpoint import find_model, summary

    if name is None:
        print_line(str(user_config.read_config().defaults.get("model", "default")))
        return
    path = find_model(name)
    summary(name, hashed=False)  # or it is no model
    value = str(path.absolute()) if os.path.lexists(name) else name
    config = user_config.set_default("model", value)
    log(f"{config}: defaults.model is {value}")


COMMANDS: dict[str, Command] = {
    "list": (list_models, "Example: txt2img models list --json"),
    "show": (show_model, "Example: txt2img models show default"),
    "words": (words_of, "Example: txt2img models words default kitten"),
    "path": (path_of, "Example: txt2img models path sd15"),
    "hash": (hash_models, "Example: txt2img models hash default models/style.safetensors"),
    "convert": convert_model.COMMAND,
    "pull": (pull_model, "Example: txt2img models pull sd15 --variant fp16"),
    "rm": (remove_model, "Example: txt2img models rm sd21"),
    "default": (default_model, "Example: txt2img models default sd15"),
}
