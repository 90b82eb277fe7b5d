"""The one training loop: quantization-aware training on one process or many, with remedies as callbacks."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitq.errors import InputError
from vitq.train import checkpoints, continuation, diagnosis, snapshot, stop
from vitq.train.average import WeightAverage
from vitq.train.callbacks import Callback, CallbackList, TrainState
from vitq.train.config import TrainConfig
from vitq.train.evaluation import evaluate as evaluate_on
from vitq.train.fields import config_hash
from vitq.train.lock import RunLock
from vitq.train.logs import MetricsLog, Progress
from vitq.train.losses import CrossEntropy
from vitq.train.optimizers import build_optimizers
from vitq.train.ranks import Ranks
from vitq.train.sources import Source, as_source
from vitq.train.step import TrainingStep

ASIDE_SEED = 7919  # offset of the seed of `TrainState.batches`, whose batches are not those trained on


@dataclass
class TrainResult:
    """What `fit` returns: the lines of the log, the last metrics, wall-clock seconds and optimizer steps."""

    history: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0


def fit(model: nn.Module, train_data: Any, config: TrainConfig, *, callbacks: Iterable[Callback] = (),
        evaluate: Callable[[nn.Module], dict[str, float]] | Any = None, loss: Callable | None = None,
        out: Path | str | None = None, seed: int = 0, identity: Any = None,
        start: continuation.Checkpoint | None = None) -> TrainResult:
    """Train `model` in place.

    With `out`, the run writes `metrics.jsonl` and checkpoints there; called again with the same arguments after a
    crash, it goes on from the newest good checkpoint and ends with the same numbers, bit for bit. It seeds the global
    random generators.

    Args:
        model: float or quantized network giving logits (B, classes).
        train_data: a data set from `vitq.data.load`, tensors (images, labels), or a source (`vitq.train.sources`).
        config: the settings.
        callbacks: remedies, in the order in which their hooks run.
        evaluate: a function of the model giving metrics, or data to evaluate on.
        loss: loss(logits, labels) as mean over the batch, cross-entropy by default; one with an attribute
            `needs_images` is called with the images too.
        out: folder of the run.
        seed: of data order and random generators.
        identity: anything JSON that tells this run from others, beyond `config` and `seed`.
        start: last checkpoint of another run (`continuation.read`), whose optimizer moments this one begins with.

    Returns:
        History, final metrics (`train_loss` is the mean over the last epoch), seconds, steps.

    Raises:
        InputError: wrong data, a folder that holds another run or is in use, unreadable checkpoints, or a loss that
            is not finite.
        MissingError: no such device, a disk that is full, or TensorBoard asked for and not installed.
        Stopped: a signal came within `stop.listening`; with `out`, a checkpoint of the step is written.
    """
    if not isinstance(config, TrainConfig):
        raise InputError(f"config={config!r}: give a vitq.train.TrainConfig")
    ranks = Ranks(config.device)
    with RunLock(out) if out is not None and ranks.main else contextlib.nullcontext() as lock:
        run = _Run(model, train_data, config, CallbackList(callbacks), evaluate, loss, out, seed, ranks, lock)
        run.start = start
        return run.train(config_hash({"config": config.to_dict(), "seed": seed, "identity": identity}))


def training_source(data: Any, config: TrainConfig, seed: int, device: torch.device,
                    part: tuple[int, int] = (0, 1)) -> Source:
    """Shuffled, augmented batches of `config.batch_size` images, or one rank's part of them."""
    options = {} if config.augment is None else {"augment": config.augment}
    return as_source(data, config.batch_size, train=True, seed=seed, device=device, part=part, **options)


class _Run:
    """The state of one call of `fit`."""

    def __init__(self, model, train_data, config, callbacks, evaluate, loss, out, seed, ranks, lock):
        self.config, self.callbacks, self.ranks, self.lock = config, callbacks, ranks, lock
        self.average = None if config.ema is None else WeightAverage(config.ema)
        if self.average is not None:
            self.callbacks = CallbackList([*callbacks.callbacks, self.average])
        self.out = None if out is None else Path(out)
        self.parts = config.accumulation * ranks.count
        if config.batch_size % self.parts:
            raise InputError(f"train.batch_size={config.batch_size}: give a multiple of accumulation times ranks, "
                             f"{self.parts}")
        self.source = training_source(train_data, config, seed, ranks.device, ranks.part)
        if not len(self.source):
            raise InputError(f"train.batch_size={config.batch_size}: more than the training images; give less")
        torch.manual_seed(seed + ranks.index)
        self.model = model.to(ranks.device).train()
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        aside = training_source(train_data, config, seed + ASIDE_SEED, ranks.device)
        total = config.total_steps(len(self.source))
        self.state = TrainState(self.model, ranks.device, total, batches=aside.iterate)
        self.evaluate = evaluate if callable(evaluate) or evaluate is None else (
            lambda net: evaluate_on(net, evaluate, ranks=ranks))
        self.loss = loss if loss is not None else CrossEntropy(config.label_smoothing)
        if isinstance(self.loss, nn.Module):
            self.loss.to(ranks.device)
        self.losses = torch.zeros(min(total, max(len(self.source), config.log_every)), device=ranks.device)
        self.seconds, self.saved, self.final, self.start = 0.0, None, {}, None
        self.evaluation_due = False  # of the step of the checkpoint that the run goes on from

    def train(self, identity: str) -> TrainResult:
        self.identity, state = identity, self.state
        state.optimizers = build_optimizers(self.model, self.config)
        if self.start is not None:
            continuation.load_moments(state.optimizers, self.start)
        self.callbacks.on_start(state)
        self._resume()
        writes = self.out is not None and self.ranks.main
        self.log = MetricsLog(self.out / "metrics.jsonl" if writes else None, state.step, self.evaluation_due,
                              self.config.tensorboard)
        self.began = time.monotonic() - self.seconds
        if not self.final:
            progress = Progress(state.total_steps, state.step, self.ranks.main)
            try:
                with stop.patience():
                    self._loop(progress)
            finally:
                progress.close()
            self._finish()
        return TrainResult(self.log.history, dict(self.final), self.seconds, state.step)

    def _loop(self, progress: Progress) -> None:
        config, state, per_epoch = self.config, self.state, len(self.source)
        step = TrainingStep(self.model, self.loss, self.callbacks, state, config, self.ranks)
        vote = stop.Vote(self.ranks)
        checkpoint_every, evaluate_every = (
            per_epoch if every is None else every for every in (config.checkpoint_every, config.evaluate_every))
        if self.evaluation_due:
            self._evaluate()
        while state.step < state.total_steps:
            state.epoch, start = divmod(state.step, per_epoch)
            for images, labels in self.source.iterate(state.epoch, start):
                rate = config.rate(state.step, state.total_steps, per_epoch)
                self.losses[state.step % len(self.losses)].copy_(step(images, labels, rate))
                state.step += 1
                self.callbacks.after_step(state)
                progress.update(state.step)
                last = state.step == state.total_steps
                if last or state.step % config.log_every == 0:
                    progress.describe(self._log(images, rate))
                self.evaluation_due = bool(evaluate_every) and state.step % evaluate_every == 0 and not last
                asked = vote.stop(last)
                if self.out is not None and (asked or (checkpoint_every and state.step % checkpoint_every == 0)):
                    self._check(images)
                    self._save()
                if asked:
                    raise stop.stopped(self.saved)
                if last:
                    break
                if self.evaluation_due:
                    self._evaluate()

    def _log(self, images: torch.Tensor, rate: float) -> float:
        loss = self._mean_loss(self.config.log_every)
        self._check(images, loss)
        state = self.state
        self.log.write(event="train", step=state.step, epoch=state.epoch, loss=loss, learning_rate=rate,
                       **self.callbacks.metrics())
        if self.lock is not None:
            self.lock.refresh()
        return loss

    def _evaluate(self) -> dict[str, float]:
        self.ranks.average_batch_norm(self.model)
        self.callbacks.before_evaluation(self.state)
        with stop.patience(False):
            metrics = {} if self.evaluate is None else dict(self.evaluate(self.model))
            if self.average is not None and self.evaluate is not None:
                self.ranks.average_batch_norm(self.average.model)
                averaged = self.evaluate(self.average.model)
                metrics |= {f"{name}_ema": value for name, value in averaged.items() if name != "images"}
        self.model.train()
        metrics |= {name: float(value) for name, value in self.callbacks.metrics().items()}
        self.log.write(event="evaluation", step=self.state.step, epoch=self.state.epoch, **metrics)
        return metrics

    def _finish(self) -> None:
        self._check()
        train_loss = self._mean_loss(len(self.source))
        self.final = {"train_loss": train_loss, **self._evaluate()}
        self.seconds = time.monotonic() - self.began
        if self.out is not None:
            self._save()

    def _mean_loss(self, steps: int) -> float:
        """Mean over the last `steps` steps, at most as many as were made or are kept, and over ranks."""
        count = min(steps, self.state.step, len(self.losses))
        rows = (torch.arange(self.state.step - count, self.state.step) % len(self.losses)).to(self.losses.device)
        return (self.ranks.sum(self.losses[rows].double().mean()) / self.ranks.count).item()

    def _check(self, images: torch.Tensor | None = None, loss: float | None = None) -> None:
        loss = self._mean_loss(1) if loss is None else loss
        if not math.isfinite(loss) or not diagnosis.finite(self.model):
            raise diagnosis.diverged(self.model, images, self.state.step, self.saved)

    def _save(self) -> None:
        self.ranks.average_batch_norm(self.model)
        if self.average is not None:
            self.ranks.average_batch_norm(self.average.model)
        rngs, losses = self.ranks.gather(snapshot.take_rng()), self.ranks.gather(self.losses.cpu())
        if self.out is not None and self.ranks.main:
            tensors, meta = snapshot.take(self.model, self.state.optimizers, self.callbacks, rngs)
            meta |= {"identity": self.identity, "seconds": time.monotonic() - self.began, "final": self.final,
                     "epoch": self.state.epoch, "batch": self.state.step % len(self.source),
                     "evaluation_due": self.evaluation_due}
            self.saved = str(checkpoints.save_checkpoint(
                self.out / "checkpoints", self.state.step,
                tensors | {f"losses.{rank}": of_rank for rank, of_rank in enumerate(losses)}, meta))
        self.ranks.wait()

    def _resume(self) -> None:
        found = None if self.out is None else checkpoints.latest_checkpoint(self.out / "checkpoints")
        if found is None:
            return
        tensors, meta = found
        if meta["identity"] != self.identity:
            raise InputError(f"out={str(self.out)!r}: it holds another run (other settings, data or seed); "
                             "give another folder or delete this one")
        snapshot.restore(tensors, meta, self.model, self.state.optimizers, self.callbacks, self.ranks.index)
        losses = [tensors[f"losses.{rank}"] for rank in range(len(meta["rng"]))]
        same = len(losses) == self.ranks.count  # else each takes the mean over the ranks of then
        self.losses.copy_(losses[self.ranks.index] if same else torch.stack(losses).mean(0))
        self.state.step, self.seconds, self.final = meta["step"], meta["seconds"], meta["final"]
        self.evaluation_due = meta.get("evaluation_due", False)
        self.state.epoch, self.saved = meta["epoch"], str(self.out / "checkpoints" / f"step-{meta['step']:010d}")
