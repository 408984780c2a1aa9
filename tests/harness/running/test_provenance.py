"""Facts about the process that a record holds."""

import re
from pathlib import Path

import pytest
import torch

from adir.harness.running.provenance import process_peak_memory_mb

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.is_file(), reason="this system has no /proc to compare with")
def test_the_peak_memory_is_in_megabytes_of_a_million_bytes() -> None:
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    # The kernel's kB are 1024 bytes, 2.4 % more. It may also count the process that started ours.
    assert process_peak_memory_mb(torch.device("cpu")) > 0.99 * int(found[1]) * 1024 / 1e6
