"""Prompts to the vectors that Stable Diffusion's UNet attends to."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from adir.files import warn_in_one_line


class PromptEncoder:
    """CLIP's text model and its tokenizer, as diffusers' pipelines call them; each prompt is
    encoded once and kept.

    It stays on the CPU in float32: one call a prompt is no time there, and up to 1.4 GB of a GPU
    (the 340 M parameters of Stable Diffusion 2's) are left for the rest.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_model: Any) -> None:
        self.tokenizer, self.text_model = tokenizer, text_model
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompt: str) -> Tensor:
        """(1, L, D) hidden states of the last layer, L the tokenizer's full length (77).

        A longer prompt is cut, as the pipelines do, with a warning that quotes what is lost.
        """
        if prompt not in self._known:
            length = self.tokenizer.model_max_length
            whole = self.tokenizer(prompt)["input_ids"]
            if len(whole) > length:
                lost = self.tokenizer.decode(whole[length - 1 : -1])
                warn_in_one_line(
                    f"prompt cut to its first {length - 2} tokens; without effect: {lost!r}"
                )
            words = self.tokenizer(
                prompt,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            masked = getattr(self.text_model.config, "use_attention_mask", False)
            mask = words.attention_mask if masked else None
            self._known[prompt] = self.text_model(words.input_ids, attention_mask=mask)[0]
        return self._known[prompt]
