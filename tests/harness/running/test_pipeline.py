"""What a record says of its test image."""

from types import SimpleNamespace
from typing import Any

import pytest

from adir.harness.running.pipeline import image_of


@pytest.mark.parametrize("told, recorded", [("astronaut", "astronaut"), ("astronaut-1", None)])
def test_a_record_names_the_cluster_of_an_image_that_is_not_one_of_its_own(
    told: str, recorded: str | None
) -> None:
    data = SimpleNamespace(
        name="made", sha256="0" * 64, cluster=lambda image_id: told, attribution=lambda image_id: {}
    )
    cell: Any = SimpleNamespace(data=data)
    for sha256 in ("1" * 64, None):  # done, and failed
        assert image_of(cell, "astronaut-1", sha256).cluster == recorded
