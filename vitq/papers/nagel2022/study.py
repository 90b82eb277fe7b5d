"""One run of the small-scale study: training, then what the paper's tables and figures need of it.

The functions take and return plain values, so that :func:`vitq.workers.sweep` can run them in worker processes.
"""

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

import vitq
from vitq import data
from vitq.files import read_json, write_json
from vitq.oscillation import REPORTING_THRESHOLD, LowBitWeights
from vitq.papers.nagel2022.adaround import optimize_rounding
from vitq.papers.nagel2022.bn_reestimation import batch_norm_divergence, reestimate_batch_norm
from vitq.papers.nagel2022.stochastic_rounding import sample_model
from vitq.train import RunConfig, evaluate, run
from vitq.train.checkpoints import latest_checkpoint
from vitq.train.runs import MODEL

STATISTICS_BATCHES = 50  # as many as the released code re-estimates with
ASIDE = 10_000  # offset of the seed of batches that are not those trained on


def callback_state(out: str | Path, name: str) -> dict[str, Tensor]:
    """State of the callback of class ``name`` in the last checkpoint of the run in ``out``; empty if it has none."""
    tensors, _ = latest_checkpoint(Path(out) / "checkpoints")
    parts = {key.removeprefix("callbacks.").split("_", 1)[1]: value for key, value in tensors.items()
             if key.startswith("callbacks.")}
    return {key.removeprefix(name + "."): value for key, value in parts.items() if key.startswith(name + ".")}


def training_batches(config: RunConfig, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """``count`` augmented training batches, another order for each seed; small sets are gone through again."""
    dataset = data.load(config.data.name, "train", size=config.data.image_size, images=config.data.train_images,
                        seed=config.data.seed)
    loader = data.batches(dataset, config.train.batch_size, train=True, seed=seed + ASIDE)

    def endless():
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader

    return list(itertools.islice(endless(), count))


def trained(job: dict) -> dict:
    """Train one configuration and analyse it; a finished one is read back from its folder.

    Args:
        job: ``config`` (mapping of :class:`vitq.train.RunConfig`) and ``out`` (its folder).

    Returns:
        ``metrics`` (top-1 before and after re-estimation, training loss, share of oscillating weights in percent),
        ``history`` (lines of the log), ``divergence`` (Table 1, one row a layer) and ``seconds``.
    """
    config, out = RunConfig.from_dict(job["config"]), Path(job["out"])
    if (out / "study.json").exists():
        return read_json(out / "study.json")
    result = run(config, out)
    metrics = {k: v for k, v in result["metrics"].items() if k in ("top1_pre_bn", "top1", "train_loss", "frozen")}
    frequency = callback_state(out, "OscillationTracking").get("frequency")
    if frequency is not None:
        momentum = next(r["momentum"] for r in config.remedies if r["name"] == "tracking")
        metrics["oscillating_percent"] = 100 * (frequency > REPORTING_THRESHOLD).float().mean().item()
        metrics["oscillating_often_percent"] = 100 * (frequency > 2 * momentum).float().mean().item()
    count = STATISTICS_BATCHES if config.limit_batches is None else config.limit_batches
    batches = training_batches(config, count, config.seed)
    divergence = batch_norm_divergence(vitq.load(out / MODEL), [images for images, _ in batches])
    study = {"metrics": metrics, "history": read_lines(out / "metrics.jsonl"),
             "divergence": divergence.to_dict("records"), "seconds": result["seconds"],
             "peak_memory_mb": result["peak_memory_mb"], "data_version": result["data_version"],
             "fingerprint": result["fingerprint"], "test_images": result["test_images"]}
    write_json(out / "study.json", study)
    return study


def read_lines(path: Path) -> list[dict]:
    """Lines of a JSONL log."""
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]


def rounding(job: dict) -> dict:
    """Table 3 for one converged run: other states for its oscillating weights.

    Args:
        job: ``config`` and ``out`` of the finished baseline, ``samples`` (stochastic roundings), ``steps`` of the
            binary optimisation, ``threshold`` on the frequency, ``loss_batches`` to measure the training loss on.

    Returns:
        ``baseline``, ``samples`` (list) and ``adaround``, each with ``train_loss`` (evaluation mode, after
        re-estimation) and ``top1``; ``weights``, the number of oscillating ones, and their ``share``.
    """
    config, out = RunConfig.from_dict(job["config"]), Path(job["out"])
    done = out / "rounding.json"
    if done.exists():
        return read_json(done)
    model, state = vitq.load(out / MODEL), callback_state(out, "OscillationTracking")
    low = LowBitWeights(model)
    masks = low.split(state["frequency"] > job["threshold"])
    means = low.split(state["mean_codes"])
    statistics = [images for images, _ in training_batches(config, job["loss_batches"], config.seed)]
    training = training_batches(config, job["loss_batches"], config.seed + 1)
    seen = tuple(torch.cat(part) for part in zip(*training, strict=True))
    test = data.load(config.data.name, config.data.test_split, images=config.data.test_images, seed=config.data.seed)

    def judge(net: nn.Module) -> dict[str, float]:
        reestimate_batch_norm(net, statistics)
        return {"train_loss": evaluate(net, seen)["loss"], "top1": evaluate(net, test)["top1"]}

    result = {"baseline": judge(vitq.load(out / MODEL)), "share": _share(masks), "weights": _count(masks),
              "samples": [judge(sample_model(model, masks, means, seed)) for seed in range(job["samples"])]}
    reestimated = reestimate_batch_norm(vitq.load(out / MODEL), statistics)
    batches = training_batches(config, job["steps"], config.seed + 2)
    best = optimize_rounding(reestimated, masks, means, batches, nn.functional.cross_entropy, steps=job["steps"])
    result["adaround"] = judge(best)
    write_json(done, result)
    return result


def _count(masks: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _share(masks: dict[str, Tensor]) -> float:
    return _count(masks) / sum(mask.numel() for mask in masks.values())


@torch.no_grad()
def depthwise_latents(out: str | Path) -> dict[str, Tensor]:
    """Figures 3 and 4: w/s and distance to the code of all low-bit depthwise weights of a finished run, flat."""
    model = vitq.load(Path(out) / MODEL)
    sites = [s for s in LowBitWeights(model).sites.values() if s.kind == "depthwise"]
    ratio = [s.quantizer.position(s.latent).flatten() for s in sites]
    distance = [(s.codes() - s.quantizer.position(s.latent)).flatten() for s in sites]
    return {"ratio": torch.cat(ratio), "distance": torch.cat(distance)}
