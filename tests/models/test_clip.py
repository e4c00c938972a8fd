"""CLIP's text transformer against transformers', layer by layer."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from txt2img.models.clip import CLIPText
from txt2img.models.configs import TextConfig

SMALL = TextConfig(vocab=50, width=32, layers=3, heads=4, mlp=80, length=12)
IDS = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))


def pair(act: str) -> tuple[CLIPText, CLIPTextModel]:
    """The same network, ours and theirs."""
    ours = CLIPText(TextConfig(50, 32, 3, 4, 80, 12, act)).eval()
    theirs = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=80,
            max_position_embeddings=12,
            hidden_act=act,
        )
    ).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prefixed_names = {f"text_model.{n}": v for n, v in ours.state_dict().items()}
    names = {n for n in theirs.state_dict() if not n.endswith("position_ids")}
    prefixed = any(name.startswith("text_model.") for name in names)
    theirs.load_state_dict(prefixed_names if prefixed else ours.state_dict(), strict=False)
    assert names == set(prefixed_names if prefixed else ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("length", [12, 5])
@torch.no_grad()
def test_every_layer_equals_transformers(act: str, length: int) -> None:
    ours, theirs = pair(act)
    states = ours(IDS[:, :length])
    expected = theirs(input_ids=IDS[:, :length], output_hidden_states=True)
    assert len(states) == len(expected.hidden_states)
    for ours_at, theirs_at in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours_at, theirs_at, rtol=1e-5, atol=1e-5)
    last = ours.final_layer_norm(states[-1])
    torch.testing.assert_close(last, expected.last_hidden_state, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_is_causal() -> None:
    clip, changed = CLIPText(SMALL).eval(), IDS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = clip(IDS)[-1], clip(changed)[-1]
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_initial_weights_have_clips_standard_deviations() -> None:
    clip = CLIPText(TextConfig(vocab=2000, width=256, layers=4, heads=4, mlp=1024, length=32))
    layer = clip.encoder.layers[2]
    for weight, std in (
        (clip.embeddings.token_embedding.weight, 0.02),
        (layer.self_attn.q_proj.weight, 256**-0.5 * 8**-0.5),
        (layer.self_attn.out_proj.weight, 256**-0.5),
        (layer.mlp.fc1.weight, 512**-0.5),
        (layer.mlp.fc2.weight, 256**-0.5 * 8**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert not layer.mlp.fc2.bias.any()
