"""Classes have all that the protocols of their packages ask for, and those that change an image say
who they are.
"""

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from adir.adaptation.adapters import Full
from adir.adaptation.base import Adapter
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.lora import Lora
from adir.adaptation.steering import SteerableConditional
from adir.backbones.base import Backbone, Denoiser, PixelBackbone
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.backbones.stable_diffusion import StableDiffusionInpaint, StableDiffusionX4
from adir.samplers.adir import ADIR
from adir.samplers.base import Sampler, SteerableSampler, Steering
from adir.samplers.daps import DAPS
from adir.samplers.ddnm import DDNM
from adir.samplers.ddpg import DDPG
from adir.samplers.dds import DDS
from adir.samplers.deepinv_samplers import DDRM, DPS
from adir.samplers.diffpir import DiffPIR
from adir.samplers.direct import Direct
from adir.samplers.dmsp import DMSP
from adir.samplers.editing import InpaintingSampler
from adir.samplers.latent import UpscalerSampler
from adir.samplers.likelihoods import DataTermSampler, PiGDM
from adir.samplers.pnp_dm import PnPDM
from adir.samplers.tiling import TiledBackbone
from adir.scoring.base import Metric
from adir.scoring.metrics import METRICS
from adir.tasks import operators
from adir.tasks.base import Degradation, LinearOperator, Task
from adir.tasks.editing import EditOperator, EditTask
from adir.tasks.operators import (
    BoxBlur,
    BoxInpainting,
    Colorization,
    GaussianBlur,
    MeanDownsampling,
    RandomInpainting,
    ReflectiveSuperResolution,
    SuperResolution,
)
from adir.tasks.restoration import RestorationTask

DEGRADATIONS = [
    *(
        SuperResolution(2),
        MeanDownsampling(2),
        ReflectiveSuperResolution(2),
        BoxBlur(3),
        GaussianBlur(1.0, 5),
    ),
    *(Colorization(), BoxInpainting(), RandomInpainting(0.5)),
]
SAMPLERS = [
    ADIR(),
    DPS(),
    DDRM(),
    DiffPIR(),
    DDPG(),
    DDNM(),
    DAPS(),
    PnPDM(),
    PiGDM(),
    DataTermSampler("ald"),
    DMSP(),
    DDS(),
    UpscalerSampler(),
    InpaintingSampler(),
    Direct("adjoint"),
]
ADAPTERS = [Full(), Lora()]
TASKS = [RestorationTask("blur", 1, BoxBlur(3), 0, 1), EditTask()]
SHAPE = (3, 16, 16)


def lacking(found: Any, protocol: type) -> list[str]:
    """What the protocol asks for and `found` has not got."""
    asked: set[str] = set()
    for base in protocol.__mro__[:-2]:  # less Protocol, Generic or object
        asked |= inspect.get_annotations(base).keys() | vars(base).keys()
    return sorted(name for name in asked if not name.startswith("_") and not hasattr(found, name))


@pytest.mark.parametrize(
    "protocol, found",
    [
        *((Degradation, one) for one in DEGRADATIONS),
        *((LinearOperator, task.operator(SHAPE)) for task in TASKS),
        *((Task, one) for one in TASKS),
        *((Sampler, one) for one in SAMPLERS),
        *((Adapter, one) for one in ADAPTERS),
        (SteerableSampler, DDS()),
        (Steering, SteerableConditional(Lora(), FineTuning())),
        *((Metric, make("cpu")) for make in METRICS.values()),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_class_has_what_its_protocol_asks_for(protocol: type, found: Any) -> None:
    assert lacking(found, protocol) == []


def test_backbones_have_what_their_protocols_ask_for(
    made_stable_diffusion: ModuleType, tmp_path: Path
) -> None:
    pixel = GuidedDiffusion()
    assert lacking(pixel, PixelBackbone) == [] == lacking(TiledBackbone(pixel, 64), Denoiser)
    for cls, pipeline in (
        (StableDiffusionX4, made_stable_diffusion.upscaler()),
        (StableDiffusionInpaint, made_stable_diffusion.inpainter()),
    ):
        latent = cls(folder=made_stable_diffusion.saved(pipeline, tmp_path / cls.__name__))
        assert lacking(latent, Backbone) == []
        assert lacking(latent, PixelBackbone) == [
            "prediction",
            "variance",
        ]  # so the rule does find what lacks


def test_what_changes_an_image_has_a_name_of_its_own_and_a_version() -> None:
    for kind in (DEGRADATIONS, SAMPLERS, ADAPTERS, [FineTuning()], TASKS):
        names = [one.name for one in kind]
        assert len(set(names)) == len(names) and all(name == name.lower() != "" for name in names)
        assert all(type(one.version) is int and one.version >= 1 for one in kind)
    assert EditOperator.name not in [one.name for one in DEGRADATIONS] and EditOperator.version >= 1
    every = {
        cls
        for _, cls in inspect.getmembers(operators, inspect.isclass)
        if hasattr(cls, "shift_invariant")
    }
    assert every == {type(one) for one in DEGRADATIONS}  # none is left out here
