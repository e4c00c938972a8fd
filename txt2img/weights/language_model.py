"""Local language model that rewrites prompts: a folder of transformers, loaded only while it does.

Its weights are safetensors, and nothing in the folder is run as code.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.errors import BadFile, EnhanceFailed, ModelNotFound
from txt2img.models.transformers_library import quietly
from txt2img.system.device import memory
from txt2img.system.device.device import has_bf16
from txt2img.system.device.memory import oom_as_error
from txt2img.system.files import read_json
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file
from txt2img.weights.registry.hashes import model_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_MAX = 256
PROMPT_MAX = 8192  # tokens of instructions and prompt
SECONDS = 600.0  # for one answer
CAUSAL = ("ForCausalLM", "LMHeadModel")  # ends of the names of what continues texts
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


class LanguageModel:
    """The language model in a folder; `load` reads its weights, `free` gives their memory back."""

    def __init__(self, folder: Path) -> None:
        """Check the folder's files. ModelNotFound, BadFile."""
        if not folder.is_dir():
            raise ModelNotFound(
                f"--enhance: no folder {shown(folder)}; give that of a language model "
                "(config.json, tokenizer.json, model.safetensors), or the URL of a server"
            )
        kinds = read_json(folder / "config.json").get("architectures")
        if not (isinstance(kinds, list) and kinds and str(kinds[0]).endswith(CAUSAL)):
            raise BadFile(
                f"--enhance: {shown(folder)} is not a language model that writes texts, but "
                f"{shown(kinds[0] if isinstance(kinds, list) and kinds else kinds)}"
            )
        self.folder = folder
        self.paths = safetensors_file.component(folder, "model").paths
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def hash(self) -> str:
        """Ten digits of the SHA-256 of its weights."""
        return model_hash(self.paths)

    def load(self, device: "torch.device") -> None:
        """Load weights and tokenizer. BadFile, OutOfMemory."""
        import torch

        fast = torch.bfloat16 if has_bf16(device) else torch.float32
        half = torch.float16 if device.type in ("cuda", "mps") else fast
        with quietly(), oom_as_error("the language model"):
            try:
                from transformers import AutoModelForCausalLM, AutoTokenizer
                from transformers.utils import logging

                logging.disable_progress_bar()
                only_here = {"local_files_only": True, "trust_remote_code": False}
                tokenizer = AutoTokenizer.from_pretrained(self.folder, **only_here)
                model, loading_info = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    dtype=fast if fast == torch.bfloat16 else half,
                    use_safetensors=True,
                    output_loading_info=True,
                    **only_here,
                )
            except BROKEN as error:
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                raise BadFile(
                    f"--enhance: {shown(self.folder)} cannot be loaded: {shown(reason, 150)}"
                ) from error
            if missing := sorted(loading_info["missing_keys"]):
                raise BadFile(
                    f"--enhance: {shown(self.folder)} lacks {len(missing)} tensors, such as "
                    f"{shown(missing[0])}; download the folder again"
                )
            self._loaded = model.to(device).eval(), tokenizer

    def free(self) -> None:
        """Give the memory of its weights back."""
        import gc

        self._loaded = None
        gc.collect()
        memory.free()

    def answer(self, instructions: str, prompt: str, seed: int, temperature: float) -> str:
        """The answer to a user who says `prompt`; without a chat template, its continuation.

        EnhanceFailed.
        """
        import torch

        assert self._loaded is not None, "load() comes first"
        model, tokenizer = self._loaded
        ids = self._ids(tokenizer, instructions, prompt).to(model.device)  # (1, L)
        if ids.shape[1] > PROMPT_MAX:
            raise EnhanceFailed(f"the prompt has {ids.shape[1]:,} tokens")
        chosen = {"do_sample": True, "temperature": temperature} if temperature else {}
        with quietly(), torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                whole = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=TOKENS_MAX,
                    max_time=SECONDS,
                    pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                    **(chosen or {"do_sample": False}),
                )
            except (RuntimeError, ValueError, IndexError) as error:
                reason = str(error).strip().split("\n")[0]
                raise EnhanceFailed(f"the language model fails: {shown(reason, 120)}") from error
        text = str(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
        return text if tokenizer.chat_template else f"{prompt}{text}"

    def _ids(
        self, tokenizer: "PreTrainedTokenizerBase", instructions: str, prompt: str
    ) -> "torch.Tensor":
        """Token ids (1, L) of a chat's beginning. EnhanceFailed."""
        import torch
        from jinja2 import TemplateError

        if not tokenizer.chat_template:
            return torch.tensor([tokenizer(prompt)["input_ids"]])
        system = {"role": "system", "content": instructions}
        user = {"role": "user", "content": prompt}
        both = {"role": "user", "content": f"{instructions}\n\n{prompt}"}
        for turns in ([system, user], [both]):  # some templates know no system prompt
            try:
                text = tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, enable_thinking=False, tokenize=False
                )
            except TemplateError as error:
                reason = str(error)
            else:
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                return torch.tensor([ids])
        raise EnhanceFailed(f"the chat template of the language model fails: {shown(reason, 120)}")
