"""CLIP (Radford et al., 2021), the encoder of ADIR's experiments, from the library open_clip."""

import functools
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from adir.errors import InputError
from adir.files import sha256_of_bytes, warn_in_one_line
from adir.retrieval.encoders.base import (
    Encoder,
    as_pil,
    encode,
    tensors_sha256,
)
from adir.retrieval.encoders.clip_weights import find_checkpoint, load_weights, published_weights
from adir.weights.model_folder import quiet


class OpenClipEncoder(Encoder):
    """Encoder with a network of open_clip, its preprocessing and its tokenizer.

    `ClipEncoder` and `CyclipEncoder` are its subclasses; `random_clip` returns an instance. Images
    are rounded to 8 bits and preprocessed by open_clip's own transform, as in training. By default,
    the transform resizes the shorter side to the input size (bicubic), crops the centre, and
    normalises with the mean and standard deviation of OpenAI's data.

    Args:
        name: label for tables and messages.
        architecture: name of the architecture in open_clip.
        network: network of this architecture, in evaluation mode.
        preprocess: the fields of open_clip's PreprocessCfg.
        device: device of the network.

    Raises:
        InputError: if the network's input is not square.
    """

    metric = "angular"

    def __init__(
        self,
        name: str,
        architecture: str,
        network: nn.Module,
        preprocess: dict[str, Any],
        device: str,
    ) -> None:
        config = PreprocessCfg(**preprocess)
        size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
        if size[0] != size[1]:
            raise InputError(
                f"CLIP architecture {architecture} has {size[1]}x{size[0]} input; choose one with "
                "square input"
            )
        self.name, self.architecture, self.device = name, architecture, device
        self.input_size = size[0]
        self.weights_sha256 = sha256_of_bytes(
            json.dumps(
                {
                    "architecture": open_clip.get_model_config(architecture),
                    "preprocess": preprocess,
                    "weights": tensors_sha256(network.state_dict()),
                },
                sort_keys=True,
            ).encode()
        )
        self.network: Any = network.to(device)
        self.preprocess: Any = image_transform_v2(config, is_train=False)

    def prepare(self, image: Tensor) -> Tensor:
        """Return the network's input for one (3, H, W) image in [-1, 1].

        The image is rounded to 8 bits first.
        """
        return self.preprocess(as_pil(image))

    @torch.inference_mode()
    def vectors(self, inputs: Tensor) -> Tensor:
        """Return (B, D) unit vectors of a batch of prepared inputs."""
        return encode(self.network.encode_image, inputs, self.device).clone()

    @torch.inference_mode()
    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of prompts.

        A prompt that is longer than the network's context length is shortened to it, with a
        warning.
        """
        tokens = self.tokenizer(prompts)
        for prompt, row in zip(prompts, tokens, strict=True):
            needed = len(self.tokenizer.encode(prompt)) + 2
            if needed > len(row):
                warn_in_one_line(
                    f"a prompt of {needed} tokens is cut to {self.name}'s limit of {len(row)}: "
                    f"{prompt[:40]!r}..."
                )
        return encode(self.network.encode_text, tokens, self.device).clone()

    @functools.cached_property
    def tokenizer(self) -> open_clip.SimpleTokenizer:
        """CLIP's tokenizer, whose vocabulary is part of open_clip.

        Raises InputError if the architecture needs another tokenizer.
        """
        text = open_clip.get_model_config(self.architecture)["text_cfg"]
        if text.get("hf_tokenizer_name") or "siglip" in self.architecture.lower():
            raise InputError(
                f"{self.name}: the tokenizer of {self.architecture} is not part of open_clip and "
                "would have to be downloaded; search with an image, or use an architecture with "
                "CLIP's own tokenizer, such as ViT-B-32"
            )
        return open_clip.get_tokenizer(self.architecture)


class ClipEncoder(OpenClipEncoder):
    """Encoder with CLIP of any architecture in open_clip, and weights from a file.

    Args:
        architecture: one of `open_clip.list_models()`. Weights that were trained with the
            activation QuickGELU, such as OpenAI's own, need an architecture whose name ends in
            -quickgelu. The tensors of a network do not depend on its activation, so a wrong
            choice is detected only for OpenAI's own files and for weights with a tag.
        tag: open_clip's name of published weights, one of
            `open_clip.list_pretrained_tags_by_model(architecture)`. The tag also selects the
            preprocessing. None (null in YAML) selects open_clip's default preprocessing.
        checkpoint: file of the weights (.safetensors, .bin or .pt). None selects the file of `tag`
            in the cache of `adir weights` or of the Hugging Face hub. Nothing is downloaded.
        device: device of the network.

    Raises:
        InputError: if the architecture or the tag is unknown, or if the weights are missing,
            damaged or those of another network.
    """

    def __init__(
        self,
        architecture: str = "ViT-B-32",
        tag: str | None = "laion2b_s34b_b79k",
        checkpoint: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        published = published_weights(architecture, tag)
        path = find_checkpoint(architecture, tag, published, checkpoint)
        network = empty_network(architecture)
        load_weights(network, path, architecture)
        known = PreprocessCfg.__dataclass_fields__.keys() - {"size"}  # the size is the network's
        preprocess = network.visual.preprocess_cfg | {
            key: published[key] for key in known & published.keys()
        }
        super().__init__(f"clip-{architecture}", architecture, network, preprocess, device)


def random_clip(architecture: str, seed: int) -> OpenClipEncoder:
    """Return CLIP with random initial weights, the baseline that trained weights must beat.

    Args:
        architecture: name of the architecture in open_clip.
        seed: seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = empty_network(architecture)
    return OpenClipEncoder(
        f"clip-{architecture}-random", architecture, network, network.visual.preprocess_cfg, "cpu"
    )


def empty_network(architecture: str) -> Any:
    """Return a network with random weights: float32, on the CPU, in evaluation mode, frozen."""
    try:
        with quiet():
            network = open_clip.create_model(
                architecture, load_weights=False, pretrained_text=False
            )
    except OSError as error:  # the text network needs a configuration of transformers
        raise InputError(
            f"CLIP {architecture}: open_clip cannot build the network without a download "
            f"({error}); choose another architecture"
        ) from error
    return network.eval().requires_grad_(False)
