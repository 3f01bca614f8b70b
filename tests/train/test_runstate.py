import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from train.toy import ToyLoader, toy_config, toy_model
from yeoul.errors import UserError
from yeoul.train import runstate
from yeoul.train.loop import train
from yeoul.train.loss import language_model_objective
from yeoul.train.runstate import Checkpoints, random_state, restore_random_state


def _train(folder: Path, model=None, **changes):
    config = toy_config(**({"save_every": 2, "tokens": 20 * 24} | changes))
    model = model or toy_model()
    loader = ToyLoader(config.batch_size, config.context)
    return train(model, loader, language_model_objective, config, folder, save_model=model.save)


@pytest.mark.parametrize("where", ["model", "weights", "pointer", "metrics"])
def test_full_disk_is_one_sentence_and_keeps_the_checkpoint(tmp_path, monkeypatch, where):
    model = toy_model()
    full = OSError(errno.ENOSPC, "No space left on device")
    calls = 0

    def fails_late(original, error):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > 6:
                raise error
            return original(*args, **kwargs)

        return call

    if where == "model":
        monkeypatch.setattr(model, "save", fails_late(model.save, full))
    elif where == "weights":
        rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        monkeypatch.setattr(runstate, "save_file", fails_late(runstate.save_file, rust))
    elif where == "pointer":
        monkeypatch.setattr(runstate, "write_json", fails_late(runstate.write_json, full))
    else:
        monkeypatch.setattr("json.dumps", fails_late(__import__("json").dumps, full))
    with pytest.raises(UserError, match="the disk is full") as error:
        _train(tmp_path, model)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    if where != "metrics":
        assert Checkpoints(tmp_path / "checkpoints", 2).steps()
    assert _train(tmp_path).step == 20


def test_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(UserError, match="the disk is full .*checkpoint of step .* is untouched"):
            _train(disk, keep_last=100)
        steps = Checkpoints(disk / "checkpoints", 100).steps()
        assert steps and not list((disk / "checkpoints").glob(".tmp-*"))
        shutil.rmtree(disk / "checkpoints" / f"step-{steps[0]:08d}")
        assert _train(disk, keep_last=2).resumed_from == steps[-1]
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_leftovers_of_killed_writers_are_cleaned(tmp_path):
    leftover = tmp_path / "checkpoints" / ".tmp-step-00000002-999"
    (leftover / "state").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-latest.json").write_text("{")
    _train(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "latest.json", "step-00000018", "step-00000020"
    ]  # fmt: skip


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3, 4, 5):
        checkpoints.path(step).mkdir(parents=True)
    checkpoints.prune(best_step=2)
    assert checkpoints.steps() == [2, 4, 5]


def test_no_pickle_and_readable_permissions(tmp_path):
    result = _train(tmp_path, tokens=2 * 24)
    files = [p for p in result.checkpoint.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    mask = os.umask(0)
    os.umask(mask)
    assert all(p.stat().st_mode & 0o777 == 0o666 & ~mask for p in files)


def test_random_states_come_back():
    import random

    import numpy as np

    state = random_state()
    drawn = [(torch.rand(1).item(), random.random(), np.random.rand())]
    random.gauss(0, 1)
    np.random.randn()
    restore_random_state(*state)
    assert [(torch.rand(1).item(), random.random(), np.random.rand())] == drawn
