"""A whole run from its configuration: load, quantize, calibrate, train, evaluate, write the result."""

import contextlib
import copy
import itertools
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vitq
from vitq import zoo
from vitq.errors import InputError
from vitq.files import read_json, write_json
from vitq.train import checkpoints, continuation, snapshot
from vitq.train.assembly import (
    load_data,
    load_model,
    load_soft_labels,
    load_teacher,
    preprocessed,
    set_heads,
    task_loss,
    training_data,
)
from vitq.train.average import WeightAverage
from vitq.train.evaluation import evaluate, has_batch_norm, reestimated
from vitq.train.lock import RunLock
from vitq.train.loop import ASIDE_SEED, TrainResult, fit, training_source
from vitq.train.ranks import Ranks
from vitq.train.remedies import build_remedy
from vitq.train.run_config import RunConfig

RESULT, MODEL = "result.json", "model.safetensors"
MODEL_REESTIMATED, MODEL_AVERAGED = "model_bn.safetensors", "model_ema.safetensors"


def run(config: RunConfig, out: Path | str) -> dict[str, Any]:
    """Do the run in the folder `out`; a finished one returns at once, one that was killed goes on where it was.

    Args:
        config: what to do.
        out: gets metrics.jsonl, checkpoints/, model.safetensors (as trained), model_bn.safetensors (batch-norm
            statistics re-estimated), model_ema.safetensors (with `train.ema`, the averaged weights) and result.json.

    Returns:
        The content of result.json: config, config_hash, metrics, steps, seconds, peak_memory_mb, data_version,
        test_images, device, ranks, and the fingerprint of the weights at the start (`vitq.zoo.fingerprint`). Among the
        metrics are top1_pre_bn as trained and top1 after batch-norm re-estimation (the same where there is none), in
        percent, train_loss, those of the remedies, and, if asked for, top1_float and top1_start before training; with
        a teacher also the agreement with it, and without accuracy if its classes are not those of the images.

    Raises:
        InputError: wrong configuration, a folder that holds another run or is in use, or a run that diverged.
        MissingError: data, weights or device are not there, or the disk is full.
    """
    out = Path(out)
    done = _finished(out, config)
    if done is not None:
        return done
    start = None if config.continue_from is None else continuation.read(config.continue_from)
    remedies = [build_remedy(entry, config.variant) for entry in config.remedies]
    spec = None if config.quant is None else vitq.QuantSpec.from_dict(config.quant)
    ranks = Ranks(config.train.device)
    with RunLock(out) if ranks.main else contextlib.nullcontext():
        return _Run(config, spec, remedies, out, ranks, start).run()


class _Run:
    """The parts of one run that its stages share."""

    def __init__(self, config: RunConfig, spec: Any, remedies: list, out: Path, ranks: Ranks, start: Any = None):
        self.config, self.spec, self.remedies, self.out, self.ranks = config, spec, remedies, out, ranks
        self.start = start
        torch.manual_seed(config.seed)  # weights without a checkpoint, a new head
        train_data, test_data = load_data(config)
        self.labels = load_soft_labels(config, train_data)
        self.float = load_model(config, train_data).to(ranks.device)
        self.train_data, self.test_data = (preprocessed(part, self.float, config) for part in (train_data, test_data))
        self.source, self.settings = training_data(config, self.train_data, self.labels, ranks)
        self.labelled = self.float.num_classes == train_data.num_classes
        self.teacher = load_teacher(config, self.float)
        if self.teacher is not None:
            self.teacher.to(ranks.device)

    def run(self) -> dict[str, Any]:
        before = {}
        fingerprint = zoo.fingerprint(self.float)
        if self.config.evaluate_before:
            before["top1_float"] = self._evaluate(self.float).get("top1")
        model = self._begin()
        if self.config.evaluate_before and (self.spec is not None or self.start is not None):
            before["top1_start"] = self._evaluate(model).get("top1")
        set_heads(model, self.config)
        trained = self._train(model)
        metrics = before | self._final(model, trained)
        images = metrics.pop("images")
        self._save(model)
        if self.settings.ema is not None and self.ranks.main:
            self._save(self._averaged(model), MODEL_AVERAGED)
        result = {
            "config": self.config.to_dict(), "config_hash": self.config.hash,
            "metrics": {name: value for name, value in metrics.items() if value is not None},
            "steps": trained.steps, "seconds": round(trained.seconds, 3), "peak_memory_mb": peak_memory_mb(),
            "data_version": self.train_data.version, "test_images": images, "fingerprint": fingerprint,
            "device": str(self.ranks.device), "ranks": self.ranks.count,
        }
        if self.ranks.main:
            write_json(self.out / RESULT, result)
        self.ranks.wait()
        return result

    def _begin(self) -> nn.Module:
        """The network as training begins: quantized, and calibrated or with the state of another run."""
        model = self.float if self.spec is None else vitq.quantize(self.float, self.spec)
        if self.start is not None:
            continuation.load_weights(model, self.start, self.config.continue_from)
        elif self.spec is not None:
            vitq.calibrate(model, [torch.cat(list(self._images(self.config.calibration_batches)))])
        return model

    def _train(self, model: nn.Module) -> TrainResult:
        config = self.config
        source, settings = self.source, self.settings
        if config.limit_batches is not None:
            total = settings.total_steps(len(training_source(source, settings, 0, self.ranks.device)))
            settings = settings.cut(min(total, config.limit_batches))
        identity = [config.to_dict(), self.train_data.version]
        if self.labels is not None:
            identity.append(self.labels.version)
        if self.start is not None:
            identity.append(self.start[1]["sha256"])
        return fit(model, source, settings, callbacks=self.remedies, evaluate=self._evaluate,
                   loss=task_loss(config, self.teacher), out=self.out, seed=config.seed, identity=identity,
                   start=self.start)

    def _final(self, model: nn.Module, trained: TrainResult) -> dict[str, float]:
        metrics = dict(trained.final)
        count = self._limited(self.config.bn_reestimation.batches)
        if count and has_batch_norm(model):
            twin = reestimated(model, self._images(count))
            after = self._evaluate(twin)
            self._save(twin, MODEL_REESTIMATED)
        else:
            after = {name: metrics[name] for name in ("top1", "top5", "loss", "agreement") if name in metrics}
        return metrics | {f"{name}_pre_bn": metrics[name] for name in after if name != "images"} | after

    def _save(self, model: nn.Module, name: str = MODEL) -> None:
        if not self.ranks.main:
            return
        if self.spec is not None:
            vitq.save(model, self.out / name, num_classes=model.num_classes)
        else:
            checkpoints.save_tensors(self.out / name, model.state_dict())

    def _averaged(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the averaged weights, which the last checkpoint holds."""
        tensors, _ = checkpoints.latest_checkpoint(self.out / "checkpoints")
        twin = copy.deepcopy(model)
        twin.load_state_dict(snapshot.below(tensors, f"callbacks.{len(self.remedies)}_{WeightAverage.__name__}."))
        return twin

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        metrics = evaluate(model, self.test_data, batch_size=min(256, 2 * self.config.train.batch_size),
                           limit=self.config.limit_batches, teacher=self.teacher, ranks=self.ranks)
        return {name: value for name, value in metrics.items() if self.labelled or name in ("agreement", "images")}

    def _images(self, count: int) -> Iterator[Tensor]:
        """The images of `count` training batches in an order of their own; small sets are gone through again."""
        source = training_source(self.train_data, self.config.train, self.config.seed + ASIDE_SEED, self.ranks.device)
        epochs = (source.iterate(epoch) for epoch in itertools.count())
        return (images for images, _ in itertools.islice(itertools.chain.from_iterable(epochs), count))

    def _limited(self, count: int) -> int:
        return count if self.config.limit_batches is None else min(count, self.config.limit_batches)


def peak_memory_mb() -> float:
    """Most memory used so far: of the CUDA device if there is one in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _finished(out: Path, config: RunConfig) -> dict[str, Any] | None:
    if not (out / RESULT).exists():
        return None
    result = read_json(out / RESULT)
    if not isinstance(result, dict) or result.get("config_hash") != config.hash:
        raise InputError(f"out={str(out)!r}: it holds the result of another run; give another folder or delete it")
    return result
