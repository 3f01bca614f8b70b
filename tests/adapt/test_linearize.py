"""Conversion keeps what it should, alignment learns, and the command leaves a folder with its evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models import VOCAB, bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import Alignment, Conversion, convert, converted_layers, train_everything, train_only_maps
from yeoul.data.batch import IGNORE, Batch
from yeoul.errors import UserError
from yeoul.evaluate.ablations import ablations, parts
from yeoul.model.config import FeatureMapConfig
from yeoul.train.distill import _sampled, alignment_objective, distillation_objective


def batch(rows: int = 2, length: int = 30, seed: int = 3) -> Batch:
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])


def test_the_teachers_weights_are_kept_and_its_softmax_layers_change() -> None:
    teacher = make("softmax")
    student = convert(teacher, bare_conversion(window=8))
    assert set(student.config.attention) == {"hybrid"} and converted_layers(student) == [0, 1]
    for name, value in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], value)
        assert student.state_dict()[name].data_ptr() != value.data_ptr()
    kept = convert(teacher, bare_conversion(attention="dijiang", keep_softmax=(1,)))
    assert kept.config.attention == ("dijiang", "softmax")


@torch.no_grad()
def test_a_window_over_the_whole_text_is_the_teacher() -> None:
    teacher = make("softmax")
    student, ids = convert(teacher, bare_conversion(window=30)), batch().input_ids
    assert rms_ratio(student(ids), teacher(ids)) < 1e-5
    assert float(Alignment(teacher)(student, batch()).max()) < 1e-9


@pytest.mark.parametrize(
    ("conversion", "said"),
    [(bare_conversion(keep_softmax=(0, 1)), "no softmax layer"), (bare_conversion(keep_softmax=(5,)), "no layer 5")],
)
def test_impossible_conversions_are_named(conversion: Conversion, said: str) -> None:
    with pytest.raises(UserError, match=said):
        convert(make("softmax"), conversion)
    with pytest.raises(UserError, match="no softmax layer"):
        convert(make("dijiang"), bare_conversion())


def test_alignment_error_is_the_layers_own_on_the_teachers_inputs() -> None:
    """Checked against hooks on a plain run of the teacher: inputs and outputs of its attention layers."""
    teacher, data = make("softmax"), batch()
    student = convert(teacher, bare_conversion(window=4))
    seen = []
    hooks = [
        block.self_attn.register_forward_hook(lambda module, args, out: seen.append((args, out)))
        for block in teacher.layers
    ]
    with torch.no_grad():
        teacher(data.input_ids)
        errors = Alignment(teacher)(student, data)
        for hook in hooks:
            hook.remove()
        for layer, (args, out) in enumerate(seen):
            gap = student.layers[layer].self_attn(*args) - out
            wanted = gap.square().sum(-1) / out.square().mean((0, 1)).sum()
            torch.testing.assert_close(errors[layer], wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["exp", "softmax"])
def test_alignment_learns_only_the_maps_and_lowers_the_error(kernel: str) -> None:
    teacher, data = make("softmax"), batch(4, 48)
    feature_map = FeatureMapConfig(kernel=kernel, decay="learned")
    student = convert(teacher, bare_conversion(window=4, feature_map=feature_map))
    train_only_maps(student)
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained and all(".feature_map." in name or "decay" in name for name in trained)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    objective = alignment_objective(Alignment(teacher))
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = objective(student, data)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.total.item() / loss.count)
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained)
    assert set(loss.parts) == {"layer_0", "layer_1"}


def test_everything_is_trained_but_what_the_configuration_freezes() -> None:
    student = convert(make("softmax"), bare_conversion(feature_map=FeatureMapConfig(learn=("weights",), decay="fixed")))
    train_everything(student)
    frozen = {name.split(".")[-1] for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {"frequencies", "decay_logit"}


def test_distillation_towards_itself_is_free_and_towards_another_is_not() -> None:
    teacher, data = make("softmax"), batch()
    own = distillation_objective(teacher)(teacher, data)
    assert abs(own.total.item()) < 1e-3 and own.count == data.labels.numel()
    other = make("hybrid")
    loss = distillation_objective(teacher, kl_weight=0.5)(other, data)
    assert set(loss.parts) == {"kl", "cross_entropy"}
    expected = 0.5 * loss.parts["kl"] + 0.5 * loss.parts["cross_entropy"]
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_a_share_of_the_positions_stands_for_all_of_them() -> None:
    """The same positions for the same text. Cross-entropy alone is estimated without bias; a divergence is higher than
    over all positions, for half of its positions are drawn by how far the student is off."""
    teacher, other = make("softmax"), make("hybrid")
    for weight in (0.0, 1.0):
        few = distillation_objective(teacher, kl_weight=weight, positions=0.25)
        every = distillation_objective(teacher, kl_weight=weight)
        means: list[list[float]] = [[], []]
        for seed in range(40):
            data = batch(seed=seed)
            loss, again = few(other, data), few(other, data)
            assert loss.total.item() == again.total.item() and loss.count == round(0.25 * data.labels.numel())
            for found, one in zip(means, (loss, every(other, data)), strict=True):
                found.append(one.total.item() / one.count)
        if weight:
            assert sum(means[0]) > 1.03 * sum(means[1])
        else:
            assert sum(means[0]) == pytest.approx(sum(means[1]), rel=0.03) and means[0] != means[1]
        loss.total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters() if p.requires_grad)
    same = distillation_objective(teacher, positions=0.25)(teacher, data)  # nowhere off: any positions
    assert abs(same.total.item()) < 1e-3 and same.count == round(0.25 * data.labels.numel())


def test_the_positions_that_are_off_are_among_those_compared() -> None:
    """8 of 64 positions are off, 16 are compared, 8 of them drawn by that: so all that are off are among them."""
    off = torch.zeros(64)
    off[8:16] = 1.0
    chosen = [_sampled(torch.arange(64) + seed, 0.25, off) != IGNORE for seed in range(20)]
    assert all(places.sum() == 16 and places[8:16].all() for places in chosen)
    assert len({tuple(places.tolist()) for places in chosen}) > 10  # and any others
    assert (_sampled(torch.arange(64), 0.001, off) != IGNORE).sum() == 1


@torch.no_grad()
def test_parts_removed_are_what_they_say() -> None:
    teacher = make("softmax")
    student, data = convert(teacher, bare_conversion(window=5)), batch()
    scores = ablations(student, lambda: [data], None)
    assert list(scores) == ["converted", "without the linear part", "without the window", "without attention"]
    sliding = make("sliding")  # the same seed gives the same weights, and a window of 5
    with parts(student, linear=False):
        assert rms_ratio(student(data.input_ids), sliding(data.input_ids)) < 1e-5
    with parts(student, linear=False, window=False):
        x = torch.randn(1, 9, 64)
        assert torch.equal(student.layers[0].self_attn(x), torch.zeros(1, 9, 64))
    assert all(block.self_attn.linear_enabled and block.self_attn.window_enabled for block in student.layers)


def test_the_command_converts_resumes_and_leaves_its_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from yeoul.cli import main

    walk = f"--context 48 --batch-size 4 --val-tokens 2000 --out {tmp_path}"
    data = "builtin:100KB"
    pretrain = f"pretrain {data} --preset 1m --vocab-size 1200 --tokens 3000 --lr 3e-3 {walk}/soft"
    assert main(pretrain.split()) == 0
    linearize = f"linearize {tmp_path}/soft --data {data} --tokens 2000 --window 8 --contexts 64 128 {walk}/linear"
    assert main(linearize.split()) == 0
    result = json.loads((tmp_path / "linear" / "linearize.json").read_text())
    assert set(result["scores"]) > {"teacher", "converted", "without the linear part", "without attention"}
    assert sum(stage["tokens"] for stage in result["stages"].values()) == result["tokens"] <= 2000
    assert {record["context"] for record in result["speed"]} == {64, 128}
    capsys.readouterr()
    assert main(linearize.split()) == 0  # finished stages are passed
    assert capsys.readouterr().err.count("already finished") == len(result["stages"])
    assert main([*linearize.split(), "--overwrite"]) == 0  # begins afresh
    assert "already finished" not in capsys.readouterr().err
    assert "overwrite: true" not in (tmp_path / "linear" / "config.yaml").read_text()
    from yeoul import generate, load

    model, tokenizer = load(tmp_path / "linear")
    assert set(model.config.attention) == {"hybrid"}
    assert isinstance(generate(model, tokenizer, "옛날", max_tokens=4, seed=0), str)


def test_without_a_budget_the_text_decides_and_the_choices_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yeoul.cli import main
    from yeoul.recipes.linearize import run as linearize

    def stop(*args: object, **options: object) -> None:
        raise UserError("stopped here")

    monkeypatch.setattr(linearize, "run_stages", stop)
    command = f"linearize {tiny_folder} --data builtin:100KB --context 32 --out {tmp_path}/run"
    assert main(command.split()) == 2
    said = capsys.readouterr().out
    assert "4 passes over" in said and "hybrid, window 64" in said and "trains maps, learning rate 0.0005" in said
    monkeypatch.setattr(linearize, "LARGEST_BUDGET", 5000)
    assert main(command.split()) == 2
    assert "Budget: 5,000 tokens" in capsys.readouterr().out


def test_low_rank_in_bf16_leaves_a_model_of_the_sources_type(tmp_path: Path, tiny_folder: Path) -> None:
    from yeoul import load
    from yeoul.cli import main
    from yeoul.model.checkpoint import save_model, stored_dtype

    source, tokenizer = load(tiny_folder)
    assert tokenizer is not None
    save_model(source.to(torch.bfloat16), tmp_path / "source")
    tokenizer.save(tmp_path / "source")
    command = (
        f"linearize {tmp_path}/source --data builtin:100KB --tokens 2000 --context 32 --batch-size 2 --accumulate 2 "
        f"--val-tokens 300 --contexts 32 --dtype bfloat16 --stages align distil --align-on hidden "
        f"--train-align low-rank --train-distil low-rank-all --rank 2 --temperature 2 --kl-weight 0.9 "
        f"--window 8 --out {tmp_path}/run"
    )
    assert main(command.split()) == 0
    stages = json.loads((tmp_path / "run" / "linearize.json").read_text())["stages"]
    assert list(stages) == ["align", "distil"] and sum(s["tokens"] for s in stages.values()) <= 2000
    assert stages["align"]["tokens"] == pytest.approx(2000 * 0.1 / 0.8, abs=128)
    assert {"before", "after", "kept", "ended_early", "perplexity"} <= stages["distil"].keys()
    assert stored_dtype(tmp_path / "run" / "model") == torch.bfloat16
    assert main([*command.split(), "--save-dtype", "float32"]) == 0  # decides nothing: finished stages are passed
    assert stored_dtype(tmp_path / "run" / "model") == torch.float32


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--train-align all", "--train-align"), ("--rank 0", "--rank"), ("--kl-weight 2", "--kl-weight"),
        ("--temperature 0", "--temperature"), ("--accumulate 0", "--accumulate"), ("--patience=-1", "--patience"),
        ("--map-lr 0", "--map-lr"), ("--stages finetune", "--stages"),
        ("--dtype float32 --teacher-dtype bfloat16", "--teacher-dtype"), ("--stages prune", "--stages"),
        ("--tokens 10", "--tokens"), ("--align-share 0.9 --finetune-share 0.9", "--align-share"),
        ("--context 4096", "--context"), ("--keep-softmax 9", "--keep-softmax"),
        ("--attention hybird", "hybrid"), ("--windw 3", "--window"),
    ],
)  # fmt: skip
def test_bad_flags_get_one_sentence_and_leave_nothing(
    flags: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    from yeoul.cli import main

    assert main(f"linearize {tiny_folder} --data builtin:100KB --out {tmp_path}/run {flags}".split()) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "run").exists()
