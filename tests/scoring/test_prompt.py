"""Similarity to a prompt: against the cosine of vectors that are known."""

import pytest
import torch

from adir.errors import InputError
from adir.retrieval.encoders.clip import random_clip
from adir.scoring.metrics import Scoring
from adir.scoring.prompt import PromptSimilarity


class Colours:
    """Images are their mean colour, and prompts name one."""

    name, weights_sha256 = "colours", "0123456789abcdef"

    def image(self, batch: torch.Tensor) -> torch.Tensor:
        assert batch.min() >= -1 and batch.max() <= 1
        return torch.nn.functional.normalize((batch.mean((2, 3)) + 1) / 2, dim=1)

    def text(self, prompts: list[str]) -> torch.Tensor:
        named = {"red": [1.0, 0, 0], "yellow": [0.5**0.5, 0.5**0.5, 0]}
        return torch.tensor([named[prompt] for prompt in prompts])


def missing() -> Colours:
    raise InputError("CLIP: the weights are not here")


def test_it_is_the_cosine_of_image_and_prompt() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0], images[1, 1] = 1, 1  # red and green
    metric = PromptSimilarity(Colours)
    assert metric.score(images, prompt="red").tolist() == pytest.approx([1, 0])
    assert metric.score(images, prompt="yellow").tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert metric.version == "colours 01234567"


def test_every_8_bit_level_lies_in_the_encoder_s_range() -> None:
    levels = (torch.arange(256).float() / 255).reshape(1, 1, 16, 16).expand(1, 3, -1, -1)
    PromptSimilarity(Colours).score(levels, prompt="red")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        PromptSimilarity(Colours).score(2 * levels - 1, prompt="red")


def test_clip_of_open_clip_is_such_an_encoder(made_clip: str) -> None:
    encoder = random_clip(made_clip, seed=0)
    x_hat = torch.rand(1, 3, 40, 40)
    score = PromptSimilarity(lambda: encoder).score(x_hat, prompt="a cat").item()
    expected = encoder.image(2 * x_hat - 1) @ encoder.text(["a cat"]).T
    assert score == pytest.approx(expected.item(), abs=1e-6)


def test_scoring_says_why_there_is_no_score() -> None:
    x_hat = torch.zeros(3, 8, 8)
    scored = Scoring(["clip-prompt"], clip=Colours).score(x_hat, prompt="red")["clip-prompt"]
    assert scored == {
        "value": pytest.approx(3**-0.5),
        "direction": "higher",
        "version": "colours 01234567",
    }
    for scoring, prompt, words in (
        (Scoring(["clip-prompt"], clip=Colours), None, "needs a prompt"),
        (Scoring(["clip-prompt"], clip=missing), "red", "the weights are not here"),
        (Scoring(["clip-prompt"]), "red", "no encoder is configured: use scoring=edit"),
    ):
        entry = scoring.score(x_hat, prompt=prompt)["clip-prompt"]
        assert entry["value"] is None and words in entry["reason"]
    assert "not here" in Scoring(["clip-prompt"], clip=missing).unavailable["clip-prompt"]
    with pytest.raises(InputError, match="the weights are not here"):
        Scoring(["clip-prompt"], strict=True, clip=missing)


def test_a_metric_is_given_what_it_says_it_needs() -> None:
    class Given:
        """1 for each of ground truth and prompt that is given."""

        direction, range, weights_files, version = "higher", (0, 2), (), "1"

        def __init__(self, needs_reference: bool, needs_prompt: bool) -> None:
            self.needs_reference, self.needs_prompt = needs_reference, needs_prompt
            self.name = f"{needs_reference} {needs_prompt}"

        def score(
            self, x_hat: torch.Tensor, x: torch.Tensor | None = None, prompt: str | None = None
        ) -> torch.Tensor:
            return torch.tensor([(x is not None) + 2.0 * (prompt == "red")])

        def unavailable(self) -> None:
            return None

    x = torch.zeros(3, 8, 8)
    metrics = [Given(reference, prompt) for prompt in (False, True) for reference in (False, True)]
    found = [entry["value"] for entry in Scoring(metrics).score(x, x, "red").values()]
    assert found == [0, 1, 2, 3]
    found = [entry.get("reason", "") for entry in Scoring(metrics).score(x).values()]
    assert (
        found[0] == ""
        and "ground truth" in found[1]
        and "prompt" in found[2]
        and "ground truth" in found[3]
    )
