"""Textual inversion: the vectors of a new word, learnt from pictures (Gal et al. 2022)."""

from collections.abc import Sequence
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadRequest
from txt2img.models.clip import TextEncoder
from txt2img.train.adapter_stage import AdapterStage
from txt2img.train.config import TrainConfig
from txt2img.weights.adapters.file_layout import A1111, XL
from txt2img.weights.formats.safetensors_file import write


class TokenTable(nn.Module):
    """A text encoder's table of tokens, followed by the rows of a new word."""

    def __init__(self, table: nn.Embedding, vectors: nn.Parameter) -> None:
        super().__init__()
        self.hidden = table, vectors  # in a tuple, so that they have one owner each

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (N, L, D) of ids (N, L)."""
        table, vectors = self.hidden
        new = ids - len(table.weight)
        known: Tensor = table(ids.clamp(max=len(table.weight) - 1))
        taught = functional.embedding(new.clamp(min=0), vectors).to(known.dtype)
        return torch.where((new >= 0)[..., None], taught, known)


class InversionObjective(nn.Module):
    """The loss of a new word's vectors; the model that reads them is frozen."""

    def __init__(self, stage: "InversionStage", vectors: Sequence[Tensor]) -> None:
        super().__init__()
        self.hidden = (stage,)
        self.vectors = nn.ParameterList(nn.Parameter(rows) for rows in vectors)

    def forward(
        self,
        x0: Tensor,
        noise: Tensor,
        time: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        *ids: Tensor,
    ) -> Tensor:
        """A batch as AdapterStage.batch gives it, ids (B, L) for each encoder → a scalar."""
        [stage] = self.hidden
        rows = zip(stage.model.clips, ids, strict=True)
        states = [encoder.states(row) for encoder, row in rows]
        cond = Cond(torch.cat([tokens for tokens, _ in states], dim=-1), states[-1][1])
        return stage.loss(stage.with_sizes(cond), x0, noise, time, alpha, sigma)


class InversionStage(AdapterStage):
    """Trains a word's vectors for each text encoder."""

    name = "embedding"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator, config.embedding_run)
        assert config.adapter is not None
        self.word = config.adapter.stem
        encoders = self.model.clips
        self.objective = InversionObjective(
            self, [first_vectors(encoder, config) for encoder in encoders]
        )
        self.learner = self.objective
        for encoder, vectors in zip(encoders, self.objective.vectors, strict=True):
            table = encoder.model.embeddings.token_embedding
            ids = range(table.num_embeddings, table.num_embeddings + config.vectors)
            encoder.tokenizer.embedding_ids[self.word] = list(ids)
            encoder.model.embeddings.token_embedding = cast(
                nn.Embedding, TokenTable(table, cast(nn.Parameter, vectors))
            )

    def prepared(self, caption: str) -> str:
        """A caption with the word in it, in front where it is not said."""
        return caption if self.word.lower() in caption.lower() else f"{self.word}, {caption}"

    def text_inputs(self, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """The token ids (B, L) of the captions' first chunks, for each encoder."""
        tokenizers = [encoder.tokenizer for encoder in self.model.clips]
        return tuple(
            torch.tensor([one.weighted_chunks(text)[0].ids for text in captions]).to(
                self.accelerator.device
            )
            for one in tokenizers
        )

    def export(self) -> None:
        """Write the vectors: A1111's single tensor, or one for each of SDXL's encoders."""
        vectors = list(self.objective.vectors)
        names = (A1111,) if len(vectors) == 1 else XL[0]
        assert self.config.adapter is not None
        tensors = {name: rows.float() for name, rows in zip(names, vectors, strict=True)}
        write(tensors, self.config.adapter, {"format": "pt"})


def first_vectors(encoder: TextEncoder, config: TrainConfig) -> Tensor:
    """The vectors (N, D) to begin with: those of `init_word`, repeated as often as needed.

    Raises BadRequest for a word without tokens.
    """
    ids = encoder.tokenizer.tokens(config.init_word)
    if not ids:
        raise BadRequest(f"init_word {config.init_word!r} has no tokens; give a word such as toy")
    rows = [ids[n % len(ids)] for n in range(config.vectors)]
    return encoder.model.embeddings.token_embedding.weight[rows].detach().clone()
