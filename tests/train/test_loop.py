import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from train.toy import VOCAB, ToyLoader, toy_config, toy_model, untimed
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.train.log import MetricsLog
from yeoul.train.loop import train
from yeoul.train.loss import Loss, language_model_objective


def _train(folder, config, model=None, objective=language_model_objective, **more):
    model = model or toy_model()
    loader = ToyLoader(config.batch_size, config.context)
    return model, train(model, loader, objective, config, folder, **{"save_model": model.save, **more})


def test_loss_falls_and_everything_is_written(tmp_path, capsys):
    model, result = _train(tmp_path, toy_config(tokens=200 * 24, log_every=10, save_every=0))
    lines = MetricsLog(tmp_path / "metrics.jsonl").read()
    assert [line["step"] for line in lines] == list(range(10, 201, 10))
    assert set(lines[0]) == {
        "kind", "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "seconds"
    }  # fmt: skip
    assert lines[-1]["loss"] < 0.5 < lines[0]["loss"]
    assert (result.step, result.tokens, result.loss) == (200, 4800, lines[-1]["loss"])
    saved = load_file(result.checkpoint / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    assert "tokens/s" in capsys.readouterr().err


def test_accumulation_equals_one_big_batch(tmp_path):
    # Unequal numbers of valid tokens in the micro-batches: a mean of means would differ.
    weights = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        model = toy_model()
        model.drop.p = 0.0
        loader = ToyLoader(batch, 6)
        draw = loader.next_batch
        counter = iter(range(10_000))

        def next_batch(batch=batch, draw=draw, counter=counter):
            drawn = draw()
            labels = (drawn.input_ids + 3) % VOCAB
            for row in range(batch):
                labels[row, : next(counter) % 4] = -100
            return Batch(input_ids=drawn.input_ids, labels=labels)

        loader.next_batch = next_batch
        config = toy_config(batch_size=batch, accumulate=accumulate, tokens=20 * 24, save_every=0)
        train(model, loader, language_model_objective, config, tmp_path / str(batch), save_model=model.save)
        weights.append(model.state_dict())
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    calls = 0

    def objective(model: nn.Module, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        loss = language_model_objective(model, batch)
        return Loss(total=loss.total * (float("nan") if calls == 8 else 1.0), count=loss.count)

    with pytest.raises(UserError, match=r"step 8 .*checkpoint of step 5 is untouched"):
        _train(tmp_path, toy_config(), objective=objective)
    assert [p.name for p in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000005"]


def test_only_parameters_that_require_gradients_change(tmp_path):
    model = toy_model()
    model.embed.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _train(tmp_path, toy_config(tokens=5 * 24), model=model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "embed.weight" not in changed and "mix.weight" in changed
    kept = load_file(tmp_path / "checkpoints/step-00000005/state/weights.safetensors")
    assert "embed.weight" not in kept
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter"):
        _train(tmp_path / "none", toy_config(), model=model)


def test_validation_runs_in_eval_mode_and_finds_the_best(tmp_path):
    model = toy_model()
    losses = iter([3.0, 1.0, 2.0, 1.5])
    modes = []

    def validate() -> dict[str, float]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"loss": next(losses), "bits_per_byte": 1.0}

    config = toy_config(tokens=40 * 24, eval_every=10, save_every=5, keep_last=2)
    _, result = _train(tmp_path, config, model=model, validate=validate)
    assert modes == [(False, False)] * 4 and model.training
    assert result.validation["loss"] == 1.5 and result.best == {"step": 20, "loss": 1.0}
    assert json.loads((tmp_path / "checkpoints/best.json").read_text())["folder"] == "step-00000020"
    assert json.loads((tmp_path / "checkpoints/latest.json").read_text())["step"] == 40
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000020", "step-00000035", "step-00000040"]
    lines = [line for line in MetricsLog(tmp_path / "metrics.jsonl").read() if line["kind"] == "val"]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]


def test_watching_does_not_change_the_losses(tmp_path):
    train_lines = []
    for name, changes in {"often": {"eval_every": 3, "save_every": 2}, "never": {"save_every": 0}}.items():
        _train(tmp_path / name, toy_config(**changes), validate=lambda: {"loss": float(torch.rand(()))})
        lines = untimed(MetricsLog(tmp_path / name / "metrics.jsonl").read())
        train_lines.append([line for line in lines if line["kind"] == "train"])
    assert train_lines[0] == train_lines[1]


def test_bfloat16_autocast_trains_float32_weights(tmp_path):
    model, result = _train(tmp_path, toy_config(dtype="bfloat16", tokens=5 * 24))
    assert all(p.dtype == torch.float32 for p in model.parameters()) and result.loss < 4


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    _train(tmp_path, toy_config(tokens=5 * 24, tensorboard=True))
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_gradient_checkpointing_is_switched_on_in_the_model(tmp_path):
    model = toy_model()
    model.gradient_checkpointing = False
    _train(tmp_path, toy_config(tokens=24, gradient_checkpointing=True), model=model)
    assert model.gradient_checkpointing is True


def test_parts_of_a_loss_are_logged_as_means(tmp_path):
    def objective(model: nn.Module, batch: Batch) -> Loss:
        loss = language_model_objective(model, batch)
        return Loss(total=loss.total, count=loss.count, parts={"twice": 2.0 * loss.count})

    _train(tmp_path, toy_config(tokens=4 * 24, log_every=2), objective=objective)
    lines = MetricsLog(tmp_path / "metrics.jsonl").read()
    assert [line["twice"] for line in lines] == [2.0, 2.0]


def test_two_runs_in_one_folder_are_refused(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from yeoul.files import only_run

    with only_run(tmp_path), ThreadPoolExecutor(1) as other, pytest.raises(UserError, match="another process"):
        other.submit(_train, tmp_path, toy_config()).result()


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_batch_in_parts_is_the_same_step(tmp_path, micro_batch):
    weights = []
    for name, changes in (("whole", {}), ("parts", {"micro_batch": micro_batch})):
        model = toy_model()
        model.drop = nn.Identity()
        seen: list[int] = []

        def objective(model: nn.Module, batch: Batch, seen: list[int] = seen) -> Loss:
            seen.append(len(batch.input_ids))
            return language_model_objective(model, batch)

        _train(tmp_path / name, toy_config(tokens=10 * 24, **changes), model=model, objective=objective)
        weights.append(model.state_dict())
    assert max(seen) == micro_batch and sum(seen) == 10 * 4
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
    lines = [MetricsLog(tmp_path / name / "metrics.jsonl").read() for name in ("whole", "parts")]
    assert [line["tokens"] for line in lines[0]] == [line["tokens"] for line in lines[1]]


def test_a_run_goes_on_with_the_micro_batch_that_it_began_with(tmp_path):
    _train(tmp_path, toy_config(tokens=10 * 24, micro_batch=2))
    with pytest.raises(UserError, match=r"micro-batch \(2 before, 4 now\)"):
        _train(tmp_path, toy_config(tokens=10 * 24))
    state = json.loads(next((tmp_path / "checkpoints").glob("step-*/state/trainer.json")).read_text())
    assert state["config"]["micro_batch"] == 2 and state["config"]["gradient_checkpointing"] is False


def test_a_run_from_before_micro_batches_were_recorded_goes_on_whole(tmp_path):
    _train(tmp_path, toy_config(tokens=10 * 24))
    for path in (tmp_path / "checkpoints").glob("step-*/state/trainer.json"):
        state = json.loads(path.read_text())
        del state["config"]["micro_batch"]
        path.write_text(json.dumps(state))
    _, result = _train(tmp_path, toy_config(tokens=10 * 24))
    assert result.resumed_from == 10
