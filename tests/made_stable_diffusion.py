"""Tiny Stable Diffusion pipelines with made weights, as folders in diffusers' layout; the fixture
of this name gives it.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# The schedules of the released checkpoints.
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
SCHEDULERS = {
    "ddim": lambda prediction: DDIMScheduler(
        **BETAS, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False
    ),
    "pndm": lambda prediction: PNDMScheduler(
        **BETAS, prediction_type=prediction, skip_prk_steps=True
    ),
    "euler": lambda prediction: EulerDiscreteScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing="leading"
    ),
}


def tokenizer(length: int = 12) -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with a made vocabulary: every byte, alone and at a word's end,
    and three merges.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges = [("t", "a"), ("a", "t</w>"), ("c", "at</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    vocabulary = {word: n for n, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocabulary, merges, model_max_length=length)


def parts(
    channels: int, levels: int, prediction: str, scheduler: str, **unet: Any
) -> dict[str, Any]:
    """UNet, VAE of 2^(levels - 1) pixels a place, text encoder, tokenizer and scheduler, all small."""
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return {
        "unet": UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=8,
            **unet,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16, 16)[:levels],
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            **({"scaling_factor": 0.08333} if channels == 7 else {}),
        ),
        "text_encoder": CLIPTextModel(text),
        "tokenizer": words,
        "scheduler": SCHEDULERS[scheduler](prediction),
    }


def upscaler(
    scheduler: str = "ddim", prediction: str = "v_prediction"
) -> StableDiffusionUpscalePipeline:
    """The x4 upscaler: 4 pixels a place, 7 channels, noise levels as class labels."""
    torch.manual_seed(0)
    made = parts(7, 3, prediction, scheduler, num_class_embeds=1000)
    low = DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
    pipeline = StableDiffusionUpscalePipeline(**made, low_res_scheduler=low, max_noise_level=350)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def inpainter(
    scheduler: str = "pndm", prediction: str = "epsilon"
) -> StableDiffusionInpaintPipeline:
    """The inpainting model: 9 channels; 4 pixels a place where the real one has 8."""
    torch.manual_seed(1)
    made = parts(9, 3, prediction, scheduler)
    pipeline = StableDiffusionInpaintPipeline(
        **made, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def saved(pipeline: Any, folder: Path) -> Path:
    """The folder with the pipeline in it."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
