"""The record's type: what it takes, what it refuses, and that its fields are explained."""

import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_records import changed, made_record
from pydantic import ValidationError

import adir.harness.records.record as module
from adir.harness.records.record import (
    HeldOut,
    Neighbour,
    OtherSchema,
    Prior,
    Record,
    Score,
    Search,
    Stratum,
    json_value,
    parse_record,
    scores_of,
)


def full_record() -> Record:
    """A record with a value in every field but those of a failure."""
    record = made_record(
        "a", mode="knn", k=2, adapter="lora", scores={"psnr": 25.0, "piqe": None, "residual": 9.9}
    )
    assert record.adapter is not None
    held_out = HeldOut(
        losses={0: 1.0, 100: 0.75},
        kept_iteration=100,
        alphas={0.0: 1.0, 0.5: 0.5, 1.0: 0.75},
        alpha=0.5,
        gate=False,
        fall=0.5,
        standard_error=0.125,
        strata=(Stratum(t_first=0, t_last=499, untuned=0.5, adapted=0.25),),
    )
    return record.model_copy(
        update={
            "adapter": record.adapter.model_copy(update={"k_used": 1, "held_out": held_out}),
            "neighbours": (
                Neighbour(id="n", distance=0.5, image="p"),
                Neighbour(id="m", distance=None),
            ),
            "excluded": ("copy",),
            "search": Search(approximate=True, recall=0.9),
            "prior": Prior(trained_on="ImageNet"),
            "unavailable": {"musiq-koniq": "no weights"},
            "configuration": {"seed": 0, "nested": {"list": [1, 2.5, None, "x", True]}},
            "versions": {"torch": "2"},
            "commit": "c0ffee",
            "threads": 1,
            "process_peak_memory_mb": 512.5,
            "restored": "cells/x.png",
        }
    )


RECORDS = {
    "full": full_record(),
    "done": made_record(),
    "failed": made_record(status="failed"),
    "missing": made_record(status="missing"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_comes_back_from_its_file(name: str) -> None:
    record = RECORDS[name]
    text = json.dumps(record.as_json(), allow_nan=False)
    assert parse_record(json_value(text.encode())) == parse_record(json.loads(text)) == record
    assert parse_record(json_value(text.encode())).as_json() == json.loads(text)


def test_a_file_says_its_schema_and_never_its_own_place() -> None:
    content = made_record().model_copy(update={"path": "cells/a.json"}).as_json()
    assert content["schema"] == module.SCHEMA == 3
    assert "path" not in content and "schema_version" not in content


def fields_of(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """(name, whether a string follows it) of each annotated field."""
    for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            yield statement.target.id, said and isinstance(below.value.value, str)


SHARED = {"t_first", "untuned", "n_layers", "first_loss"}
"""Fields that one sentence explains together with the field below."""


def test_every_field_of_every_part_is_explained() -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    told = {f"{node.name}.{field}": said for node in classes for field, said in fields_of(node)}
    types = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, module.Part)
    ]
    assert told.keys() == {
        f"{part.__name__}.{field}" for part in types for field in part.model_fields
    }
    assert {name.partition(".")[2] for name, said in told.items() if not said} == SHARED
    assert all(node.body and ast.get_docstring(node) for node in classes)


def test_a_misspelt_field_raises_when_writing() -> None:
    fields = dict(made_record())
    del fields["schema_version"]
    assert Record(**fields) == made_record()
    with pytest.raises(ValidationError, match=r"neighbors\n.*Extra inputs are not permitted"):
        Record(**fields, neighbors=())
    with pytest.raises(ValidationError, match=r"values\n.*Extra inputs are not permitted"):
        Score(value=1.0, direction="higher", version="1", values=2.0)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="frozen"):
        made_record().seed = 3  # type: ignore[misc]


def test_a_field_of_a_newer_version_is_kept() -> None:
    content = full_record().as_json() | {"colour": {"deep": [1]}}
    content["axes"]["flavour"] = "sweet"
    content["neighbours"][0]["rank"] = 1
    content["adapter"]["held_out"]["strata"][0]["n"] = 7
    record = parse_record(content)
    assert record.as_json() == content
    again = record.model_copy(
        update={"scores": made_record(scores={"psnr": 1.0}).scores}
    )  # as `adir score` does
    assert again.as_json() == content | {"scores": again.as_json()["scores"]}


WRONG: dict[str, dict[str, Any]] = {
    "axes.k: Input should be a valid integer": {"axes.k": True},
    "axes.seed: Input should be a valid integer": {"axes.seed": True},
    "seed: Input should be a valid integer": {"seed": 0.0},
    "scores.psnr.value: Input should be a finite number": {"scores.psnr.value": math.nan},
    "scores.psnr.value: Input should be a valid number": {"scores.psnr.value": "25"},
    "seconds.sample: Input should be a finite number": {"seconds.sample": math.inf},
    "neighbours.1.id: Field required": {
        "neighbours": [{"id": "n", "distance": 1.0}, {"distance": 1.0}]
    },
    "adapter: Input should be a valid dictionary": {"adapter": "lora"},
    "axes.task is 'sr4', but identity has 'deblur'": {"identity.task.name": "deblur"},
    "axes.backbone is 'made', but identity has 'gd256'": {"identity.backbone.name": "gd256"},
    "axes.sampler is 'dps', but identity has 'adir'": {"axes.sampler": "dps"},
    "axes.adaptation is 'none', but identity has 'knn'": {"axes.adaptation": "none"},
    "axes.adapter is 'full', but identity has 'lora'": {"identity.adaptation.adapter.name": "lora"},
    "axes.k is 5, but identity has 2": {"axes.k": 5},
    "axes.seed is 0, but identity has 1": {"identity.seed": 1},
    "seed is 1, but axes.seed is 0": {"seed": 1},
    "identity.task.version is missing": {"identity.task": {"name": "sr4"}},
    "a finished record needs y and image.sha256": {"y": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_or_contradicts_itself_is_refused_by_its_name(message: str) -> None:
    record = made_record("a", mode="knn", k=2)
    with pytest.raises(ValueError) as raised:
        changed(record, WRONG[message])
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["y", "image"])
def test_only_what_is_done_needs_hashes(name: str) -> None:
    change = {"y": None} if name == "y" else {"image.sha256": None}
    with pytest.raises(ValueError, match=r"a finished record needs y and image\.sha256"):
        changed(made_record(), change)
    assert changed(made_record(), change | {"status": "failed"}).status == "failed"


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "3"])
def test_what_is_no_object_is_no_record(content: str) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        parse_record(json_value(content.encode()))


@pytest.mark.parametrize("field", ["value", "n_steps", "weight"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_file_with_a_number_that_json_has_no_word_for_is_refused(field: str, number: str) -> None:
    text = json.dumps(changed(made_record(), {"configuration.weight": 1.0}).as_json())
    spoilt = re.sub(f'"{field}": [0-9.]+', f'"{field}": {number}', text)
    assert spoilt != text
    with pytest.raises(ValueError, match="invalid JSON: "):
        parse_record(json_value(spoilt.encode()))


@pytest.mark.parametrize("schema", [1, 2, "2", None, 2.5])
def test_a_record_of_another_schema_is_none_of_ours(schema: object) -> None:
    content = made_record().as_json() | {"schema": schema}
    with pytest.raises(
        OtherSchema, match=f"schema {schema!r}, but this version of adir reads schema 3"
    ):
        parse_record(content)
    del content["schema"]
    with pytest.raises(OtherSchema, match="schema None"):
        parse_record(content)


def test_a_score_that_is_no_number_is_named() -> None:
    found = {"psnr": {"value": 25.0, "direction": "higher", "version": "1"}}
    assert scores_of(found) == made_record().scores
    found["piqe"] = {"value": math.nan, "direction": "lower", "version": "1"}
    with pytest.raises(
        ValueError, match="score piqe: value: Input should be a finite number"
    ) as raised:
        scores_of(found)
    assert "\n" not in str(raised.value)


def test_values_are_read_off_a_record() -> None:
    record = made_record(scores={"psnr": 0.0, "piqe": None, "residual": 9.9})
    assert (record.value("psnr"), record.value("piqe"), record.value("ssim")) == (0.0, None, None)
    assert record.sigma_y == 10.0 and made_record().sigma_y is None
    assert record.y_file is None and changed(record, {"y.file": "y.png"}).y_file == "y.png"
    assert made_record(status="failed").y_file is None
