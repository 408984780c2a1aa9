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
    quiet,
    require_finite,
    require_images,
    tensors_sha256,
)

MAX_TOKENS = 35  # per prompt, as in the authors' retrieval evaluation
SOURCE = "https://huggingface.co/Salesforce/blip-itm-base-coco"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
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
        missing = [
            name
            for name in ("config.json", "preprocessor_config.json")
            if not (self.folder / name).is_file()
        ]
        if not any((self.folder / name).is_file() for name in WEIGHTS_FILES):
            missing.append(" or ".join(WEIGHTS_FILES))
        if missing:
            raise InputError(f"BLIP: {self.folder} misses {', '.join(missing)}; {get}")
        self.name, self.device = "blip", device
        self.network = load_network(self.folder).to(device)
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
        require_images(image[None])
        inputs: Tensor = self.processor(as_pil(image), return_tensors="pt")["pixel_values"]
        return inputs[0]

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


def load_network(folder: Path) -> Any:
    """Return the network in a folder: float32, in evaluation mode, frozen.

    Raises InputError if the weights do not match the network exactly. transformers itself would
    only log a warning, and would initialise a missing tensor randomly.
    """
    try:
        with quiet():  # hides the log of mismatches; the errors below report them in one line
            network, report = BlipForImageTextRetrieval.from_pretrained(
                folder,
                local_files_only=True,
                weights_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    # transformers, safetensors, torch and json have no common error class for damaged files
    except Exception as error:
        raise InputError(
            f"BLIP: the network in {folder} cannot be read "
            f"({' '.join(str(error).split())[:300]}); download {SOURCE} again"
        ) from error
    # position_ids are 0, 1, 2, ...: transformers saved them until 2023 and computes them today.
    extra = [name for name in report["unexpected_keys"] if not name.endswith("position_ids")]
    faults = {
        "of another shape": [name for name, _, _ in report["mismatched_keys"]],
        "missing": report["missing_keys"],
        "not part of the network": extra,
    }
    for fault, names in faults.items():
        if names:
            raise InputError(
                f"BLIP: the weights in {folder} are not those of the image-text retrieval model "
                f"that config.json describes ({min(names)} is {fault}); download {SOURCE} or "
                "another blip-itm checkpoint"
            )
    require_finite(network.state_dict(), folder)
    return network.eval().requires_grad_(False)
