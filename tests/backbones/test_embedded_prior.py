"""The embedded prior as shipped, and the script that trains it."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from diffusers import UNet2DModel
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.files import read_json, sha256_of_file, write_json
from benchmarks import train_prior

ROOT = Path(__file__).parents[2]
PRIOR = ROOT / "adir" / "embedded" / "prior"
WEIGHTS = PRIOR / "diffusion_pytorch_model.safetensors"
# noise error at t = 200 on photographs(): measured 0.028; pixel by pixel 0.326; a random network
# 1.125
BOUND = 0.035
CALTECH = ROOT.parent / "shared" / "data" / "caltech101_128.parquet"


def photographs() -> torch.Tensor:
    """(4, 3, 128, 128) in [-1, 1]: photographs that come with scikit-image, none of them in
    Caltech-101.
    """
    named = (skimage.data.astronaut, skimage.data.chelsea, skimage.data.coffee, skimage.data.rocket)
    images = []
    for photograph in named:
        image = Image.fromarray(photograph())
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize(
            (128, 128), Image.Resampling.LANCZOS
        )
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(images).float() / 127.5 - 1


# ---- the weights


def test_the_card_names_the_sha256_of_the_weights():
    assert re.findall(r"\b[0-9a-f]{64}\b", (PRIOR / "README.md").read_text()) == [
        sha256_of_file(WEIGHTS)
    ]


def test_the_weights_are_finite_float16_and_small_enough_for_a_wheel():
    tensors = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size < 12e6
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_config_and_weights_name_the_same_tensors_and_no_path():
    config = read_json(PRIOR / "config.json")
    assert set(UNet2DModel.from_config(config).state_dict()) == set(load_file(WEIGHTS))
    assert "_name_or_path" not in config
    assert "/" not in (PRIOR / "config.json").read_text()


def test_the_prior_predicts_the_noise_on_photographs_it_never_saw():
    # Per pixel the best linear guess from an image of variance v has error v_t / (v_t + 1 -
    # alpha_bar) with v_t = alpha_bar v: what a network reaches that knows nothing about
    # neighbouring pixels.
    x = photographs()
    alpha_bar = train_prior.ALPHA_BAR[200].item()
    v_t = alpha_bar * x.var().item()
    pixelwise = v_t / (v_t + 1 - alpha_bar)
    prior = UNet2DModel.from_pretrained(PRIOR, torch_dtype=torch.float32).eval()
    torch.manual_seed(0)
    random = UNet2DModel.from_config(read_json(PRIOR / "config.json")).eval()
    assert train_prior.eps_error(prior, x, 200) < BOUND < pixelwise / 5
    assert train_prior.eps_error(random, x, 200) > 10 * BOUND


def card_errors() -> dict[tuple[str, int], float]:
    """{(split and side, t): error} from the rows `| val 64 | 0.26887 | ... |` of the card."""
    errors = {}
    for line in (PRIOR / "README.md").read_text().splitlines():
        if found := re.match(r"\| (val|test) (64|128) \|", line):
            values = [float(cell) for cell in line.strip("| ").split("|")[1:]]
            for t, value in zip(train_prior.EVALUATION_TIMESTEPS, values, strict=True):
                errors[f"{found[1]} {found[2]}", t] = value
    return errors


@pytest.mark.slow
@pytest.mark.skipif(
    not CALTECH.exists(), reason=f"needs {CALTECH.name}, the images the card's table is measured on"
)
def test_the_cards_table_is_that_of_the_weights():
    x = train_prior.resize(train_prior.read_parquet(CALTECH, "test", 144).float() / 127.5 - 1, 64)
    prior = UNet2DModel.from_pretrained(PRIOR, torch_dtype=torch.float32).eval()
    assert train_prior.eps_error(prior, x, 400) == pytest.approx(
        card_errors()["test 64", 400], rel=2e-3
    )


# ---- the script

TINY = {
    "sample_size": 64, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
}  # fmt: skip


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((128, 128)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path) -> Path:
    """Three images to train on; those of the other splits are no images at all, so that reading one
    raises.
    """
    splits = ["test", "train", "corpus", "train", "val", "train"]
    image = [
        {"bytes": jpeg(i) if s == "train" else b"poison", "path": str(i)}
        for i, s in enumerate(splits)
    ]
    pq.write_table(pa.table({"image": image, "split": splits}), tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


def arguments(parquet: Path, out: Path, *more: str) -> list[str]:
    config = parquet.parent / "config.json"
    write_json(config, TINY)
    fixed = [
        "train",
        "--parquet",
        str(parquet),
        "--config",
        str(config),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    return [
        *fixed,
        "--steps",
        "2",
        "--batch",
        "1",
        "--warmup",
        "1",
        "--lr",
        "1e-3",
        "--save-every",
        "1",
        *more,
    ]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS.name)


def test_training_reads_only_the_train_split_and_changes_the_weights(parquet, tmp_path):
    for split in ("corpus", "test", "val"):
        with pytest.raises(UnidentifiedImageError):  # the poison works
            train_prior.read_parquet(parquet, split)
    expected = [np.asarray(Image.open(io.BytesIO(jpeg(i)))).transpose(2, 0, 1) for i in (1, 3, 5)]
    np.testing.assert_array_equal(
        train_prior.read_parquet(parquet, "train").numpy(), np.stack(expected)
    )

    train_prior.main(arguments(parquet, tmp_path / "a"))
    train_prior.main(arguments(parquet, tmp_path / "b", "--seed", "1"))
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(tensor.isfinite().all() for tensor in a.values())
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_resumed_training_ends_with_the_weights_of_an_unbroken_one(
    parquet, tmp_path, monkeypatch
):
    train_prior.main(arguments(parquet, tmp_path / "unbroken"))

    draw_crops, seeds = train_prior.draw_crops, []

    def power_cut(*args):
        seeds.append(args[-1].initial_seed())
        if len(seeds) == 2:
            raise RuntimeError("power cut")
        return draw_crops(*args)

    monkeypatch.setattr(train_prior, "draw_crops", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train_prior.main(arguments(parquet, tmp_path / "broken"))
    assert seeds[0] != seeds[1]
    after_one = weights_of(tmp_path / "broken")
    monkeypatch.setattr(train_prior, "draw_crops", draw_crops)
    train_prior.main(arguments(parquet, tmp_path / "broken"))

    unbroken, resumed = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "broken")
    for name in unbroken:
        torch.testing.assert_close(resumed[name], unbroken[name], rtol=0, atol=0)
    assert any(not torch.equal(after_one[name], unbroken[name]) for name in unbroken)


def test_a_budget_of_seconds_ends_a_training_and_its_card_says_what_was_done(parquet, tmp_path):
    more = [
        "--parquet",
        str(parquet),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--batch",
        "1",
        "--seconds",
        "0.5",
    ]
    train_prior.main(["train", "--blocks", "32,32,32", *more, "--warmup", "1"])
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        "3 images of images.parquet, split train alone" in text
        and "pixel_unshuffle 2, fresh" in text
    )
    state = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)
    assert state["seconds"] >= 0.5 and state["step"] == len(state["losses"]) >= 1
    train_prior.main(
        ["train", "--blocks", "32,32,32", *more, "--warmup", "1"]
    )  # spent: not a step more
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["step"] == state["step"]

    # What it leaves is a backbone of images of any side that it can halve.
    backbone = GuidedDiffusion("mine", tmp_path / "out")
    x = torch.zeros(1, 3, 24, 32)
    assert backbone.stride == 8 and backbone.predict(x, torch.tensor([5])).eps.shape == x.shape


def test_a_network_with_a_pixel_unshuffle_sees_an_image_as_one_of_half_the_side_and_four_times_the_channels():
    torch.manual_seed(0)
    network = train_prior.fresh_network(
        TINY | {"in_channels": 3, "out_channels": 3, "unshuffle": 2}
    )
    plain = UNet2DModel.from_config(TINY | {"in_channels": 12, "out_channels": 12})
    tensors = network.state_dict().items()
    plain.load_state_dict(
        {
            k.replace("conv_in.1.", "conv_in.").replace("conv_out.0.", "conv_out."): v
            for k, v in tensors
        }
    )
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([300])
    apart = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=2).flatten(1, 2)
    inside = plain(apart, t).sample.unflatten(1, (3, 4))
    output = network(x, t, return_dict=False)[0]
    for k, (i, j) in enumerate((i, j) for i in (0, 1) for j in (0, 1)):
        torch.testing.assert_close(output[:, :, i::2, j::2], inside[:, :, k])


@pytest.mark.parametrize(
    "blocks, million", zip(train_prior.UNSHUFFLED, (3.2, 4.7, 8.7), strict=True)
)
def test_the_networks_that_were_timed_have_the_parameters_that_they_were_timed_with(
    blocks, million
):
    network = train_prior.build_network(train_prior.unshuffled(blocks))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(million, abs=0.05)


def test_the_count_of_operations_is_that_of_a_convolution_by_hand():
    # One convolution of 3x3: 2 * 9 * channels in * channels out a pixel, and twice that backward
    # (weights; the input of the first has no gradient). Everything between is counted by the same
    # counter, so the ends are held alone.
    few, many = (
        train_prior.work_of_an_image(train_prior.unshuffled((32, 32, 32)), side)
        for side in (32, 64)
    )
    assert 3.9 < many["operations"] / few["operations"] < 6  # by pixel; attention grows faster
    assert many["operations"] > 64 * 64 / 4 * 2 * 9 * 32 * (
        2 * 12 + 3 * 12
    )  # the ends: once and twice, and thrice
    assert many["bytes"] / few["bytes"] > 3.9


def test_shipping_rounds_to_float16_and_forgets_the_path(tmp_path):
    torch.manual_seed(0)
    UNet2DModel(**TINY).save_pretrained(tmp_path / "trained")
    UNet2DModel.from_pretrained(tmp_path / "trained").save_pretrained(tmp_path / "continued")
    assert "_name_or_path" in read_json(tmp_path / "continued" / "config.json")
    train_prior.main(["ship", str(tmp_path / "continued"), str(tmp_path / "shipped")])
    assert "_name_or_path" not in read_json(tmp_path / "shipped" / "config.json")
    trained, shipped = (
        weights_of(tmp_path / "trained"),
        load_file(tmp_path / "shipped" / WEIGHTS.name),
    )
    for name in trained:
        # float16 has 11 significant bits: rounding moves a normal number by at most 2^-11 of
        # itself.
        torch.testing.assert_close(shipped[name].float(), trained[name], rtol=2**-11, atol=2**-25)


def test_an_empty_split_is_refused_in_one_line(parquet, tmp_path, capsys):
    pq.write_table(
        pq.read_table(parquet, filters=[("split", "=", "val")]), tmp_path / "val.parquet"
    )
    with pytest.raises(SystemExit) as exit_:
        train_prior.main(
            [
                "train",
                "--parquet",
                str(tmp_path / "val.parquet"),
                *arguments(parquet, tmp_path / "o")[3:],
            ]
        )
    assert exit_.value.code == 2
    assert "no image of the split 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("side, count, scale", train_prior.CYCLE[:2])
def test_crops_have_the_side_asked_for_and_stay_in_range(side, count, scale):
    images = torch.from_numpy(
        np.stack([np.array(Image.open(io.BytesIO(jpeg(i)))) for i in range(4)])
    )
    crops = train_prior.draw_crops(
        images.permute(0, 3, 1, 2), side, count, scale, torch.Generator().manual_seed(0)
    )
    assert crops.shape == (count, 3, side, side)
    assert -1 <= crops.min() < -0.5 and 0.5 < crops.max() <= 1


def test_every_crop_is_a_window_of_an_image_or_of_its_mirror_image():
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    images = torch.stack(
        [torch.stack([rows, columns, torch.full_like(rows, k)]) for k in (3, 7)]
    ).to(torch.uint8)
    crops = train_prior.draw_crops(images, 64, 16, 1.0, torch.Generator().manual_seed(0))
    crops = ((crops + 1) * 127.5).round().long()
    seen = set()
    for crop in crops:
        top, left, which, turned = (
            crop[0, 0, 0],
            crop[1, 0].min(),
            crop[2, 0, 0],
            crop[1, 0, 0] > crop[1, 0, 1],
        )
        window = images[int(which == 7)].long()[:, top : top + 64, left : left + 64]
        assert torch.equal(crop.flip(-1) if turned else crop, window)
        seen.add((int(top), int(left), int(which), bool(turned)))
    tops, _, images_seen, turns = (set(values) for values in zip(*seen, strict=True))
    assert len(tops) > 8 and images_seen == {3, 7} and turns == {False, True}


def test_timesteps_fall_one_in_each_equal_part():
    t = train_prior.draw_timesteps(8, torch.Generator().manual_seed(0))
    assert (t // 125).tolist() == list(range(8))  # 1000 / 8 = 125


def test_the_error_of_a_network_that_says_zero_is_the_mean_square_of_the_noise():
    class Zero(torch.nn.Module):
        def forward(self, x_t, t, return_dict):
            return (torch.zeros_like(x_t),)

    # The mean square of n standard normal numbers is 1 with standard deviation sqrt(2 / n): 0.004
    # here.
    assert train_prior.eps_error(Zero(), photographs()[:, :, :100, :100], 10) == pytest.approx(
        1, abs=0.02
    )
