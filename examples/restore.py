"""Adapt the embedded prior to a folder of images, and restore one degraded image.

    python examples/restore.py y.png FOLDER x_hat.png

y.png has a quarter of the result's width and height. FOLDER holds images similar to it, each with
at least 64 pixels per side.
"""

import sys
from pathlib import Path

import adir

y_file, folder, result = sys.argv[1:]
cell = adir.setup("task=sr4", "sampler=ddrm", "sampler.n_steps=20")  # settings as in `adir list`
y = cell.task.read_y(y_file)
images = [adir.read_image(path) for path in sorted(Path(folder).iterdir())]
adapter = adir.adapt(cell, images)
if adapter.held_out is not None:
    print(f"held-out loss lower by {adapter.held_out.fall:.1%}; alpha {adapter.held_out.alpha}")
with adir.adapted(cell, adapter):
    adir.write_image(result, adir.restore(cell, y))
