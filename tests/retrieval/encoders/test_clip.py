"""CLIP against direct calls of open_clip, with made weights: a tiny network, and ViT-B-32 at its
real size once.
"""

import json

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image

from adir.errors import InputError
from adir.images import from_uint8
from adir.retrieval.encoders.clip import ClipEncoder, empty_network, random_clip
from adir.retrieval.encoders.clip_weights import ENTRIES
from adir.weights.registry import entry

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PROMPTS = [
    "a photo of a dog",
    "Taj Mahal",
    "a diagram of the village, seen from above, in the evening",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Name of a small architecture that open_clip then knows; `tiny-quickgelu` and `tiny-wide`
    stand beside it.
    """
    folder = tmp_path_factory.mktemp("architectures")
    wide = TINY | {"vision_cfg": TINY["vision_cfg"] | {"width": 128}}
    large = TINY | {"vision_cfg": TINY["vision_cfg"] | {"image_size": 64}}
    named = {
        "tiny": TINY,
        "tiny-quickgelu": TINY | {"quick_gelu": True},
        "tiny-wide": wide,
        "tiny-large": large,
    }
    for name, config in named.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "tiny"


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """Random weights of the tiny network, as plain torch.save of the tensors."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(random_clip(tiny, 3).network.state_dict(), path)
    return path


def images(*sizes):
    """PIL images of (width, height) with edges and texture, the same in every run."""
    rng = np.random.default_rng(5)
    made = []
    for width, height in sizes:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize(
            (width, height), 2
        )
        noise = rng.integers(-20, 21, (height, width, 3))
        made.append(
            Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))
        )
    return made


def batch_of(*made):
    return torch.stack([from_uint8(np.array(image)) for image in made])


def compare_with_open_clip(encoder, architecture, network, preprocess, sizes):
    for image in images(*sizes):
        with torch.inference_mode():
            expected = network.encode_image(preprocess(image)[None], normalize=True)
        # The same pixels through the same network: what is left is the order of its sums, by the
        # batch and by the instruction set. Of a unit vector, float32 rounds each number at 6e-8;
        # 2e-7 was seen.
        torch.testing.assert_close(encoder.image(batch_of(image)), expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        expected = network.encode_text(
            open_clip.get_tokenizer(architecture)(PROMPTS), normalize=True
        )
    torch.testing.assert_close(encoder.text(PROMPTS), expected, rtol=0, atol=1e-5)
    lengths = torch.cat([encoder.image(batch_of(image)), encoder.text(PROMPTS)]).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)


def test_vectors_are_those_of_open_clip_for_small_large_and_oblong_images(tiny, checkpoint):
    encoder = ClipEncoder(tiny, None, checkpoint)
    network, _, preprocess = open_clip.create_model_and_transforms(tiny, pretrained=str(checkpoint))
    compare_with_open_clip(
        encoder, tiny, network.eval(), preprocess, [(32, 32), (8, 8), (100, 60), (61, 149)]
    )
    assert (encoder.metric, encoder.input_size, encoder.name) == ("angular", 32, "clip-tiny")


def test_vit_b_32_at_its_real_size_is_read_from_a_training_checkpoint(tmp_path):
    made = random_clip("ViT-B-32", 0)
    path = tmp_path / "epoch_32.pt"
    torch.save(
        {
            "epoch": 32,
            "state_dict": {f"module.{k}": v for k, v in made.network.state_dict().items()},
        },
        path,
    )
    try:
        encoder = ClipEncoder("ViT-B-32", None, path)
        preprocess = open_clip.image_transform(224, is_train=False)
        compare_with_open_clip(encoder, "ViT-B-32", made.network, preprocess, [(128, 96)])
    finally:
        path.unlink()  # pytest keeps the folders of three runs, and this is 600 MB
    assert encoder.weights_sha256 == made.weights_sha256
    assert encoder.image(torch.zeros(1, 3, 16, 16)).shape == (1, 512)


def test_a_vector_is_the_same_to_the_last_bit_in_any_batch(tiny, checkpoint):
    encoder = ClipEncoder(tiny, None, checkpoint)
    batch = batch_of(*images(*[(40, 40)] * 7))
    together = encoder.image(batch)
    for rows in ([0], [6], [2, 5], [6, 3, 1]):
        assert torch.equal(encoder.image(batch[rows]), together[rows])
    assert torch.equal(encoder.text(PROMPTS)[1:2], encoder.text(PROMPTS[1:2]))


def test_one_identity_for_one_set_of_weights_and_another_for_what_changes_vectors(
    tiny, checkpoint, tmp_path
):
    identity = ClipEncoder(tiny, None, checkpoint).weights_sha256
    weights = torch.load(checkpoint, weights_only=True)
    safetensors.torch.save_file(weights, tmp_path / "same.safetensors")
    assert ClipEncoder(tiny, None, tmp_path / "same.safetensors").weights_sha256 == identity
    assert ClipEncoder(f"{tiny}-quickgelu", None, checkpoint).weights_sha256 != identity
    weights["visual.proj"][0, 0] += 1e-3
    torch.save(weights, tmp_path / "other.pt")
    assert ClipEncoder(tiny, None, tmp_path / "other.pt").weights_sha256 != identity


def test_random_weights_are_those_of_their_seed(tiny):
    state = torch.get_rng_state()
    assert random_clip(tiny, 0).weights_sha256 == random_clip(tiny, 0).weights_sha256
    assert random_clip(tiny, 0).weights_sha256 != random_clip(tiny, 1).weights_sha256
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "other, message",
    [
        (
            "tiny-wide",
            r"do not match architecture tiny .*size mismatch for visual.class_embedding.*\[128\]",
        ),
        (
            "tiny-large",
            r"do not match architecture tiny .*size mismatch for visual.positional_embedding.*\[65, 64\]",
        ),
    ],
)
def test_weights_of_another_architecture_name_a_tensor_that_differs(tiny, tmp_path, other, message):
    torch.save(empty_network(other).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=message):
        ClipEncoder(tiny, None, tmp_path / "other.pt")


def test_a_missing_and_a_superfluous_tensor_are_named(tiny, checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({k: v for k, v in weights.items() if k != "ln_final.bias"}, tmp_path / "less.pt")
    with pytest.raises(InputError, match=r"Missing.*ln_final.bias"):
        ClipEncoder(tiny, None, tmp_path / "less.pt")
    torch.save(
        weights | {"visual.transformer.resblocks.2.ln_1.weight": torch.ones(64)},
        tmp_path / "more.pt",
    )
    with pytest.raises(InputError, match=r"Unexpected.*resblocks.2.ln_1.weight"):
        ClipEncoder(tiny, None, tmp_path / "more.pt")


def test_weights_with_nan_are_refused_before_any_vector_is_made(tiny, checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)
    weights["visual.ln_post.bias"][3] = torch.nan
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(
        InputError, match=r"nan.pt: the weights are damaged .visual.ln_post.bias holds NaN"
    ):
        ClipEncoder(tiny, None, tmp_path / "nan.pt")


class Code:
    """What weights_only must not unpickle."""

    def __reduce__(self):
        return print, ("code ran",)


def damaged_files(folder, checkpoint):
    content = checkpoint.read_bytes()
    (folder / "cut.pt").write_bytes(content[: len(content) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
    (folder / "cut.safetensors").write_bytes(content[:100])
    torch.save(Code(), folder / "code.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save({"model": {}, "epoch": 3}, folder / "foreign.pt")
    return [
        "cut.pt",
        "empty.pt",
        "text.pt",
        "cut.safetensors",
        "code.pt",
        "nothing.pt",
        "foreign.pt",
    ]


def test_files_that_are_no_weights_are_named_in_one_line(tiny, checkpoint, tmp_path, capsys):
    for name in damaged_files(tmp_path, checkpoint):
        with pytest.raises(InputError, match=name) as raised:
            ClipEncoder(tiny, None, tmp_path / name)
        assert "\n" not in str(raised.value)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_an_archive_of_code_says_how_to_get_its_weights(tiny, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(InputError, match=r"TorchScript archive.*safetensors"):
        ClipEncoder(tiny, None, tmp_path / "ViT-B-32.pt")


def test_openai_weights_are_refused_by_a_network_with_the_other_activation(
    tiny, checkpoint, tmp_path
):
    weights = torch.load(checkpoint, weights_only=True)
    marks = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save({k: v.half() for k, v in weights.items()} | marks, tmp_path / "openai.pt")
    with pytest.raises(InputError, match="architecture=tiny-quickgelu"):
        ClipEncoder(tiny, None, tmp_path / "openai.pt")
    assert ClipEncoder("tiny-quickgelu", None, tmp_path / "openai.pt").image(
        torch.zeros(1, 3, 9, 9)
    ).shape == (1, 24)


def test_missing_weights_say_where_to_get_them_and_where_to_put_them(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError) as raised:
        ClipEncoder()
    message = str(raised.value)
    assert "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K" in message
    assert (
        "open_clip_model.safetensors" in message
        and "checkpoint=FILE" in message
        and "\n" not in message
    )
    with pytest.raises(InputError, match=r"no file .*absent.pt; put the weights there"):
        ClipEncoder("ViT-B-32", None, tmp_path / "absent.pt")
    with pytest.raises(InputError, match="no weights are set"):
        ClipEncoder("ViT-B-32", None)


def test_what_adir_weights_fetched_is_found(tiny, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("ADIR_CACHE", str(tmp_path))
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, tiny, {"made": {"hf_hub": "someone/tiny/"}}
    )
    monkeypatch.setitem(ENTRIES, (tiny, "made"), "clip")
    with pytest.raises(InputError, match=r"605 MB.*`adir weights get clip`.*checkpoint=FILE"):
        ClipEncoder(tiny, "made")
    place = entry("clip").path
    place.parent.mkdir(parents=True)
    safetensors.torch.save_file(torch.load(checkpoint), place)
    assert tmp_path in place.parents
    assert (
        ClipEncoder(tiny, "made").weights_sha256
        == ClipEncoder(tiny, "made", checkpoint).weights_sha256
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("ViT-B-23",), "unknown CLIP architecture 'ViT-B-23'; open_clip has .*ViT-B-32"),
        (("ViT-B-32", "laion"), "unknown tag 'laion'; choose one of .*laion2b_s34b_b79k"),
        (("ViT-B-32", "openai"), "another activation; set architecture=ViT-B-32-quickgelu"),
        (("RN50-quickgelu", "yfcc15m_typo"), "choose one of .*yfcc15m"),
    ],
)
def test_what_open_clip_does_not_have_is_answered_with_what_it_has(arguments, message):
    with pytest.raises(InputError, match=message):
        ClipEncoder(*arguments)


def test_a_tag_brings_its_own_preprocessing(tiny, checkpoint, monkeypatch):
    published = {
        "hf_hub": "someone/tiny/",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny, {"made": published})
    tagged, plain = ClipEncoder(tiny, "made", checkpoint), ClipEncoder(tiny, None, checkpoint)
    assert tagged.weights_sha256 != plain.weights_sha256
    (image,) = images((50, 50))
    small = (
        np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(np.float32) / 127.5 - 1
    )
    torch.testing.assert_close(
        tagged.preprocess(image), torch.from_numpy(small).permute(2, 0, 1), rtol=0, atol=1e-6
    )


def test_a_tokenizer_that_would_be_downloaded_is_refused(tiny, checkpoint, monkeypatch):
    encoder = ClipEncoder(tiny, None, checkpoint)
    encoder.architecture = "ViT-B-16-SigLIP"
    with pytest.raises(InputError, match="would have to be downloaded"):
        encoder.text(["a dog"])


def test_a_prompt_beyond_the_context_is_cut_with_a_warning(tiny, checkpoint):
    encoder = ClipEncoder(tiny, None, checkpoint)
    with pytest.warns(UserWarning, match="a prompt of 102 tokens is cut to .*'s limit of 77"):
        encoder.text(["dog " * 100])


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_what_is_no_image_raises(tiny, checkpoint, value):
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        ClipEncoder(tiny, None, checkpoint).image(torch.full((1, 3, 8, 8), value))


@pytest.mark.gpu
def test_on_a_gpu_a_vector_is_the_cpus_and_depends_on_no_batch(tiny, checkpoint):
    batch = batch_of(*images(*[(40, 40)] * 7))
    cpu, gpu = ClipEncoder(tiny, None, checkpoint), ClipEncoder(tiny, None, checkpoint, "cuda")
    torch.testing.assert_close(gpu.image(batch), cpu.image(batch), rtol=0, atol=1e-5)
    torch.testing.assert_close(gpu.image(batch[:1]), gpu.image(batch)[:1], rtol=0, atol=1e-5)
