"""The contrastive image and text encoders of BLIP (Li et al., 2022), from transformers."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipImageProcessorPil

from adir.errors import InputError
from adir.files import sha256_of_bytes, warn_in_one_line
from adir.retrieval.encoders.base import (
    Encoder,
    as_pil,
    encode,
    require_finite,
    tensors_sha256,
)
from adir.weights.checkpoint import read_config
from adir.weights.model_folder import load_model

MAX_TOKENS = 35  # per prompt, as in the authors' retrieval evaluation
SOURCE = "https://huggingface.co/Salesforce/blip-itm-base-coco"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


class BlipEncoder(Encoder):
    """Encoder with BLIP for image-text retrieval.

    The network is transformers' `BlipForImageTextRetrieval`, whose projections are trained
    contrastively. `BlipModel` names its projections differently. No published checkpoint has these
    names, so its projections would stay random.

    Images are preprocessed by transformers' Pillow processor, as in the authors' code. The default
    processor works on tensors. For an upsampled image, both processors give the same result. For a
    downsampled image, the results differ by up to 2 grey levels (0.005 on average).

    Args:
        folder: folder with config.json, preprocessor_config.json and model.safetensors (or
            pytorch_model.bin), from `save_pretrained` or from the Hugging Face hub. To encode
            prompts, the folder must also hold tokenizer.json or vocab.txt.
        device: device of the network.

    Raises:
        InputError: if the folder or a file is missing, or if the weights are damaged or belong to
            another network.
    """

    metric = "angular"

    def __init__(self, folder: str | Path | None = None, device: str = "cpu") -> None:
        get = f"download the files of {SOURCE} and set folder=FOLDER"
        if folder is None:
            raise InputError(f"BLIP: no folder of weights is set; {get}")
        self.folder = Path(folder)
        self.name, self.device = "blip", device
        try:
            read_config(self.folder / "preprocessor_config.json")
            self.network = load_model(self.folder, BlipForImageTextRetrieval).to(device)
        except InputError as error:
            raise InputError(f"BLIP: {error}; {get}") from error
        require_finite(self.network.state_dict(), self.folder)
        self.processor = BlipImageProcessorPil.from_pretrained(self.folder, local_files_only=True)
        self.input_size = int(self.processor.size["height"])
        self.weights_sha256 = sha256_of_bytes(
            json.dumps(
                {
                    "network": self.network.config.to_diff_dict(),
                    "preprocess": json.loads(self.processor.to_json_string()),
                    "weights": tensors_sha256(self.network.state_dict()),
                },
                sort_keys=True,
            ).encode()
        )

    def prepare(self, image: Tensor) -> Tensor:
        """Return the network's input for one (3, H, W) image in [-1, 1].

        The image is rounded to 8 bits first.
        """
        return self.processor(as_pil(image), return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def vectors(self, inputs: Tensor) -> Tensor:
        """Return (B, D) unit vectors of a batch of prepared inputs."""
        return encode(self._image_features, inputs, self.device).clone()

    @torch.inference_mode()
    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of prompts.

        A prompt of more than 35 tokens is shortened to 35, with a warning.
        """
        rows = []
        # One by one, without padding, so that a prompt's vector does not depend on the others.
        for prompt in prompts:
            needed = len(self.tokenizer(prompt)["input_ids"])
            if needed > MAX_TOKENS:
                warn_in_one_line(
                    f"a prompt of {needed} tokens is cut to BLIP's limit of {MAX_TOKENS}: "
                    f"{prompt[:40]!r}..."
                )
            tokens = self.tokenizer(
                prompt, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )["input_ids"]
            rows.append(encode(self._text_features, tokens, self.device))
        return torch.cat(rows).clone()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the folder. Raises InputError if the folder has no tokenizer."""
        if not any((self.folder / name).is_file() for name in TOKENIZER_FILES):
            raise InputError(
                f"BLIP: no tokenizer in {self.folder}; download {TOKENIZER_FILES[0]} of {SOURCE}"
            )
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self.network.vision_proj(
            self.network.vision_model(pixel_values=pixels).last_hidden_state[:, 0]
        )

    def _text_features(self, tokens: Tensor) -> Tensor:
        return self.network.text_proj(
            self.network.text_encoder(input_ids=tokens).last_hidden_state[:, 0]
        )
