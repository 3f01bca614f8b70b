"""What the stages train, whose memory the weights are in, what is kept, and that a kill changes nothing."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import VOCAB, bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import (
    Alignment,
    Conversion,
    HiddenAlignment,
    convert,
    train_everything,
    train_only_maps,
)
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import FeatureMapConfig
from yeoul.model.decoder import Decoder
from yeoul.model.parameters import added_parameters
from yeoul.recipes.linearize.stages import Recipe, StageResult, begin_stage, merge_low_rank, run_stages
from yeoul.recipes.saving import merged_model
from yeoul.train.config import TrainConfig
from yeoul.train.distill import alignment_objective, distillation_objective
from yeoul.train.loop import train

CONVERSION = bare_conversion(window=4, feature_map=FeatureMapConfig(decay="learned"))


def batch(rows: int = 2, length: int = 24, seed: int = 3) -> Batch:
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    labels = ids[:, 1:].clone()
    labels[0, :3] = -100
    return Batch(input_ids=ids[:, :-1], labels=labels)


class Texts:
    """An endless source of a few random batches in turn."""

    period = 4

    def __init__(self, stage: int = 0) -> None:
        self.stage, self.drawn = stage, 0

    def next_batch(self) -> Batch:
        self.drawn += 1
        return batch(seed=1000 * self.stage + self.drawn % self.period)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def pair(share: bool = True, conversion: Conversion = CONVERSION, kind: str = "softmax") -> tuple[Decoder, Decoder]:
    teacher = make(kind).requires_grad_(False)
    return teacher, convert(teacher, conversion, share=share)


# -- alignment


def test_hidden_states_are_compared_behind_each_block() -> None:
    teacher, student = pair()
    data, seen = batch(), {id(m): [] for m in (teacher, student)}
    for model in (teacher, student):
        for block in model.layers:
            block.register_forward_hook(lambda module, args, out, model=model: seen[id(model)].append(out))
    with torch.no_grad():
        teacher(data.input_ids)
        student(data.input_ids)
        wanted, given = seen[id(teacher)][:], seen[id(student)][:]
        errors = list(HiddenAlignment(teacher).by_layer(student, data))
    assert len(errors) == 2
    for error, ours, theirs in zip(errors, given, wanted, strict=True):
        plainly = (ours - theirs).square().sum(-1) / theirs.square().mean((0, 1)).sum()
        torch.testing.assert_close(error, plainly)
    assert errors[1].mean() > 0


def gradients(model: Decoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("what", ["maps", "attention", "low-rank"])
@pytest.mark.parametrize("state_update", ["additive", "delta"])
def test_gradients_layer_by_layer_are_those_of_the_whole(what: str, state_update: str) -> None:
    feature_map = FeatureMapConfig(decay="learned" if state_update == "additive" else "none")
    teacher, student = pair(conversion=bare_conversion(window=4, state_update=state_update, feature_map=feature_map))
    begin_stage(student, teacher, what)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in student.named_parameters():
            if ".adapters." in name:
                p.normal_(std=0.1)
    data = batch()
    valid = data.labels >= 0
    plainly = (Alignment(teacher)(student, data) * valid).sum((1, 2)).mean()
    (3 * plainly).backward()
    expected = gradients(student)
    student.zero_grad(set_to_none=True)
    loss = alignment_objective(Alignment(teacher))(student, data)
    assert loss.total.item() == pytest.approx(plainly.item()) and loss.count == int(valid.sum())
    assert sum(loss.parts.values()) / 2 == pytest.approx(plainly.item())
    (3 * loss.total).backward()
    found = gradients(student)
    assert found.keys() == expected.keys() and len(found) > 4
    assert any("proj" in name for name in found) == (what != "maps" or state_update == "delta")
    for name, value in expected.items():
        assert rms_ratio(found[name], value) < 1e-5, name


def peak_of_saved_tensors(work: Callable[[], Any]) -> int:
    """Most bytes that autograd's graphs held at one time."""
    now, peak = 0, 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Saved:
        nonlocal now, peak
        saved, size = Saved(tensor), tensor.numel() * tensor.element_size()
        now, peak = now + size, max(peak, now + size)
        weakref.finalize(saved, drop, size)
        return saved

    def drop(size: int) -> None:
        nonlocal now
        now -= size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        work()
    return peak


def test_alignment_holds_the_graph_of_one_layer_at_a_time() -> None:
    peaks = {}
    for layers in (1, 4):
        config = make("softmax").config.with_(num_layers=layers, attention=("softmax",) * layers)
        teacher = Decoder(config).requires_grad_(False)
        student = convert(teacher, CONVERSION, share=True)
        train_only_maps(student)
        objective = alignment_objective(Alignment(teacher))
        peaks[layers, "each"] = peak_of_saved_tensors(lambda o=objective, s=student: o(s, batch()).total.backward())
        peaks[layers, "all"] = peak_of_saved_tensors(lambda t=teacher, s=student: Alignment(t)(s, batch()).sum())
    assert peaks[4, "all"] > 3.5 * peaks[1, "all"]
    assert peaks[4, "each"] < 1.2 * peaks[1, "each"]


def test_recomputed_activations_give_the_same_gradients_in_hidden_alignment_and_take_less() -> None:
    teacher, student = pair()
    begin_stage(student, teacher, "maps")
    objective, found, peaks = alignment_objective(HiddenAlignment(teacher)), [], []
    student.train()
    for recompute in (False, True):
        student.gradient_checkpointing = recompute
        student.zero_grad(set_to_none=True)
        totals: list[Tensor] = []
        peaks.append(peak_of_saved_tensors(lambda: totals.append(objective(student, batch()).total)))  # noqa: B023
        totals[0].backward()
        found.append(gradients(student))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert peaks[1] < peaks[0] / 2


# -- what is trained, and whose memory it is


def own_bytes(student: Decoder, teacher: Decoder) -> int:
    """Bytes of the student's weights that are not the teacher's memory."""
    theirs = {p.data_ptr() for p in teacher.parameters()}
    return sum(p.numel() * p.element_size() for p in student.parameters() if p.data_ptr() not in theirs)


@pytest.mark.parametrize("kind", ["softmax", "learned", "gemma-like"])
def test_only_what_a_stage_trains_has_memory_of_its_own(kind: str) -> None:
    teacher, _ = pair(kind=kind)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    whole = sum(p.numel() * 4 for p in teacher.parameters())
    sizes = {}
    for what in ("maps", "low-rank", "low-rank-all", "attention", "all"):
        student = convert(teacher, CONVERSION, share=True)
        maps = own_bytes(student, teacher)
        begin_stage(student, teacher, what, rank=2)  # type: ignore[arg-type]
        theirs = {p.data_ptr(): name for name, p in teacher.named_parameters()}
        for name, p in student.named_parameters():
            assert not (p.requires_grad and p.data_ptr() in theirs), name
            if p.data_ptr() in theirs:
                assert theirs[p.data_ptr()] == name.replace(".base.", ".")
        sizes[what] = own_bytes(student, teacher) - maps
        with torch.no_grad():
            for p in student.parameters():
                if p.requires_grad:
                    p.add_(1.0)
        assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert sizes["maps"] == 0 and sizes["all"] == whole
    attention = [p for b in student.layers for n, p in b.self_attn.named_parameters() if n[1:6] in ("_proj", "_norm")]
    if kind != "gemma-like":  # whose sliding layers stay
        assert sizes["attention"] == sum(p.numel() * 4 for p in attention)
    assert 0 < sizes["low-rank"] < sizes["low-rank-all"] < sizes["attention"] < whole


def test_copies_are_copies_and_nothing_stays_without_memory() -> None:
    teacher, student = pair(share=False)
    assert own_bytes(student, teacher) == sum(p.numel() * 4 for p in student.parameters())
    assert not any(t.is_meta for t in [*student.parameters(), *student.buffers()])


@torch.no_grad()
@pytest.mark.parametrize("what", ["low-rank", "low-rank-all"])
def test_low_rank_parts_are_merged_and_the_teacher_is_as_it_was(what: str, tmp_path: Path) -> None:
    teacher, student = pair()
    ids, before = batch().input_ids, teacher(batch().input_ids)
    untrained = student(ids)
    begin_stage(student, teacher, what, rank=3)  # type: ignore[arg-type]
    assert torch.equal(student(ids), untrained)
    for name, p in student.named_parameters():
        if ".adapters." in name:
            p.add_(0.1 * torch.randn_like(p))
    wanted = student(ids)
    assert rms_ratio(wanted, untrained) > 1e-2
    save_model(merged_model(student), tmp_path)  # in the middle of a stage
    assert rms_ratio(load_model(tmp_path)(ids), wanted) < 1e-5
    merge_low_rank(student)
    assert not any(".adapters." in name or p.requires_grad for name, p in student.named_parameters())
    assert rms_ratio(student(ids), wanted) < 1e-5 and torch.equal(teacher(ids), before)


def test_saved_weights_have_the_wanted_type_but_for_the_maps() -> None:
    _, student = pair()
    saved = merged_model(student, torch.bfloat16)
    kinds = {(".feature_map." in name or "decay" in name, p.dtype) for name, p in saved.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_a_teacher_in_bf16_teaches_a_student_whose_trained_weights_are_fp32() -> None:
    teacher = make("softmax").to(torch.bfloat16).requires_grad_(False)
    for what in ("maps", "low-rank", "attention", "all"):
        student = convert(teacher, CONVERSION, share=True)
        begin_stage(student, teacher, what)  # type: ignore[arg-type]
        assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
        for objective in (
            alignment_objective(Alignment(teacher)),
            alignment_objective(HiddenAlignment(teacher)),
            distillation_objective(teacher),
        ):
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(student, batch())
            loss.total.backward()
            assert loss.total.isfinite() and all(g.isfinite().all() for g in gradients(student).values())
            student.zero_grad(set_to_none=True)
        merge_low_rank(student)
        assert merged_model(student, torch.bfloat16).output_weight.dtype == torch.bfloat16


# -- the stages


def settings(steps: int, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = dict(
        tokens=steps * 48, batch_size=2, context=24, lr=3e-3, weight_decay=0.0, dtype="float32",
        eval_every=4, save_every=2, log_every=1, keep_last=1,
    )  # fmt: skip
    return TrainConfig(**(values | changes))


def convert_in_stages(folder: Path, recipe: Recipe, said: list[str] | None = None, **identity: object):  # type: ignore[no-untyped-def]
    """The student after all stages, judged by how far its predictions are from the teacher's."""
    teacher, student = pair()
    held_out = batch(4, seed=7)

    def validate() -> dict[str, float]:
        loss = distillation_objective(teacher)(student, held_out)
        return {"loss": float(loss.total) / loss.count}

    results = run_stages(
        recipe, teacher, student, folder, make_loader=Texts,  # type: ignore[arg-type]
        save_model=save_model, validate=validate, identity=identity, say=(said if said is not None else []).append,
    )  # fmt: skip
    return teacher, student, results, validate


def same_weights(one: Decoder, other: Decoder) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stages_go_on_from_one_another_and_each_says_what_it_brought(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = Recipe(settings={"align": settings(12, lr=1e-2), "distil": settings(12)}, trains=
                    {"align": "maps", "distil": "low-rank-all"}, rank=4)  # fmt: skip
    _, student, results, validate = convert_in_stages(tmp_path, recipe, said)
    assert all(result.kept for result in results.values())
    assert results["align"].after == results["distil"].before < results["align"].before
    assert results["distil"].after < results["distil"].before
    with torch.no_grad():
        assert validate()["loss"] == pytest.approx(results["distil"].after, rel=1e-4)
    assert len(said) == 4 and "training low-rank-all" in said[2] and "validation loss" in said[3]
    assert not list(tmp_path.glob("*/before*"))
    values = results["distil"].as_dict()
    assert json.loads(json.dumps(values)) == values and values["loss"] == results["distil"].after


def test_a_finished_conversion_is_lengthened_in_its_last_stage(tmp_path: Path) -> None:
    trains: Any = {"align": "maps", "distil": "low-rank-all"}
    recipe = Recipe(settings={"align": settings(6, lr=1e-2), "distil": settings(6)}, trains=trains)
    short = convert_in_stages(tmp_path, recipe)[2]
    longer = Recipe(settings={"align": settings(9, lr=1e-2), "distil": settings(13, patience=5)}, trains=trains)
    for _ in range(2):
        long = convert_in_stages(tmp_path, longer)[2]
        assert (long["align"].tokens, long["distil"].tokens) == (6 * 48, 16 * 48)
        assert long["align"].after == short["align"].after and long["distil"].after <= short["distil"].after
    with pytest.raises(UserError, match="tokens"):
        convert_in_stages(tmp_path, recipe)


def test_the_energy_of_a_stage_is_that_of_all_its_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimated where nothing measures it, the same when a finished stage is passed, longer when it was killed."""
    monkeypatch.setattr("yeoul.evaluate.energy.package_zones", lambda powercap: [])
    recipe = Recipe(settings={"align": settings(6)}, trains={"align": "maps"})
    first = convert_in_stages(tmp_path, recipe)[2]["align"]
    assert first.energy.joules is None and "assumed" in str(first.energy.assumption)
    assert first.energy.seconds >= first.seconds
    assert first.energy.estimated_joules == pytest.approx(first.energy.seconds * (first.energy.assumed_watts or 0))
    assert convert_in_stages(tmp_path, recipe)[2]["align"].energy == first.energy
    notes = tmp_path / "1-align" / "energy.json"
    (session,) = json.loads(notes.read_text())
    notes.write_text(json.dumps([{**session, "seconds": 1e-6, "estimated_joules": 2e-5}]))
    killed = convert_in_stages(tmp_path, recipe)[2]["align"]
    assert killed.energy.estimated_joules == pytest.approx(20 * killed.seconds)
    assert "killed run" in str(killed.energy)


def test_a_stage_that_makes_it_worse_is_not_kept(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = Recipe(
        settings={"align": settings(6, lr=1e-2), "finetune": settings(6, lr=0.3), "distil": settings(4)},
        trains={"align": "maps", "finetune": "all", "distil": "maps"},
    )
    for _ in range(2):  # the second time everything is finished, and the decision is the same
        teacher, student, results, validate = convert_in_stages(tmp_path, recipe, said)
        assert not results["finetune"].kept and results["finetune"].after > results["finetune"].before
        assert results["distil"].before == results["align"].validation["loss"]
        assert "the earlier state is kept" in said[3] and len(said) == 6
        for name, value in teacher.state_dict().items():
            assert torch.equal(student.state_dict()[name], value)
        said.clear()


def test_the_best_state_within_a_stage_wins(tmp_path: Path) -> None:
    teacher, student = pair()
    losses, seen = iter([5.0, 3.0, 2.0, 4.0]), []

    def validate() -> dict[str, float]:
        seen.append({name: t.clone() for name, t in merged_model(student).state_dict().items()})
        return {"loss": next(losses)}

    result = run_stages(
        Recipe(settings={"distil": settings(12)}, trains={"distil": "low-rank"}), teacher, student, tmp_path,
        make_loader=Texts, save_model=save_model, validate=validate, identity={}, say=lambda text: None,  # type: ignore[arg-type]
    )["distil"]  # fmt: skip
    assert (result.before, result.after, result.kept) == (5.0, 2.0, True) and len(seen) == 4
    same = [all(torch.equal(t, state[name]) for name, t in student.state_dict().items()) for state in seen]
    assert same == [False, False, True, False]


def test_what_a_stage_leaves_unspent_goes_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Texts, "period", 1)  # no noise
    said: list[str] = []
    flat = settings(20, lr=1e-6, min_lr_ratio=1.0, patience=3, eval_every=0, save_every=0)
    recipe = Recipe(settings={"align": flat, "distil": settings(4, eval_every=0)}, trains=
                    {"align": "maps", "distil": "maps"})  # fmt: skip
    results = convert_in_stages(tmp_path, recipe, said)[2]
    assert results["align"].ended_early and results["align"].tokens < flat.tokens
    assert results["align"].tokens + results["distil"].tokens == flat.tokens + 4 * 48
    assert "It stopped improving" in said[1] and "are passed to the next stage" in said[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"align_on": "hidden"}, "align-on|align_on"), ({"rank": 3}, "rank"), ({"temperature": 2.0}, "temperature"),
        ({"map_lr": 1e-2}, "map-lr"),
        ({"trains": {"align": "low-rank", "distil": "maps"}}, "train"),
        ({"settings": {"align": settings(4, lr=1e-4), "distil": settings(4)}}, "lr"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_when_going_on(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    values: dict[str, Any] = dict(
        settings={"align": settings(4), "distil": settings(4)}, trains={"align": "low-rank", "distil": "attention"}
    )
    convert_in_stages(tmp_path, Recipe(**values))
    with pytest.raises(UserError, match=said):
        convert_in_stages(tmp_path, Recipe(**(values | changes)))


def test_what_is_new_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    stages: Any = {"align": settings(4), "distil": settings(4)}
    recipes = [Recipe(settings=stages, map_lr=rate) for rate in (None, 3e-9)]
    assert [recipe.rates("align", pair()[1]) for recipe in recipes] == [None, None]
    assert "learning rate 0.003 (3e-09 for the maps)" in recipes[1].lines()[1]
    moved = []
    for number, recipe in enumerate(recipes):
        teacher, student = pair()
        begin_stage(student, teacher, "all")
        before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        train(
            student, Texts(1), recipe.objective("distil", teacher), settings(3), tmp_path / str(number),
            save_model=functools.partial(save_model, student), rates=recipe.rates("distil", student),
        )  # fmt: skip
        after = student.state_dict()
        moved.append({name: float((after[name] - before[name]).abs().max()) for name in before})
    ordinary, slow = moved
    trained = {name for name, distance in ordinary.items() if distance > 1e-4}
    maps = trained & added_parameters(student)
    assert maps and trained - maps
    assert all(slow[name] < 1e-7 for name in maps) and all(slow[name] > 1e-4 for name in trained - maps)


def test_alignment_of_outputs_cannot_train_what_it_does_not_reach() -> None:
    with pytest.raises(UserError, match="can only train the attention"):
        Recipe(settings={"align": settings(4)}, trains={"align": "all"})
    Recipe(settings={"align": settings(4)}, trains={"align": "all"}, align_on="hidden")


def die_at_disk_call(number: int) -> None:
    calls = 0

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, deadly(getattr(os, name)))


def in_child(action: Callable[[], object]) -> int:
    """Exit code of a forked child that runs `action`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["maps", "attention", "all", "low-rank", "low-rank-all"])
def test_killed_in_every_stage_equals_undisturbed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Texts, "period", 1)
    recipe = Recipe(
        settings={"align": settings(8, lr=1e-6, min_lr_ratio=1.0, patience=2), "distil": settings(4),
                  "finetune": settings(4)},
        trains={"align": "low-rank", "distil": what, "finetune": what}, rank=2,  # type: ignore[dict-item]
    )  # fmt: skip

    def work(folder: Path) -> None:
        _, student, results, _ = convert_in_stages(folder, recipe)
        save_model(student, folder / "result")
        (folder / "results.json").write_text(json.dumps({k: timeless(v) for k, v in results.items()}))

    work(tmp_path / "whole")
    chance, deaths = random.Random(5), 0
    while True:
        number = chance.randint(20, 70)
        code = in_child(lambda number=number: (die_at_disk_call(number), work(tmp_path / "killed")))  # type: ignore[misc]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert deaths < 60
    assert deaths >= 3
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert same_weights(load_model(whole / "result"), load_model(killed / "result"))
    assert (whole / "results.json").read_text() == (killed / "results.json").read_text()
    assert json.loads((whole / "results.json").read_text())["align"]["ended_early"]


def timeless(result: StageResult) -> dict[str, Any]:
    return {key: value for key, value in result.as_dict().items() if key not in ("seconds", "energy")}


def test_accumulated_micro_batches_are_one_step() -> None:
    """Two micro-batches of two rows each give the gradient of the four rows."""
    teacher, student = pair()
    train_everything(student)
    a, b = batch(seed=11), batch(seed=12)
    together = Batch(input_ids=torch.cat((a.input_ids, b.input_ids)), labels=torch.cat((a.labels, b.labels)))
    objective = distillation_objective(teacher, kl_weight=0.5, temperature=2.0)
    for part in (a, b):
        objective(student, part).total.backward()
    parts = gradients(student)
    student.zero_grad(set_to_none=True)
    objective(student, together).total.backward()
    for name, value in gradients(student).items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)
