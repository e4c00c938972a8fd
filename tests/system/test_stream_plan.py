"""What comes and goes is planned from names and sizes alone, and fits into the room there is."""

import pytest

from txt2img.system.stream_plan import Weight, plan_stream

MATRIX, BIAS = Weight(1024, 2), Weight(64, 1)
LISTS = ("blocks",)
# Eight blocks of two layers each, a table of tokens, and what is in no block.
WEIGHTS = {
    "embed_tokens.weight": Weight(10**6, 2),
    "pad": Weight(64, 2),
    "head.weight": MATRIX,
    **{
        f"blocks.{n}.{layer}.{kind}": one
        for n in range(8)
        for layer in ("attn", "ff")
        for kind, one in (("weight", MATRIX), ("bias", BIAS))
    },
}
BLOCK, REST = 2 * (1024 + 64), 64 + 1024


def test_without_a_limit_no_block_stays() -> None:
    plan = plan_stream(WEIGHTS, LISTS)
    assert list(plan.blocks) == [f"blocks.{n}" for n in range(8)]
    assert plan.streamed == tuple(plan.blocks) and plan.slot == BLOCK
    assert plan.tables == ("embed_tokens.weight",)
    assert plan.least == plan.most == REST + 2 * BLOCK


def test_blocks_stay_as_far_as_there_is_room_spread_evenly() -> None:
    plan = plan_stream(WEIGHTS, LISTS, REST + 6 * BLOCK)
    assert sorted(plan.resident) == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]
    assert plan.most == REST + 6 * BLOCK


def test_all_blocks_stay_where_they_fit() -> None:
    plan = plan_stream(WEIGHTS, LISTS, REST + 8 * BLOCK)
    assert not plan.streamed and plan.most == REST + 8 * BLOCK


def test_layers_take_the_place_of_blocks_that_are_too_large() -> None:
    plan = plan_stream(WEIGHTS, LISTS, REST + 2 * BLOCK - 1)
    assert "blocks.0.attn" in plan.blocks and "head" in plan.blocks and "pad" not in plan.blocks
    assert plan.least == 64 + BLOCK <= plan.most <= REST + 2 * BLOCK - 1


def test_the_least_is_told_where_that_is_too_much_too() -> None:
    assert plan_stream(WEIGHTS, LISTS, 1).least == 64 + BLOCK


@pytest.mark.parametrize("room", range(REST, REST + 9 * BLOCK, 500))
def test_a_plan_never_takes_more_than_there_is_room_for(room: int) -> None:
    plan = plan_stream(WEIGHTS, LISTS, room)
    assert plan.most <= max(room, plan.least)
    assert plan.least <= room or not plan.resident


def test_only_the_outermost_items_of_lists_are_blocks() -> None:
    names = ("down.0.resnets.1.conv.weight", "resnets.0.resnets.1.weight", "resnets.weight")
    plan = plan_stream(dict.fromkeys(names, MATRIX), ("resnets",))
    assert list(plan.blocks) == ["down.0.resnets.1", "resnets.0"]
