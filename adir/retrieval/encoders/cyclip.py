"""CyCLIP (Goel et al., 2022, arXiv 2205.14459): CLIP, trained with two consistency losses.

The losses make distances within a modality and across modalities consistent.
"""

from pathlib import Path

from adir.retrieval.encoders.clip import OpenClipEncoder, empty_network
from adir.retrieval.encoders.clip_weights import find_checkpoint, load_weights

ARCHITECTURE = "RN50-quickgelu"
"""The architecture of the authors' code, which is OpenAI's CLIP with QuickGELU in the text network.

open_clip's RN50 has GELU. It would load the same tensors without an error, but return wrong vectors
of prompts.
"""


class CyclipEncoder(OpenClipEncoder):
    """Encoder with CyCLIP's ResNet-50, from a checkpoint of the authors (best.pt or epoch_N.pt).

    Images are preprocessed as by OpenAI's CLIP. A prompt that is too long is shortened, but its end
    token is kept; the authors' code drops it.

    Args:
        checkpoint: a file of torch.save with the weights under "state_dict". Training on several
            GPUs adds the prefix "module." to the names of the weights; it is removed. The
            optimiser's state is ignored.
        device: device of the network.

    Raises:
        InputError: if the weights are missing, damaged or those of another network.
    """

    def __init__(self, checkpoint: str | Path | None = None, device: str = "cpu") -> None:
        published = {
            "url": "the authors' checkpoint (CC BY-NC), linked from "
            "https://github.com/goel-shashank/CyCLIP"
        }
        path = find_checkpoint(ARCHITECTURE, None, published, checkpoint)
        network = empty_network(ARCHITECTURE)
        load_weights(network, path, ARCHITECTURE)
        super().__init__("cyclip", ARCHITECTURE, network, network.visual.preprocess_cfg, device)
