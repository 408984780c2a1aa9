"""CyCLIP (Goel et al., 2022, arXiv 2205.14459):

CLIP with losses for consistent distances within and across modalities.
"""

from pathlib import Path

from adir.retrieval.encoders.clip import OpenClipEncoder, empty_network
from adir.retrieval.encoders.clip_weights import find_checkpoint, load_weights

ARCHITECTURE = "RN50-quickgelu"
"""The authors' code is OpenAI's CLIP, whose text transformer has QuickGELU. open_clip's RN50 has
GELU: it would load the same tensors, and give wrong vectors of prompts without an error.
"""


class CyclipEncoder(OpenClipEncoder):
    """CyCLIP's ResNet-50, from a checkpoint of the authors' training (best.pt, or epoch_N.pt).

    checkpoint: a file of torch.save with the weights under "state_dict", each name with "module."
        before it where several GPUs trained; the optimiser's state is ignored. Preprocessing is
        that of OpenAI's CLIP.
    device: of the network.
    A prompt that is cut keeps its end token; the authors' code drops it.
    """

    def __init__(self, checkpoint: str | Path | None = None, device: str = "cpu") -> None:
        """Raises InputError on missing, damaged or other weights."""
        published = {
            "url": "the authors' from https://github.com/goel-shashank/CyCLIP, which links them "
            "(CC BY-NC)"
        }
        path = find_checkpoint(ARCHITECTURE, None, published, checkpoint)
        network = empty_network(ARCHITECTURE)
        load_weights(network, path, ARCHITECTURE)
        super().__init__("cyclip", ARCHITECTURE, network, network.visual.preprocess_cfg, device)
