import contextlib
import errno
import os
import random
import resource

import numpy as np
import pytest
import torch

from vitq.errors import InputError, MissingError
from vitq.train import Callback, fit
from vitq.train.checkpoints import latest_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint


def save(folder, step):
    return save_checkpoint(folder, step, {"a": torch.full((3,), float(step))}, {"note": "x"})


def test_a_checkpoint_comes_back_and_the_last_two_stay(tmp_path):
    for step in (1, 2, 30):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000000002", "step-0000000030"]
    tensors, meta = latest_checkpoint(tmp_path)
    assert meta["step"] == 30 and meta["note"] == "x" and tensors["a"].tolist() == [30.0] * 3
    assert not list(tmp_path.glob(".tmp*"))


def test_the_same_step_may_be_saved_again(tmp_path):
    save(tmp_path, 1), save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["truncate", "delete", "foreign"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, file, harm):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:-7])
    elif harm == "delete":
        path.unlink()
    else:
        path.write_bytes(b"[1, 2]")
    with pytest.raises(InputError, match=file):
        load_checkpoint(path.parent)
    assert latest_checkpoint(tmp_path)[1]["step"] == 1
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and file in warning and warning.count("\n") == 1
    (tmp_path / "step-0000000001" / "state.json").unlink()
    with pytest.raises(InputError, match="step-0000000002"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_older_checkpoint_and_says_so_in_one_line(tmp_path, monkeypatch, call):
    save(tmp_path, 1)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(MissingError, match="no space left.*step-0000000001 is still good") as error:
            save(tmp_path, 2)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    assert latest_checkpoint(tmp_path)[1]["step"] == 1
    save(tmp_path, 2)


class Dice(Callback):
    """Draws from all generators in training and keeps a running sum."""

    def __init__(self):
        self.sum = torch.zeros((), dtype=torch.float64)

    def after_step(self, state):
        noise = random.random() + np.random.rand() + np.random.randn() + torch.rand(()).item()
        self.sum += noise
        state.model[0].bias.data += 1e-3 * noise

    def metrics(self):
        return {"sum": self.sum}

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum.copy_(state["sum"])


class Crash(Callback):
    """Stands for a power cut after one step."""

    def __init__(self, step):
        self.step = step

    def after_step(self, state):
        if state.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "decay": "weights"}, {"precision": "bf16", "clip": 0.5},
                                     {"accumulation": 2, "warmup_steps": 8}])
def test_a_run_that_crashes_twice_ends_bit_for_bit_as_one_that_does_not(data, make_network, config, digest_of, tmp_path,
                                                                        changes):
    settings = config(steps=17, checkpoint_every=4, evaluate_every=5, log_every=3, **changes)

    def attempt(folder, crash):
        random.seed(0), np.random.seed(0)
        net = make_network(dropout=0.2)
        result = fit(net, data, settings, callbacks=[Dice(), Crash(crash)], evaluate=data, out=tmp_path / folder)
        return digest_of(net), result.history, result.final

    whole = attempt("whole", None)
    for crash in (6, 11):
        with pytest.raises(KeyboardInterrupt):
            attempt("broken", crash)
    assert attempt("broken", None) == whole
    assert (tmp_path / "broken" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert attempt("broken", 1) == whole, "a finished run trained again"


def test_a_folder_of_another_run_is_refused(data, make_network, config, tmp_path):
    fit(make_network(), data, config(), out=tmp_path)
    for settings, seed in ((config(learning_rate=0.1), 0), (config(), 1)):
        with pytest.raises(InputError, match="another run"):
            fit(make_network(), data, settings, out=tmp_path, seed=seed)
    with pytest.raises(InputError, match="another model"):
        fit(make_network(norm=False), data, config(), out=tmp_path)


def test_a_disk_that_fills_up_in_training_loses_nothing(data, make_network, config, digest_of, tmp_path, monkeypatch):
    settings = config(checkpoint_every=5)
    whole, broken = make_network(), make_network()
    fit(whole, data, settings, out=tmp_path / "whole")

    class Fill(Callback):
        def after_step(self, state):
            if state.step == 8:
                monkeypatch.setattr(os, "fsync", self.full)

        def full(self, *arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(MissingError, match="step-0000000005 is still good"):
        fit(broken, data, settings, callbacks=[Fill()], out=tmp_path / "broken")
    monkeypatch.undo()
    broken = make_network()
    fit(broken, data, settings, out=tmp_path / "broken")
    assert digest_of(broken) == digest_of(whole)


@contextlib.contextmanager
def largest_file(size):
    """In here no file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 3000])  # nothing, part of the small file, part of the large one
def test_files_that_cannot_grow_lose_nothing_older(data, make_network, config, digest_of, tmp_path, size):
    settings = config(checkpoint_every=5, log_every=20)
    whole, broken = make_network(), make_network()
    fit(whole, data, settings, out=tmp_path / "whole")
    limit = contextlib.ExitStack()

    class Fill(Callback):
        def after_step(self, state):
            if state.step == 8:
                limit.enter_context(largest_file(size))

    with limit, pytest.raises(MissingError, match="step-0000000005 is still good"):
        fit(broken, data, settings, callbacks=[Fill()], out=tmp_path / "broken")
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == ["step-0000000005"]
    broken = make_network()
    fit(broken, data, settings, out=tmp_path / "broken")
    assert digest_of(broken) == digest_of(whole)
