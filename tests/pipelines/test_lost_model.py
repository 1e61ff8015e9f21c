"""What was made with a model is not taken for what another training of it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DamagedFileError
from cluster.store.folder import MANIFEST, Folder
from cluster.store.step import Step
from pipelines.plan import refuse_lost_model


@pytest.fixture
def steps(tmp_path: Path) -> tuple[Step, Step]:
    """A finished model, and the predictions that it has begun to make."""
    below = Folder.open(str(tmp_path)).child("round_0")
    model, predictions = (Step.below(below, name, {}) for name in ("model", "predictions"))
    model.folder.write_bytes("config.json", b"{}")
    model.commit()
    part = "parts/000001-000001-ab12/000000/part-000000-0123456789abcdef.parquet"
    predictions.folder.write_bytes(part, b"rows")
    return model, predictions


@pytest.mark.parametrize("data", [None, b"", b"{"])
def test_model_from_which_rows_exist_is_not_trained_again(
    steps: tuple[Step, Step], data: bytes | None
) -> None:
    model, predictions = steps
    refuse_lost_model(model, [predictions])
    model.folder.delete_files([MANIFEST])
    if data is not None:
        model.folder.write_bytes(MANIFEST, data)
    with pytest.raises(DamagedFileError, match="restore the model, or delete") as caught:
        refuse_lost_model(model, [predictions])
    assert model.folder.uri in str(caught.value)
    assert predictions.folder.uri in str(caught.value)


def test_model_that_nothing_was_made_with_is_trained(steps: tuple[Step, Step]) -> None:
    model, predictions = steps
    model.folder.delete()
    predictions.folder.delete()
    refuse_lost_model(model, [predictions])
