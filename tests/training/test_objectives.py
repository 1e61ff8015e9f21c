"""The losses of DPO and KTO and their components, without workers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cluster.errors import InputError
from cluster.store.folder import Folder
from tests.training import trl_losses
from tests.training.conftest import make_rows
from tests.training.preferences import log_prob, write_preferences
from tests.training.trl_losses import MODEL, REFERENCE, made_model, pairs, unpaired
from training import reference
from training.answers import answer_tokens, micro_parts
from training.checks import largest_batch
from training.data.batches import (
    Example,
    collate,
    example_numbers,
    mismatched_examples,
    pack,
)
from training.data.examples import read_examples, survey
from training.data.sequences import REFERENCES, Sequences
from training.memory import BatchSize
from training.objectives.dpo import DpoSettings, dpo_parts
from training.objectives.kto import KtoSettings, kto_parts
from training.packing import use_packed_attention
from training.settings import PlacedTraining
from training.steps import StepData, WorkerBatch

DPO = PlacedTraining(
    objective="dpo", global_batch_size=8, micro_batch_size=2, max_length=64, dtype="float32"
)
KTO = DPO.model_copy(update={"objective": "kto"})
SFT = DPO.model_copy(update={"objective": "sft"})

# Printed by `python -m tests.training.trl_losses` with trl 1.16.0.
TRL_DPO = 1.9281315803527832
TRL_KTO = 0.5732662677764893


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder.open(str(tmp_path_factory.mktemp("preferences")))
    write_preferences(folder, 10)
    return folder


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


# --- the losses --------------------------------------------------------------------------------


def test_dpo_parts_equal_the_formula() -> None:
    import torch

    # Two pairs of three, r of chosen and rejected in turn: margins 0.5 * 1.4 and 0.5 * -0.6.
    ratios = torch.tensor([1.0, -0.4, 0.1, 0.7])
    settings = DpoSettings(beta=0.5, preference_weight=2.0, nll_weight=0.3)
    parts = dpo_parts(ratios, torch.tensor(1.5), 3, settings)
    preference = (math.log(1 + math.exp(-0.7)) + math.log(1 + math.exp(0.3))) / 3
    assert parts["preference_loss"].item() == pytest.approx(preference)
    assert parts["loss"].item() == pytest.approx(2.0 * preference + 0.3 * 1.5)
    assert parts["reward_margin"].item() == pytest.approx(0.4 / 3)
    assert parts["reward_accuracy"].item() == pytest.approx(1 / 3)


def test_kto_parts_equal_the_formula() -> None:
    import torch

    def value(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    settings = KtoSettings(beta=0.5, desirable_weight=1.5, undesirable_weight=0.8)
    parts = kto_parts(
        torch.tensor([1.0, -0.4]), np.array([True, False]), torch.tensor(0.2), 3, settings
    )
    right, wrong = 1.5 * (1 - value(0.5 * 0.8)), 0.8 * (1 - value(0.5 * 0.6))
    assert parts["loss"].item() == pytest.approx((right + wrong) / 3)
    assert parts["reward_margin"].item() == pytest.approx(0.5 * 1.4 / 3)
    assert parts["kl"].item() == pytest.approx(0.2 * 2 / 3), "two of the batch's three examples"


def _of_trl(
    prompt: list[int], target: list[int], *, weight: float = 1.0, label: bool = True
) -> Example:
    """A sequence with its log-probability under the reference of `trl_losses`."""
    row = {"prompt_token_ids": prompt, "target_token_ids": target}
    reference = float(log_prob(made_model(REFERENCE), row, "target_token_ids").detach())
    return Example("x", prompt, target, weight=weight, reference=reference, is_desirable=label)


def test_dpo_with_nll_equals_the_loss_of_trl() -> None:
    sequences = []
    for row in pairs():
        sequences.append(_of_trl(row["prompt_ids"], row["chosen_ids"]))
        sequences.append(_of_trl(row["prompt_ids"], row["rejected_ids"], weight=0.0))
    num_tokens = sum(len(row["chosen_ids"]) for row in pairs())
    micro = collate(sequences, 0)
    share = WorkerBatch([micro], 0, 0, num_tokens, num_examples=4, mismatched=[])
    settings = DPO.model_copy(update={"dpo": trl_losses.DPO})
    parts = micro_parts(made_model(MODEL), micro, share, settings, None)
    assert parts["loss"].item() == pytest.approx(TRL_DPO, abs=1e-5)
    assert parts["preference_loss"].item() > 0.1, "the reference must show"


def test_kto_equals_the_loss_of_trl() -> None:
    rows = unpaired()
    micro, mismatched = (
        collate([_of_trl(r["prompt_ids"], r[name], label=r["label"]) for r in rows], 0)
        for name in ("completion_ids", "KL_completion_ids")
    )
    model = made_model(MODEL)
    kl = answer_tokens(model, mismatched, "cpu").log_ratios(mismatched).mean().clamp(min=0)
    assert kl > 0.01, "it must show"
    share = WorkerBatch([micro], 0, 0, 1, num_examples=8, mismatched=[mismatched])
    settings = KTO.model_copy(update={"kto": trl_losses.KTO})
    parts = micro_parts(model, micro, share, settings, kl)
    assert parts["loss"].item() == pytest.approx(TRL_KTO, abs=1e-5)


def _parts(model: Any, preferences: Folder, settings: PlacedTraining) -> dict[str, Any]:
    """Of a whole step on one worker, in one micro-batch, with some references."""
    import torch

    whole = settings.model_copy(update={"micro_batch_size": 8, "num_workers": 1})
    table = read_examples(preferences, whole)
    random = np.random.default_rng(2)
    for name in REFERENCES:
        table = table.append_column(name, pa.array(random.normal(-20, 5, table.num_rows)))
    share = StepData(table, whole, 0, 1).share(0)
    [micro] = share.micro_batches
    return micro_parts(model, micro, share, whole, torch.zeros(()))


def _gradient(model: Any, loss: Any) -> Any:
    import torch

    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_dpo_without_its_preference_term_is_sft_on_what_was_chosen(
    tiny_model: Path, preferences: Folder, tmp_path: Path
) -> None:
    model = _model(tiny_model)
    chosen = Folder.open(str(tmp_path))
    pairs = preferences.child("preference_pairs").read_table()
    names = ["chosen_id", "prompt_token_ids", "chosen_token_ids"]
    table = pairs.select(names).rename_columns(
        ["example_id", "prompt_token_ids", "target_token_ids"]
    )
    chosen.write_table("train-00000.parquet", table)
    sft = _parts(model, chosen, SFT)["loss"]
    expected = _gradient(model, sft)
    for dpo, constant in (
        (DpoSettings(preference_weight=0.0), 0.0),
        (DpoSettings(beta=0.0), math.log(2)),
        (DpoSettings(beta=1e-7), math.log(2)),
    ):
        loss = _parts(model, preferences, DPO.model_copy(update={"dpo": dpo}))["loss"]
        assert loss.item() == pytest.approx(sft.item() + constant, abs=1e-5)
        gradient = _gradient(model, loss)
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()
    loss = _parts(model, preferences, DPO)["loss"]
    difference = (_gradient(model, loss) - expected).abs().max()
    assert difference > 0.1 * expected.abs().max(), "the preference must show"


@pytest.mark.parametrize("settings", [DPO, KTO], ids=["dpo", "kto"])
def test_packed_parts_and_gradients_equal_padded_ones(
    settings: PlacedTraining, tiny_model: Path, preferences: Folder
) -> None:
    model = _model(tiny_model)
    padded = _parts(model, preferences, settings)
    expected = _gradient(model, padded["loss"])
    use_packed_attention(model)
    packing = settings.model_copy(update={"packing": True, "row_tokens": 1024})
    packed = _parts(model, preferences, packing)
    gradient = _gradient(model, packed["loss"])
    for name, part in padded.items():
        assert packed[name].item() == pytest.approx(part.item(), abs=1e-5), name
    assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("settings", [SFT, DPO, KTO], ids=["sft", "dpo", "kto"])
@pytest.mark.parametrize("form", [collate, pack])
def test_micro_parts_of_nothing_are_nothing_but_reach_every_weight(
    form: Any, settings: PlacedTraining, tiny_model: Path, preferences: Folder
) -> None:
    import torch

    # A worker without examples in the last batch still has to take part in what all do.
    model = _model(tiny_model)
    if form is pack:
        use_packed_attention(model)
    table = read_examples(preferences, DPO if settings is SFT else settings)
    share = StepData(table, DPO if settings is SFT else settings, 0, 1).share(0)
    parts = micro_parts(model, form([], 0), share, settings, torch.zeros(()))
    assert [part.item() for part in parts.values()] == [0.0] * len(parts)
    assert _gradient(model, parts["loss"]).abs().max() == 0


def test_log_probs_of_a_micro_batch_are_those_of_each_example_alone(tiny_model: Path) -> None:
    model = _model(tiny_model)
    rows = make_rows(5)
    examples = [
        Example(row["example_id"], row["prompt_token_ids"], row["target_token_ids"]) for row in rows
    ]
    expected = [log_prob(model, row, "target_token_ids").item() for row in rows]
    padded = answer_tokens(model, collate(examples, 0), "cpu").log_probs
    assert padded.tolist() == pytest.approx(expected, abs=1e-4)
    use_packed_attention(model)
    packed = answer_tokens(model, pack(examples, 0), "cpu").log_probs
    assert packed.tolist() == pytest.approx(expected, abs=1e-4)


# --- what they are made of ---------------------------------------------------------------------


def test_example_numbers_tell_whose_each_token_is() -> None:
    examples = [Example("a", [5, 6], [7]), Example("b", [8], [9])]
    assert example_numbers(collate(examples, 0)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert example_numbers(pack(examples, 0)).tolist() == [[0, 0, 0, 1, 1]]


def test_mismatched_examples_are_of_another_question_whatever_the_order() -> None:
    ids = [f"q{n // 3}/{n}" for n in range(12)]
    questions = [name.partition("/")[0] for name in ids]
    found = mismatched_examples(ids, questions, seed=0)
    assert all(questions[i] != questions[other] for i, other in enumerate(found))
    assert found != mismatched_examples(ids, questions, seed=1)
    turned = mismatched_examples(ids[::-1], questions[::-1], seed=0)
    assert [ids[::-1][other] for other in turned] == [ids[other] for other in found][::-1]
    assert mismatched_examples(["a", "b"], ["q", "q"], seed=0) == [0, 1]


def _table(**columns: Any) -> pa.Table:
    ids = {"example_id": ["x", "y"], "prompt_token_ids": [[1, 2], [3]]}
    return pa.table(ids | columns)


def test_sequences_of_a_pair_are_the_chosen_and_the_rejected_one() -> None:
    table = _table(
        target_token_ids=[[4], [5, 6]],
        rejected_token_ids=[[7, 8], [9]],
        target_reference=[-1.0, -2.0],
        other_reference=[-3.0, -4.0],
    )
    chosen, rejected = Sequences(table, DPO).learnt(1)
    assert (list(chosen.prompt), list(chosen.target)) == ([3], [5, 6])
    assert (list(rejected.prompt), list(rejected.target)) == ([3], [9])
    assert (chosen.reference, rejected.reference) == (-2.0, -4.0)
    assert (chosen.is_desirable, rejected.is_desirable) == (True, False)
    assert rejected.weight == 0, "no likelihood of what was rejected"


def test_sequences_of_a_labelled_path_have_the_answer_to_another_prompt_beside_them() -> None:
    table = _table(question_id=["q", "r"], target_token_ids=[[4], [5, 6]], label=[True, False])
    sequences = Sequences(table, KTO.model_copy(update={"max_length": 3}))
    [right], [wrong] = sequences.learnt(0), sequences.learnt(1)
    assert (right.is_desirable, wrong.is_desirable) == (True, False)
    other = sequences.other(0)
    assert (list(other.prompt), list(other.target)) == ([1, 2], [5]), "cut to max_length"


def test_sequences_of_an_objective_with_one_answer_have_no_other() -> None:
    table = _table(target_token_ids=[[4], [5, 6]])
    sequences = Sequences(table, PlacedTraining())
    assert sequences.looked_at(0) is None
    with pytest.raises(LookupError, match="sft has one answer to each prompt"):
        sequences.other(0)


@pytest.mark.usefixtures("one_process")
def test_references_are_computed_once_for_the_same_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[float] = []

    def compute(_engine: Any, sequences: Sequences, _settings: Any) -> Any:
        computed.append(len(sequences))
        return np.full((len(sequences), 2), [-1.0, -2.0], dtype=np.float32) * len(computed)

    monkeypatch.setattr(reference, "compute_references", compute)
    folder = Folder.open(str(tmp_path))
    table = _table(target_token_ids=[[4], [5]], rejected_token_ids=[[7], [9]])
    for _ in range(2):  # the second time it is read
        made = reference.with_references(None, table, DPO, folder, "key")
        assert made.column("target_reference").to_pylist() == [-1.0, -1.0]
        assert made.column("other_reference").to_pylist() == [-2.0, -2.0]
    assert computed == [2]
    turned = table.take([1, 0])
    again = reference.with_references(None, turned, DPO, folder, "key")
    assert again.column("target_reference").to_pylist() == [-2.0, -2.0], "of other examples"


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_share_of_pairs_keeps_both_of_a_pair_in_one_micro_batch(
    packing: bool, num_ranks: int, preferences: Folder
) -> None:
    settings = DPO.model_copy(update={"packing": packing})
    table = read_examples(preferences, settings)
    seen = 0
    for rank in range(num_ranks):
        data = StepData(table, settings, rank, num_ranks)
        assert data.num_steps == 2 * settings.num_epochs
        share = data.share(0)
        assert share.num_examples == 8
        for micro in share.micro_batches:
            assert micro.are_desirable.tolist() == [True, False] * (len(micro.references) // 2)
            seen += len(micro.references) // 2
    assert seen == 8


def test_share_of_kto_holds_as_many_mismatched_answers_as_examples(preferences: Folder) -> None:
    table = read_examples(preferences, KTO)
    shares = [StepData(table, KTO, rank, 2).share(2) for rank in range(2)]
    for batches in ("micro_batches", "mismatched"):
        counts = [[len(micro.references) for micro in getattr(share, batches)] for share in shares]
        assert sum(map(sum, counts)) == shares[0].num_examples == 3
        assert len({len(of_rank) for of_rank in counts}) == 1, "all ranks take the same passes"
    assert StepData(table, KTO, 0, 2).share(0).num_examples == 8


def test_largest_batch_of_pairs_holds_both(preferences: Folder) -> None:
    table = read_examples(preferences, DPO)
    rows = table.to_pylist()
    answers = [max(len(r["target_token_ids"]), len(r["rejected_token_ids"])) for r in rows]
    longest = max(len(r["prompt_token_ids"]) + n for r, n in zip(rows, answers, strict=True))
    assert largest_batch(table, DPO) == BatchSize(2 * 2 * longest, 2 * 2 * max(answers))
    packed = DPO.model_copy(update={"packing": True})
    assert largest_batch(table, packed) == BatchSize(128, 128)


# --- what is refused ---------------------------------------------------------------------------


def test_survey_counts_pairs_and_labelled_paths(preferences: Folder) -> None:
    assert survey(preferences, DPO).num_kept == 10
    found = survey(preferences, KTO)
    assert (found.num_kept, found.num_undesirable) == (19, 9)


def test_survey_of_a_pair_counts_its_longer_answer(preferences: Folder) -> None:
    rows = read_examples(preferences, DPO).to_pylist()
    lengths = [
        len(row["prompt_token_ids"])
        + max(len(row["target_token_ids"]), len(row["rejected_token_ids"]))
        for row in rows
    ]
    short = DPO.model_copy(update={"max_length": sorted(lengths)[5], "min_examples": 1})
    num_kept = sum(length <= short.max_length for length in lengths)
    assert 0 < num_kept < 10
    assert survey(preferences, short).num_kept == num_kept
    assert read_examples(preferences, short).num_rows == num_kept
    cut = read_examples(preferences, short.model_copy(update={"too_long": "truncate"}))
    assert cut.num_rows == 10
    assert (
        max(
            len(row["prompt_token_ids"]) + len(row[name])
            for row in cut.to_pylist()
            for name in ("target_token_ids", "rejected_token_ids")
        )
        == short.max_length
    )


@pytest.mark.parametrize(("label", "missing"), [(True, "wrong"), (False, "right")])
def test_survey_of_paths_that_are_all_right_or_all_wrong_is_refused(
    label: bool, missing: str, preferences: Folder, tmp_path: Path
) -> None:
    name = "unpaired_preferences"
    table = preferences.child(name).read_table()
    one_sided = table.filter(pc.equal(table.column("label"), label))
    folder = Folder.open(str(tmp_path))
    folder.child(name).write_table("unpaired-00000.parquet", one_sided)
    with pytest.raises(InputError, match=rf"no {missing} paths in .*/{name}: training\.objective"):
        survey(folder, KTO)
