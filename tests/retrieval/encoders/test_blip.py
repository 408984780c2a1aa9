"""BLIP against direct calls of transformers: a small network, saved with save_pretrained and loaded
by path.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
)

from adir.errors import InputError
from adir.images import from_uint8
from adir.retrieval.encoders.blip import BlipEncoder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "photo",
    "of",
    "the",
    "dog",
    "taj",
    "mahal",
]
PROMPTS = ["a photo of the dog", "Taj Mahal", "a dog"]


def small_config(hidden=32):
    marks = {"bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    text = marks | {
        "vocab_size": 64,
        "hidden_size": 32,
        "encoder_hidden_size": hidden,
        "intermediate_size": 48,
    }
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    vision = {
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    vision |= {"image_size": 48, "patch_size": 16}
    return BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=24, projection_dim=24
    )


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    words = tmp_path_factory.mktemp("words") / "vocab.txt"
    words.write_text("\n".join(WORDS))
    images = BlipImageProcessorPil(size={"height": 48, "width": 48})
    return BlipProcessor(images, BertTokenizer(str(words)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    network = BlipForImageTextRetrieval(small_config()).eval()
    with torch.no_grad():  # at its first weights (std 0.02) all images have nearly the same vector
        for tensor in network.parameters():
            tensor += 0.3 * torch.randn_like(tensor)
    return network


@pytest.fixture
def folder(network, processor, tmp_path):
    """A BLIP as the hub has it: configuration, weights, preprocessing, tokenizer."""
    network.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def image(seed, width, height):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def batch_of(*made):
    return torch.stack([from_uint8(np.array(one)) for one in made])


def test_similarities_are_those_of_transformers_own_forward(folder, network, processor):
    encoder = BlipEncoder(folder)
    assert (encoder.name, encoder.metric, encoder.input_size) == ("blip", "angular", 48)
    for seed, (width, height) in enumerate([(48, 48), (100, 70), (12, 30)]):
        shown = image(seed, width, height)
        inputs = processor(images=shown, text=PROMPTS, return_tensors="pt", padding=True)
        with torch.inference_mode():
            expected = network(**inputs, use_itm_head=False).itm_score
        found = encoder.image(batch_of(shown)) @ encoder.text(PROMPTS).T
        torch.testing.assert_close(
            found, expected, rtol=0, atol=1e-5
        )  # padded there: sums in another order
        assert expected.std() > 0.01  # else agreement would mean nothing


def test_vectors_have_unit_length_and_are_the_same_to_the_last_bit_in_any_batch(folder):
    encoder = BlipEncoder(folder)
    batch = batch_of(*[image(seed, 60, 60) for seed in range(5)])
    together = encoder.image(batch)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5), rtol=0, atol=1e-5)
    assert torch.equal(encoder.image(batch[[3]]), together[[3]])
    assert torch.equal(encoder.image(batch[[4, 1]]), together[[4, 1]])
    assert torch.equal(encoder.text(PROMPTS)[1:2], encoder.text(PROMPTS[1:2]))


def test_identity_follows_weights_and_preprocessing_and_not_the_place(
    folder, network, processor, tmp_path_factory
):
    identity = BlipEncoder(folder).weights_sha256
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    network.save_pretrained(elsewhere)
    processor.image_processor.save_pretrained(elsewhere)
    assert BlipEncoder(elsewhere).weights_sha256 == identity
    BlipImageProcessorPil(size={"height": 48, "width": 48}, image_mean=[0.5] * 3).save_pretrained(
        elsewhere
    )
    assert BlipEncoder(elsewhere).weights_sha256 != identity


def test_weights_in_pickled_form_are_read_too(folder, network):
    identity = BlipEncoder(folder).weights_sha256
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    assert BlipEncoder(folder).weights_sha256 == identity


def test_a_checkpoint_of_2023_which_also_holds_position_numbers_is_read(folder, network):
    identity = BlipEncoder(folder).weights_sha256
    (folder / "model.safetensors").unlink()
    numbers = {"text_encoder.embeddings.position_ids": torch.arange(64)[None]}
    torch.save(network.state_dict() | numbers, folder / "pytorch_model.bin")
    assert BlipEncoder(folder).weights_sha256 == identity


def test_a_captioning_checkpoint_is_refused_instead_of_filled_with_random_numbers(folder):
    BlipForConditionalGeneration(small_config()).save_pretrained(folder)
    with pytest.raises(
        InputError, match=r"BlipForConditionalGeneration; .*download .*blip-itm-base-coco"
    ) as raised:
        BlipEncoder(folder)
    assert "\n" not in str(raised.value)


def test_weights_that_disagree_with_their_configuration_name_a_tensor(folder):
    config = small_config(hidden=40).to_dict() | {"architectures": ["BlipForImageTextRetrieval"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"config.json.*\(text_encoder.* is \(32, 32\) in .*\(32, 40\)"
    ):
        BlipEncoder(folder)


def test_a_deeper_networks_weights_are_refused_by_a_shallower_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"vision_model.encoder.layers.1.* is present in the file, but missing"
    ):
        BlipEncoder(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named_with_where_to_get_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(
        InputError, match=rf"{name}.*huggingface.co/Salesforce/blip-itm-base-coco.*folder=FOLDER"
    ):
        BlipEncoder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_one_line(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(InputError, match="damaged") as raised:
        BlipEncoder(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


def test_weights_with_inf_are_refused(folder, network):
    weights = network.state_dict() | {"vision_proj.bias": torch.full((24,), torch.inf)}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"the weights are damaged .vision_proj.bias holds NaN or Inf"
    ):
        BlipEncoder(folder)


def test_without_a_tokenizer_images_work_and_text_says_what_is_missing(folder):
    for file in [*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("special*")]:
        file.unlink()
    encoder = BlipEncoder(folder)
    assert encoder.image(batch_of(image(0, 20, 20))).shape == (1, 24)
    with pytest.raises(InputError, match="no tokenizer"):
        encoder.text(["a dog"])


def test_a_long_prompt_is_cut_to_the_authors_35_tokens_with_a_warning(folder):
    encoder = BlipEncoder(folder)
    with pytest.warns(UserWarning, match="42 tokens is cut to BLIP's limit of 35"):
        long = encoder.text(["dog " * 40])
    assert torch.equal(long, encoder.text(["dog " * 33]))  # 33 words, [CLS] and [SEP]


def test_no_folder_says_where_to_get_one():
    with pytest.raises(InputError, match="folder=FOLDER"):
        BlipEncoder()
