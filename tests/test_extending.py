"""docs/extending.md does what it says: its code and its command are run here."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from adir.files import read_json


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_page_on_extending_adds_a_task_a_backbone_an_encoder_and_a_metric(
    adir, repository: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repository / "docs" / "extending.md").read_text()
    module = ""
    for language, code in blocks(page):
        name, _, rest = code.partition("\n")
        if language == "python":
            assert name == "# mine.py"
            module += rest
        elif language == "yaml":
            path = tmp_path / name.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rest)
    (tmp_path / "mine.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    (command,) = (code for language, code in blocks(page) if language == "sh")
    assert command.startswith("PYTHONPATH=. adir run ")
    words = shlex.split(command.replace("$PWD", str(tmp_path)))[2:]
    small = [word for word in tiny if not word.startswith("scoring")]
    words = [*(word for word in words if word != "data=demo"), *small]  # on smaller pictures
    finished = adir(*words, "adaptation=knn", f"results={tmp_path / 'runs'}")
    assert finished.status == 0, finished.err
    records = [read_json(path) for path in tmp_path.glob("runs/cells/**/records/*.json")]
    assert len(records) == 3
    for record in records:
        assert record["axes"]["task"] == "motion" and record["axes"]["backbone"] == "brighter"
        assert record["scores"]["contrast"]["value"] > 0 and record["scores"]["psnr"]["value"] > 0
        assert record["identity"]["retrieval"]["encoder"] == "mean colour 1"
        assert len(record["neighbours"]) == 2


def test_the_operator_of_the_page_has_the_adjoint_and_the_norm_it_says(repository: Path) -> None:
    import torch

    page = (repository / "docs" / "extending.md").read_text()
    scope: dict = {"__name__": "mine"}
    monkey = sys.modules.setdefault("mine", type(sys)("mine"))  # dataclasses look their module up
    try:
        code = next(code for language, code in blocks(page) if language == "python" and "MotionBlur" in code)
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
