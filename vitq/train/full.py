"""Checks before a full run, and its start: data, weights and devices are looked at first, torchrun does the rest."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from vitq import comparison, data
from vitq.errors import InputError, MissingError
from vitq.files import read_json, write_text
from vitq.processes import torchrun
from vitq.train.rows import Row, full_precision
from vitq.train.run_config import RunConfig

IMAGENET = {"classes": 1000, "train": 1_281_167, "val": 50_000}
PARITY_IMAGES, PARITY_POINTS = 2000, 5.0
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, in notebooks, when accelerate is imported


def check_data(config: RunConfig, whole: bool = True) -> dict[str, Any]:
    """Classes, training and test images and version of a run's data.

    Args:
        config: the run.
        whole: refuse an image folder without ImageNet's 1,000 classes.

    Raises:
        MissingError: no folder, naming the parameter `data_path`.
        InputError: an empty class folder, classes that differ between train and val, or not 1,000 of them.
    """
    given = config.data
    if given.name == "imagenet" and not given.path:
        raise MissingError("parameter data_path: give the ImageNet folder that holds train/CLASS/ and val/CLASS/")
    classes = IMAGENET["classes"] if whole and given.name == "imagenet" else None
    try:
        train, test = (data.load(given.name, split, size=given.image_size, images=images, seed=given.seed,
                                 path=given.path, num_classes=classes)
                       for split, images in (("train", given.train_images), (given.test_split, given.test_images)))
    except (InputError, MissingError) as error:
        raise type(error)(f"parameter data_path: {error}") from None
    return {"classes": train.num_classes, "train": len(train), "val": len(test), "version": train.version}


def processes(config: RunConfig, gpus: int = 0, needs_gpu: bool = True) -> int:
    """Processes to start: one a GPU, one alone on a processor.

    Args:
        config: the run; `train.device` may force the processor.
        gpus: how many GPUs to use, 0 for all.
        needs_gpu: refuse a processor that was not asked for.

    Raises:
        MissingError: there are fewer GPUs, or none.
        InputError: the batch cannot be shared by so many.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.train.device == "cpu" or (config.train.device == "auto" and not there and not needs_gpu and not gpus):
        return 1
    if not there:
        raise MissingError("parameter device: there is no GPU; device=cpu trains on the processor all the same")
    if gpus > there:
        raise MissingError(f"parameter gpus={gpus}: there are {there}")
    count = gpus or there
    parts = math.lcm(count * config.train.accumulation, 2 * count if config.mixes else 1)
    if config.train.batch_size % parts:
        raise InputError(f"parameter gpus={count}: the batch of {config.train.batch_size} images is no multiple of "
                         f"{parts}; give another number")
    return count


def check_parity(row: Row, images: int = PARITY_IMAGES) -> dict[str, Any]:
    """Accuracy of the full-precision network on some validation images, before a long run starts on wrong ground.

    A class order or preprocessing that is not the checkpoint's shows here. The network that the paper started from
    is another file than the one used here, so that a few points are to be expected and are recorded.

    Args:
        row: what is to be run.
        images: number of validation images, spread over the classes.

    Returns:
        top1 in percent, images, and the published value with its source, or why they were not compared.

    Raises:
        MissingError: the weights are not there.
        InputError: the accuracy is more than 5 points below the published one, or below the best quantized one where
            the paper prints none for full precision.
    """
    from vitq.train.assembly import load_model, preprocessed
    from vitq.train.evaluation import evaluate
    from vitq.train.ranks import Ranks

    config = row.config
    test = data.load(config.data.name, config.data.test_split, size=config.data.image_size, path=config.data.path)
    model = load_model(config, test)
    if config.data.name == "imagenet" and test.num_classes != IMAGENET["classes"]:
        return {"compared": f"the folder has {test.num_classes} classes, not {IMAGENET['classes']}"}
    test = preprocessed(test.subset(min(images, len(test))), model, config)
    measured = evaluate(model.to(Ranks(config.train.device).device), test)
    paper = full_precision(row) or {"value": _best(row), "source": "best quantized accuracy of the paper's tables"}
    if measured["top1"] < paper["value"] - PARITY_POINTS:
        raise InputError(f"parameter data_path: {config.model} has {measured['top1']:.1f} % on {measured['images']} of "
                         f"its images, and {paper['value']} % are published ({paper['source']}): check the class "
                         "folders and the checkpoint")
    return {"top1": measured["top1"], "images": measured["images"], "published": paper["value"],
            "source": paper["source"]}


def parity_line(found: dict[str, Any]) -> str:
    """What `check_parity` found, as one line."""
    if "top1" not in found:
        return f"not compared: {found['compared']}"
    return (f"{found['top1']:.1f} % on {found['images']} validation images, published {found['published']:g} % "
            f"({found['source']})")


def _best(row: Row) -> float:
    paper = row.main["table"].rpartition("_")[0]
    tables = [comparison.published(file.stem) for file in comparison.published_folder().glob(f"{paper}_*.csv")]
    return max(table[(table["model"] == row.main["model"]) & (table["metric"] == "top1")]["value"].max()
               for table in tables if row.main["model"] in set(table["model"]))


def runs(row: Row, out: Path | str) -> dict[int, RunConfig]:
    """The configuration of each seed of a row that runs in `out`, with the run that it continues."""
    if row.before is None:
        return row.runs()
    return {seed: dataclasses.replace(config, continue_from=str(_seed_folder(folder_before(row, out), seed)))
            for seed, config in row.runs().items()}


def folder_before(row: Row, out: Path | str) -> Path:
    """Where the run lies that a row in `out` continues: beside it, under its own name, so that several can share it."""
    return Path(out).resolve().parent / row.before.name


def finished(row: Row, out: Path | str) -> list[dict[str, Any]]:
    """The results of a row's seeds in its run folder, or none if one is missing or of another configuration."""
    results = []
    for seed, config in runs(row, out).items():
        file = _seed_folder(out, seed) / "result.json"
        result = read_json(file) if file.is_file() else {}
        if result.get("config_hash") != config.hash:
            return []
        results.append(result)
    return results


def train(row: Row, out: Path | str, nproc: int = 1) -> list[dict[str, Any]]:
    """Train every seed of a row under torchrun; what is finished is not done again, what was killed goes on.

    A row that continues another one has that one trained first, if it is not finished.

    Args:
        row: what to run.
        out: folder of the runs, one folder a seed.
        nproc: processes on this machine.

    Returns:
        The results of `vitq.train.run`, one a seed.

    Raises:
        RunFailed: a run failed; the line before says why. The same call goes on where it was.
    """
    if finished(row, out):
        return finished(row, out)
    if row.before is not None:
        train(dataclasses.replace(row.before, seeds=row.seeds), folder_before(row, out), nproc)
    for seed, config in runs(row, out).items():
        if finished(dataclasses.replace(row, seeds=(seed,)), out):
            continue
        folder = _seed_folder(out, seed)
        file = write_text(folder / "config.yml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        print(f"{row.name}, seed {seed}: torchrun --nproc-per-node {nproc} -m vitq.train", flush=True)
        torchrun(["-m", "vitq.train", "--config", str(file), "--out", str(folder)], nproc=nproc)
    return finished(row, out)


def history(out: Path | str, seed: int) -> list[dict[str, Any]]:
    """The lines of one run's metrics.jsonl."""
    import json

    return [json.loads(line) for line in (_seed_folder(out, seed) / "metrics.jsonl").read_text().splitlines()]


def _seed_folder(out: Path | str, seed: int) -> Path:
    return Path(out) / f"seed-{seed}"
