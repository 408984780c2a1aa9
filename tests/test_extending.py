"""docs/extending.md does what it says: its code and its commands are run here."""

import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest

from adir.files import read_json


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def commands(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of the page's commands, after `adir`, with its files in tmp_path."""
    page = (repository / "docs" / "extending.md").read_text()
    module, lines = "", []
    for language, code in blocks(page):
        name, _, rest = code.partition("\n")
        if language == "python":
            assert name == "# mine.py"
            module += rest
        elif language == "yaml":
            path = tmp_path / name.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rest)
        else:
            lines += code.splitlines()
    (tmp_path / "mine.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return [
        shlex.split(
            line.removeprefix("PYTHONPATH=. adir ")
            .removeprefix("adir ")
            .replace("$PWD", str(tmp_path))
        )
        for line in lines
    ]


def test_the_page_on_extending_adds_a_task_a_sampler_a_backbone_an_encoder_and_a_metric(
    adir, commands: list[list[str]], tiny: list[str], tmp_path: Path
) -> None:
    small = [word for word in tiny if not word.startswith("scoring")]
    words = [*(word for word in commands[0] if word != "data=demo"), *small]  # on smaller images
    finished = adir(*words, "adaptation=knn", f"results={tmp_path / 'runs'}")
    assert finished.status == 0, finished.err
    records = [read_json(path) for path in tmp_path.glob("runs/cells/**/records/*.json")]
    assert len(records) == 3
    for record in records:
        assert record["axes"]["task"] == "motion" and record["axes"]["backbone"] == "brighter"
        assert record["axes"]["sampler"] == "plug_and_play"
        assert record["scores"]["contrast"]["value"] > 0 and record["scores"]["psnr"]["value"] > 0
        assert record["identity"]["retrieval"]["encoder"] == "mean colour 1"
        assert len(record["neighbours"]) == 2


def test_a_sampler_of_the_page_runs_in_a_grid_beside_ours(
    adir, commands: list[list[str]], tiny: list[str]
) -> None:
    _, grid, table = commands
    small = [word for word in grid if word != "data=demo"] + [
        word for word in tiny if "n_steps" not in word
    ]
    finished = adir(*small)
    assert finished.status == 0, finished.err
    records = [read_json(path) for path in Path("runs/mine/cells").glob("**/records/*.json")]
    counted = Counter(
        (r["axes"]["task"], r["axes"]["sampler"], r["sampler"]["network_evaluations"])
        for r in records
    )
    assert counted == {
        (task, name, 20): 3
        for task in ("sr4", "deblur")
        for name in ("plug_and_play", "ddrm", "diffpir")
    }
    (own,) = {
        r["identity"]["sampler"]["version"]
        for r in records
        if r["axes"]["sampler"] == "plug_and_play"
    }
    assert own == 1
    printed = adir(*table)
    assert printed.status == 0 and "plug_and_play" in printed.out


def test_the_sampler_of_the_page_ends_at_the_y_that_an_exact_network_leads_to(
    commands: list[list[str]],
) -> None:
    # A network that knows x: denoising gives x, A x = y, and nothing is left to correct.
    import mine
    import torch

    from adir.backbones.base import Prediction
    from adir.diffusion.schedule import linear_schedule
    from adir.tasks.operators import SuperResolution

    class Knowing:
        schedule = linear_schedule()

        def predict(self, x_t, t):
            ab = self.schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
            return Prediction((x_t - ab.sqrt() * x) / (1 - ab).sqrt(), None)

    x = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    operator = SuperResolution(2)((3, 16, 16))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    result = mine.PlugAndPlay(n_steps=5).restore(Knowing(), operator, operator.A(x), generators)
    torch.testing.assert_close(result.x_hat, x)


def test_the_operator_of_the_page_has_the_adjoint_and_the_norm_it_says(repository: Path) -> None:
    import torch

    page = (repository / "docs" / "extending.md").read_text()
    scope: dict = {"__name__": "mine"}
    monkey = sys.modules.setdefault("mine", type(sys)("mine"))  # dataclasses look their module up
    try:
        code = next(
            code for language, code in blocks(page) if language == "python" and "MotionBlur" in code
        )
        exec(code, scope)
    finally:
        if sys.modules.get("mine") is monkey:
            del sys.modules["mine"]
    operator = scope["MotionBlur"](7)((3, 16, 24))
    x, y = torch.randn(3, 16, 24, dtype=torch.float64), torch.randn(3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close((operator.A(x) * y).sum(), (x * operator.A_adjoint(y)).sum())
    v = x
    for _ in range(200):  # power iteration
        v = operator.A_adjoint(operator.A(v))
        v = v / v.norm()
    assert abs(operator.A(v).norm() - operator.norm) < 1e-3
