"""What a training minimises: supervised fine-tuning, DPO with an NLL term, or KTO.

Each objective is one file with one value, `OBJECTIVE`. A new one is a file here, its name in
`training.settings.TrainingSettings.objective`, and its row in `tests/training/matrix.py`.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from training.objectives import dpo, kto, sft
from training.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {each.OBJECTIVE.name: each.OBJECTIVE for each in (sft, dpo, kto)}
