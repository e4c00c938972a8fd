"""Typed and bounded values of a model's JSON configs."""

import sys
from collections.abc import Mapping, Sequence

from txt2img.errors import BadFile, UnknownLayout
from txt2img.system.text import shown

Config = Mapping[str, object]
MAX = sys.float_info.max


def check_class(config: Config, where: str, allowed: tuple[str, ...]) -> None:
    """Raise UnknownLayout unless the config is of one of the classes."""
    name = config.get("_class_name", allowed[0])
    if name not in allowed:
        raise UnknownLayout(
            f"{where}: {shown(name)} is not supported; allowed: {', '.join(allowed)}"
        )


def check_fixed(config: Config, where: str, fixed: Config) -> None:
    """Raise UnknownLayout where a config differs from the only supported values."""
    for key, allowed in fixed.items():
        got = config.get(key, allowed)
        if got != allowed:
            raise UnknownLayout(
                f"{where}: {key} is {shown(got)}; only {shown(allowed)} is supported"
            )


def integer(config: Config, key: str, default: int, low: int, high: int) -> int:
    """An integer within low … high. Raises BadFile."""
    value = config.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise BadFile(f"{key} is {shown(value)}; it must be a whole number in {low} … {high}")
    return value


def number(config: Config, key: str, default: float) -> float:
    """A finite number. Raises BadFile."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX:
        raise BadFile(f"{key} is {shown(value)}; it must be a number")
    return float(value)


def flag(config: Config, key: str, default: bool) -> bool:
    """True or false. Raises BadFile."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise BadFile(f"{key} is {shown(value)}; it must be true or false")
    return value


def choice(config: Config, key: str, default: str, names: Mapping[str, str]) -> str:
    """The meaning of a value that is a key of `names`. Raises UnknownLayout."""
    value = config.get(key, default)
    if not isinstance(value, str) or value not in names:
        raise UnknownLayout(f"{key} is {shown(value)}; supported: {', '.join(names)}")
    return names[value]


def int_list(config: Config, key: str, default: Sequence[int]) -> tuple[int, ...]:
    """One to eight integers: the channels of a network's levels."""
    value = config.get(key, default)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 8:
        raise BadFile(f"{key} is {shown(value)}; it must be a list of one to eight whole numbers")
    return tuple(integer({key: item}, key, 0, 1, 16384) for item in value)


def per_level(config: Config, key: str, default: int, levels: int, high: int) -> tuple[int, ...]:
    """One integer a level, from a list or one for all."""
    value = config.get(key, default)
    values = list(value) if isinstance(value, list | tuple) else [value] * levels
    if len(values) != levels:
        raise UnknownLayout(f"{key} has {len(values)} entries for {levels} levels")
    return tuple(integer({key: item}, key, 0, 1, high) for item in values)


def same_for_all(config: Config, key: str, default: int, high: int) -> int:
    """One integer, or a list that repeats it."""
    value = config.get(key, default)
    values = value if isinstance(value, list | tuple) else [value]
    if not values or any(item != values[0] for item in values):
        raise UnknownLayout(f"{key} is {shown(value)}; only the same for all levels is supported")
    return integer({key: values[0]}, key, default, 1, high)


def block_kinds(
    config: Config, key: str, kinds: tuple[str, str], default: tuple[bool, ...]
) -> tuple[bool, ...]:
    """Whether each block is of the first of two kinds."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, list | tuple) or any(item not in kinds for item in value):
        raise UnknownLayout(
            f"{key} is {shown(value)}; supported: {', '.join(dict.fromkeys(kinds))}"
        )
    return tuple(item == kinds[0] for item in value)
