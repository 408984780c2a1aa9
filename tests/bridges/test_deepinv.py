"""deepinv's physics as tasks, our methods as its reconstructors: by deepinv's own test(), and as
our own path has it.
"""

import re
from pathlib import Path
from typing import Any

import deepinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from deepinv.physics.functional import gaussian_blur
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.modes import NearestNeighbours, RandomImages, SelfAdaptation
from adir.adaptation.steering import SteerableConditional
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.bridges.deepinv import PhysicsOperator, Reconstruction
from adir.data.corpus import folder_corpus
from adir.errors import InputError
from adir.files import read_json
from adir.images import generator, hash_of_image
from adir.retrieval.encoders.pixel import PixelEncoder
from adir.samplers.adir import ADIR
from adir.samplers.dds import DDS
from adir.samplers.deepinv_samplers import DDRM, DPS
from adir.samplers.diffpir import DiffPIR
from adir.samplers.direct import Direct
from adir.tasks.operators import BoxInpainting, GaussianBlur
from adir.tasks.restoration import RestorationTask

SHAPE = (3, 32, 32)
BACKBONE = GuidedDiffusion()
FINE_TUNING = FineTuning(n_iterations=2, batch_size=1, crop_size=16)


def hole() -> Tensor:
    return BoxInpainting(0.5).mask(SHAPE).float()


def physics_of(name: str, sigma: float = 0.02) -> Any:
    noise = {"noise_model": GaussianNoise(sigma)} if sigma else {}
    make = {
        "Blur": lambda: deepinv.physics.Blur(
            filter=gaussian_blur((13, 13), 2.0), padding="circular", **noise
        ),
        "BlurFFT": lambda: deepinv.physics.BlurFFT(
            img_size=SHAPE, filter=gaussian_blur((13, 13), 2.0), **noise
        ),
        "Downsampling": lambda: deepinv.physics.Downsampling(
            SHAPE, filter="bicubic", factor=4, **noise
        ),
        "Inpainting": lambda: deepinv.physics.Inpainting(SHAPE, mask=hole(), **noise),
    }
    return make[name]()


@pytest.fixture
def images() -> Tensor:
    """Three smooth images (3, 32, 32) in [0, 1]."""
    x = torch.rand(3, 3, 4, 4)
    return torch.nn.functional.interpolate(x, 32, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("name", ["Blur", "Downsampling", "Inpainting"])
def test_a_method_of_ours_passes_deepinvs_own_test_and_is_better_than_its_adjoint(
    name, images, tmp_path
):
    physics, model = (
        physics_of(name),
        Reconstruction(
            BACKBONE, ADIR(n_steps=20, guidance_scale=60, variance="small", temperature=0.5)
        ),
    )
    y = physics(images)
    results = deepinv.test(
        model,
        DataLoader(TensorDataset(images, y), batch_size=2),
        physics,
        verbose=False,
        show_progress_bar=False,
    )
    assert results["PSNR"] > results["PSNR no learning"] + 0.5
    # The mean that deepinv reports is that of what the model gives.
    x_hat = model(y, physics).clamp(0, 1)
    psnr = -10 * ((x_hat - images) ** 2).mean((1, 2, 3)).log10()
    assert results["PSNR"] == pytest.approx(psnr.mean().item(), abs=1e-3)


SAMPLERS = [
    ADIR(n_steps=3, guidance_scale=30, variance="small"),
    DPS(n_steps=2),
    DDRM(n_steps=3),
    DiffPIR(n_steps=3),
    DDS(n_steps=3),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "ours, name", [(GaussianBlur(2.0, 13), "BlurFFT"), (BoxInpainting(0.5), "Inpainting")]
)
def test_the_bridge_gives_what_our_own_task_gives(sampler, ours, name, images):
    task = RestorationTask("own", 1, ours, sigma_y=0.02 * 255, guidance_scale=1)
    operator, physics = task.operator(SHAPE), physics_of(name)
    y = physics(images[:1])
    scaled = 2 * y - physics.A(torch.ones(1, *SHAPE))
    torch.testing.assert_close(physics.A(images[:1]), operator.A(images[:1]), rtol=0, atol=1e-6)
    expected = sampler.restore(
        BACKBONE, operator, scaled, [generator(0, hash_of_image(scaled), "sampler")]
    )
    found = Reconstruction(BACKBONE, sampler)(y, physics)
    # deepinv's filter is float32, ours float64, which DiffPIR's proximal step, its rho 3e-10 at
    # first, magnifies.
    torch.testing.assert_close(
        2 * found - 1, expected.x_hat, rtol=0, atol=1e-2 if sampler.name == "diffpir" else 1e-3
    )
    assert not found.requires_grad


def test_an_image_is_restored_alike_alone_and_in_a_batch_and_by_its_seed(images):
    physics, model = (
        physics_of("Downsampling"),
        Reconstruction(BACKBONE, ADIR(n_steps=3, guidance_scale=60, variance="small")),
    )
    y = physics(images)
    before = torch.random.get_rng_state()
    assert torch.equal(model(y, physics)[1:2], model(y[1:2], physics))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = Reconstruction(BACKBONE, ADIR(n_steps=3, guidance_scale=60, variance="small"), seed=1)
    assert not torch.equal(other(y[:1], physics), model(y[:1], physics))


def test_every_mode_adapts_and_leaves_the_backbone_as_it_was(images, neighbourhood: Path):
    physics, sampler = (
        physics_of("Inpainting"),
        ADIR(n_steps=2, guidance_scale=30, variance="small"),
    )
    y = physics(images[:1])
    bare = Reconstruction(BACKBONE, sampler)(y, physics)
    corpus = folder_corpus(neighbourhood)
    for mode in (
        SelfAdaptation(Full(), FINE_TUNING),
        NearestNeighbours(Full(), FINE_TUNING),
        RandomImages(Full(), FINE_TUNING),
    ):
        with torch.no_grad():  # as deepinv.test does
            found = Reconstruction(BACKBONE, sampler, mode, 2, corpus, PixelEncoder())(y, physics)
        assert found.isfinite().all() and not torch.equal(found, bare), mode.name
        assert torch.equal(Reconstruction(BACKBONE, sampler)(y, physics), bare)
    steering = SteerableConditional(Full(), FineTuning(learning_rate=1e-3))
    steered = Reconstruction(BACKBONE, DDS(n_steps=3), steering)(y, physics)
    assert not torch.equal(steered, Reconstruction(BACKBONE, DDS(n_steps=3))(y, physics))


def test_the_images_it_tunes_on_are_the_nearest_of_the_corpus(images, neighbourhood: Path):
    corpus, encoder = folder_corpus(neighbourhood), PixelEncoder()
    mode = NearestNeighbours(Full(), FINE_TUNING)
    model = Reconstruction(BACKBONE, ADIR(variance="small"), mode, 2, corpus, encoder)
    image = 2 * images[0] - 1
    found, others = model.neighbours_of(image, "a")
    vectors = {
        name: encoder.image(corpus.image(name)[None])[0]
        for name in corpus.ids
        if name not in corpus.repeats
    }
    query = encoder.image(image[None])[0]
    nearest = sorted(vectors, key=lambda name: float((vectors[name] - query).norm()))[:2]
    assert (
        all(torch.equal(a, corpus.image(name)) for a, name in zip(found, nearest, strict=True))
        and others == []
    )


def refused(do: Any) -> str:
    with pytest.raises(InputError) as raised:
        do()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_a_method_cannot_do_is_refused_in_one_line(images):
    model = Reconstruction(BACKBONE, DDRM(n_steps=2))
    blur = physics_of("Blur")
    assert "needs the singular value decomposition" in refused(lambda: model(blur(images), blur))
    poisson = deepinv.physics.Denoising(deepinv.physics.PoissonNoise(0.1))
    assert "PoissonNoise is not supported" in refused(lambda: model(poisson(images), poisson))
    grey = deepinv.physics.Denoising(GaussianNoise(0.1))
    assert "RGB" in refused(lambda: model(grey(images[:, :1]), grey))
    haze = deepinv.physics.Haze()
    assert "Haze is not a LinearPhysics" in refused(lambda: model(images, haze))
    assert "give a corpus" in refused(
        lambda: Reconstruction(BACKBONE, DDS(), NearestNeighbours(Full(), FINE_TUNING))
    )
    steering = SteerableConditional(Full(), FineTuning())
    assert "during sampling" in refused(lambda: Reconstruction(BACKBONE, ADIR(), steering))
    adapted = Reconstruction(BACKBONE, Direct("bicubic"), SelfAdaptation(Full(), FINE_TUNING))
    assert "uses no network" in refused(lambda: adapted(blur(images), blur))


# --- physics as tasks

PHYSICS = {
    "blur": PhysicsOperator(
        "deepinv.physics.Blur", {"filter": gaussian_blur((7, 7), 1.0), "padding": "circular"}
    ),
    "replicated": PhysicsOperator(
        "deepinv.physics.Blur", {"filter": gaussian_blur((7, 7), 1.0), "padding": "replicate"}
    ),
    "fft": PhysicsOperator("deepinv.physics.BlurFFT", {"filter": gaussian_blur((7, 7), 1.0)}),
    "downsampling": PhysicsOperator(
        "deepinv.physics.Downsampling", {"filter": "bicubic", "factor": 2}, factor=2
    ),
    "mask": PhysicsOperator("deepinv.physics.Inpainting", {"mask": 0.5}, seed=3),
    "grey": PhysicsOperator("deepinv.physics.Decolorize"),
}


@pytest.mark.parametrize("degradation", PHYSICS.values(), ids=PHYSICS)
def test_a_physics_is_an_operator_with_its_adjoint_norm_and_shapes(degradation):
    shape = (3, 16, 12)
    operator = degradation(shape)
    for dtype, rtol in (
        (torch.float32, 1e-4),
        (torch.float64, 1e-6),
    ):  # deepinv makes its own filters in float32
        x, y = torch.randn(shape, dtype=dtype), torch.randn(operator.y_shape, dtype=dtype)
        assert operator.A(x).dtype == dtype
        torch.testing.assert_close(
            (operator.A(x) * y).sum(), (x * operator.A_adjoint(y)).sum(), rtol=rtol, atol=1e-4
        )
    n = 3 * 16 * 12
    matrix = operator.A(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).flatten(1)
    assert operator.norm == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-3)
    assert degradation.image_shape(operator.y_shape) == shape


def test_a_mask_that_a_physics_draws_follows_from_its_seed():
    known = [
        PhysicsOperator("deepinv.physics.Inpainting", {"mask": 0.5}, seed=seed)(SHAPE).known()
        for seed in (3, 3, 4)
    ]
    assert torch.equal(known[0], known[1]) and not torch.equal(known[0], known[2])
    assert known[0].float().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    "degradation, words",
    [
        (PhysicsOperator("deepinv.physics.Nothing"), "cannot be built"),
        (PhysicsOperator("deepinv.physics.Blur", {"fliter": 3}), "cannot be built"),
        (PhysicsOperator("deepinv.physics.Haze"), "not a LinearPhysics"),
        (
            PhysicsOperator("deepinv.physics.Downsampling", {"filter": "bicubic", "factor": 2}),
            "set factor to the ratio",
        ),
        (
            PhysicsOperator(
                "deepinv.physics.Blur", {"filter": gaussian_blur((7, 7), 1.0), "padding": "valid"}
            ),
            "set factor to the ratio",
        ),
        (
            PhysicsOperator(
                "deepinv.physics.Blur",
                {"filter": gaussian_blur((7, 7), 1.0), "padding": "constant"},
            ),
            "A applied to an image of ones must give 1",
        ),
        (
            PhysicsOperator(
                "deepinv.physics.Blur", {"filter": torch.ones(1, 1, 3, 3), "padding": "circular"}
            ),
            "but it gives 9 to 9",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.physics,
)
def test_a_physics_that_makes_no_image_is_refused_in_one_line(degradation, words):
    assert words in refused(lambda: degradation(SHAPE))


# --- docs/deepinv.md


@pytest.fixture
def page(repository: Path) -> dict[str, str]:
    """{language: code} of the page's blocks."""
    text = (repository / "docs" / "deepinv.md").read_text()
    return dict(re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_the_example_of_the_page_runs(page):
    scope: dict[str, Any] = {}
    exec(page["python"], scope)
    assert scope["x_hat"].shape == scope["x"].shape and scope["x_hat"].isfinite().all()


def test_the_task_of_the_page_runs(page, adir, tiny: list[str], tmp_path: Path):
    name, _, rest = page["yaml"].partition("\n")
    path = tmp_path / name.removeprefix("# ")
    path.parent.mkdir(parents=True)
    path.write_text(rest)
    found = adir(
        *(
            "run",
            f"hydra.searchpath=[file://{tmp_path}/my_conf]",
            "task=shaken",
            f"results={tmp_path / 'runs'}",
        ),
        *(word for word in tiny if not word.startswith("task")),
    )
    assert found.status == 0, found.err
    records = [read_json(path) for path in tmp_path.glob("runs/cells/**/records/*.json")]
    assert records and all(
        r["axes"]["task"] == "shaken" and r["scores"]["residual"]["value"] > 0 for r in records
    )
    assert records[0]["identity"]["task"]["operator"]["physics"] == "deepinv.physics.Blur"
