"""What a record must hold before a table is made of it, as it may come from a file that somebody else wrote."""

import math
from typing import Any

DIRECTIONS = ("higher", "lower", "none")
AXES = {"backbone": str, "task": str, "adaptation": str, "sampler": str, "seed": int}
OPTIONAL_AXES = {"k": int, "adapter": str}


def fault_of(record: dict[str, Any]) -> str | None:
    """None, or in a few words what keeps a record (of the right schema) from being counted."""
    axes, image = record["axes"], record["image"]
    if not isinstance(axes, dict) or not isinstance(image, dict) or not isinstance(record["scores"], dict):
        return "axes, image and scores are to be objects"
    for name, kind in AXES.items():
        if type(axes.get(name)) is not kind:
            return f"axis {name} is {axes.get(name)!r}, not {'a word' if kind is str else 'a whole number'}"
    for name, kind in OPTIONAL_AXES.items():
        if name not in axes or not (axes[name] is None or type(axes[name]) is kind):
            return f"axis {name} is {axes.get(name)!r}, not null or {'a word' if kind is str else 'a whole number'}"
    if not isinstance(image.get("id"), str) or not isinstance(image.get("data"), str | None):
        return "image.id and image.data are to be words"
    if not isinstance(record["cell"], str) or record.get("seed") != axes["seed"]:
        return "cell is to be a hash, and seed that of the axes"
    if not isinstance(record.get("identity"), dict) or not isinstance(record.get("unavailable", {}), dict | None):
        return "identity and unavailable are to be objects"
    if fault := contradiction(axes, record["identity"]):
        return fault
    if record["status"] not in ("done", "failed"):
        return f"status is {record['status']!r}, not done or failed"
    if record["status"] == "failed":
        return None
    task = record["identity"].get("task")
    if not isinstance(task, dict) or "version" not in task:
        return "identity.task.version is missing"
    if not isinstance(record["y"], dict) or not isinstance(record["y"].get("sha256"), str):
        return "y.sha256 is missing"
    return next(
        (f"score {name}: {why}" for name, score in record["scores"].items() if (why := score_fault(score))), None
    )


def contradiction(axes: dict[str, Any], identity: dict[str, Any]) -> str | None:
    """None, or which axis, by which a row is named, is not what the identity says, from which its cell was made."""
    said = {name: identity.get(name) for name in ("backbone", "task", "sampler", "adaptation")}
    parts = {name: part for name, part in said.items() if isinstance(part, dict)}
    expected = {name: part["name"] for name, part in parts.items() if "name" in part}
    if "adaptation" in parts:
        expected["k"] = parts["adaptation"].get("k")
        if isinstance(adapter := parts["adaptation"].get("adapter"), dict):
            expected["adapter"] = adapter.get("name")
    expected |= {"seed": identity["seed"]} if "seed" in identity else {}
    return next(
        (f"axis {n} is {axes[n]!r}, its identity says {v!r}" for n, v in expected.items() if axes[n] != v), None
    )


def score_fault(score: Any) -> str | None:
    """None, or what is wrong with one score."""
    if not isinstance(score, dict):
        return "is to be an object"
    if score.get("direction") not in DIRECTIONS or not isinstance(score.get("version"), str):
        return "direction and version are to be words"
    for key in ("value", "sigma_y"):
        value = score.get(key)
        if value is not None and (
            not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value)
        ):
            return f"{key} is {value!r}, not a finite number or null"
    return None
