"""The commands by their names."""

import pytest

from txt2img.cli.registry import MODEL_VERBS, NAMES, command, model_commands


@pytest.mark.parametrize("name", [name for name in NAMES if name != "models"])
def test_each_name_is_that_of_its_command(name: str) -> None:
    function, epilog = command(name)
    assert function.__name__ == name
    assert f"txt2img {'' if name == 'generate' else name}".strip() in epilog


def test_the_verbs_of_models_are_its_commands() -> None:
    assert tuple(model_commands()) == MODEL_VERBS


def test_the_help_lists_every_command() -> None:
    _, epilog = command("generate")
    listed = epilog.partition("Commands (each has its own --help):")[2].splitlines()
    named = [line.split()[1] for line in listed if line.strip().startswith("txt2img ")]
    assert sorted(named) == sorted([*NAMES, "help"])
