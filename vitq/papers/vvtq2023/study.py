"""Runs of the small-scale study of VVTQ: one configuration trained or timed, one network examined without training.

The functions take and return plain values, so that :func:`vitq.workers.sweep` can run them in worker processes.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

import vitq
from vitq import data, zoo
from vitq.convert import weight_quantizers
from vitq.data.multi_crop import Batch, MultiCropSource
from vitq.data.soft_labels import SoftLabelStore
from vitq.errors import InputError
from vitq.files import read_json, write_json
from vitq.oscillation import distance_to_code
from vitq.papers.vvtq2023.activations import activation_variation
from vitq.papers.vvtq2023.mckd import SoftCrossEntropy
from vitq.papers.vvtq2023.mdq import mdq_spec
from vitq.papers.vvtq2023.one_head import one_head_sensitivity
from vitq.papers.vvtq2023.sensitivity import leave_one_out, leave_one_out_sensitivity
from vitq.train import TrainConfig, evaluate, fit
from vitq.train.fields import check_types, from_mapping
from vitq.train.loop import TrainResult
from vitq.train.losses import CrossEntropy, Distillation
from vitq.train.remedies import build_remedy

if TYPE_CHECKING:
    import pandas

CALIBRATION_IMAGES = 128  # that set the activation ranges of a training run
EXAMINATION_IMAGES = 32  # and of a network that is examined only
LOG_EVERY = 5


@dataclass(frozen=True)
class Setup:
    """One training run.

    Args:
        model: Network of the zoo; every run begins with its weights.
        bits: Of weights and activations; both ends have 8.
        mode: Scales, one of ``vitq.papers.vvtq2023.mdq.MODES``.
        group: Left in floating point, see :func:`~vitq.papers.vvtq2023.sensitivity.leave_one_out`.
        labels: "stored" soft labels, the "online" teacher on the same crops, or the "hard" labels of the images.
        crops: Crops M of each image in a batch.
        store: Folder of the soft labels, whose crops all three kinds of labels use.
        teacher: Network that is asked online.
        remedies: Configuration entries, see :func:`vitq.train.remedies.build_remedy`.
        images: Training images of glyphs.
        steps: Optimizer steps.
        batch_size: Crops in a step.
        learning_rate: Peak of the cosine, which ends at 0.
        weight_decay: Of tensors with two dimensions or more.
        act_init: Start of the activation scales, see :class:`vitq.quantizers.MDQActivation`.
        test_images: Images to test on.
        test_split: "test" or "val".
        seed: Of order and choice of crops.
    """

    model: str = "vit_micro"
    bits: int = 3
    mode: str = "layer"
    group: str | None = None
    labels: Literal["stored", "online", "hard"] = "stored"
    crops: int = 4
    store: str = ""
    teacher: str = "vit_micro"
    remedies: list = field(default_factory=list)
    images: int = 800
    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    act_init: Literal["released", "corrected"] = "released"
    test_images: int = 2000
    test_split: Literal["test", "val"] = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, "setup")


class HardLabels:
    """The crops of another source with the classes of their images, int64 (B * M,), instead of soft labels."""

    def __init__(self, source: MultiCropSource):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        source = self.source
        for (crops, _), (rows, _) in zip(source.iterate(epoch, start), source.chosen(epoch, start), strict=True):
            classes = source.dataset.labels[torch.from_numpy(rows)]  # (B,)
            yield crops, classes.repeat(source.crops).to(crops.device)  # (M * B,), crop-major as the crops


def studied(job: dict) -> dict:
    """Do one job: ``{"kind": "train" | "time" | "sensitivity" | "one_head" | "activations", "out": folder or None,
    ...}``.

    What was done before is read back from the folder.
    """
    kinds = {"train": trained, "time": timed, "sensitivity": sensitivity, "one_head": one_head,
             "activations": activations}
    if job.get("kind") not in kinds:
        raise InputError(f"kind={job.get('kind')!r}: choose one of {', '.join(kinds)}")
    done = None if job.get("out") is None else Path(job["out"]) / "study.json"
    if done is not None and done.exists():
        return read_json(done)
    found = kinds[job["kind"]](job)
    if done is not None:
        done.parent.mkdir(parents=True, exist_ok=True)
        write_json(done, found)
    return found


def trained(job: dict) -> dict:
    """Train one configuration and analyse it.

    Args:
        job: ``setup``, fields of :class:`Setup`.

    Returns:
        ``metrics``: top1 (percent), train_loss and, where they were asked for, oscillating_percent and gradient_share
        (median over the log lines in which the regularization acted); ``history``, ``distances`` (see
        :func:`distance_histogram`), ``steps``, ``seconds`` of training, ``test_images``, ``data_version``,
        ``fingerprint`` of the float network.
    """
    setup = from_mapping(Setup, job["setup"], "setup")
    training = data.load("glyphs", "train", images=setup.images)
    test = data.load("glyphs", setup.test_split, images=setup.test_images)
    model = network(setup, training)
    result = _train(model, setup, training)
    top1 = evaluate(model, test)["top1"]
    metrics = {"top1": top1, "train_loss": result.final["train_loss"]}
    if "oscillating" in result.final:
        metrics["oscillating_percent"] = 100 * result.final["oscillating"]
    shares = [line["bin_gradient_share"] for line in result.history if line.get("bin_gradient_share")]
    if shares:
        metrics["gradient_share"] = statistics.median(shares)
    return {"metrics": metrics, "history": result.history, "distances": distance_histogram(model),
            "steps": result.steps, "seconds": result.seconds, "test_images": len(test),
            "data_version": training.version, "fingerprint": zoo.fingerprint(zoo.load(setup.model))}


def network(setup: Setup, training: data.ImageSet) -> nn.Module:
    """The quantized network of a run as training begins, its activation scales set by the first training images."""
    full = zoo.load(setup.model)
    spec = mdq_spec(full, setup.bits, setup.bits, setup.mode)
    spec = replace(spec, act_options=spec.act_options | {"init": setup.act_init})
    model = leave_one_out(full, spec, setup.group)
    images = training.images[:CALIBRATION_IMAGES]
    return vitq.calibrate(model, [training.normalize(images)])


def _train(model: nn.Module, setup: Setup, training: data.ImageSet) -> TrainResult:
    source = MultiCropSource(training, SoftLabelStore(setup.store), setup.batch_size, setup.crops, seed=setup.seed)
    config = TrainConfig(
        steps=setup.steps, batch_size=setup.batch_size, learning_rate=setup.learning_rate, optimizer="adamw",
        weight_decay=setup.weight_decay, decay="weights", scale_learning_rate="with_weights", log_every=LOG_EVERY,
        checkpoint_every=0, evaluate_every=0, channels_last=False, device="cpu",
    )  # fmt: skip
    loss = {"stored": SoftCrossEntropy, "hard": CrossEntropy}.get(setup.labels)
    loss = Distillation(zoo.load(setup.teacher)) if loss is None else loss()
    return fit(model, source if setup.labels == "stored" else HardLabels(source), config, loss=loss, seed=setup.seed,
               callbacks=[build_remedy(entry) for entry in setup.remedies])


@torch.no_grad()
def distance_histogram(model: nn.Module, bins: int = 20, max_bits: int = 4) -> list[float]:
    """Low-bit weights by their distance to the centre of their bin, in equal parts of [-0.5, 0.5] steps.

    Args:
        model: Quantized.
        bins: Number of parts.
        max_bits: Weights with more bits are left out.

    Returns:
        Shares of the weights that are not clipped, from -0.5 to 0.5; they sum to 1.
    """
    sites = [site for site in weight_quantizers(model).values() if site.quantizer.bits <= max_bits]
    counts = sum(torch.histc(distance_to_code(s.latent, s.quantizer).float(), bins, -0.5, 0.5) for s in sites)
    return (counts / counts.sum()).tolist()


def timed(job: dict) -> dict:
    """Seconds of a training step of one configuration.

    Args:
        job: ``setup``, whose ``steps`` are timed after as many as ``warmup`` that are not.
    """
    setup = from_mapping(Setup, job["setup"], "setup")
    training = data.load("glyphs", "train", images=setup.images)
    model = network(setup, training)
    _train(model, replace(setup, steps=job["warmup"]), training)
    result = _train(model, setup, training)
    return {"seconds": result.seconds / result.steps}


def _examined(job: dict) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A float network of the zoo with normalised test images and images of another split to set ranges."""
    size = job.get("image_size")
    takes_size = size is not None and job["model"] == "dinov2_vits14"
    model = zoo.load(job["model"], image_size=size if takes_size else None)
    sets = [data.load(job["data"], split, images=job["images"], size=size).for_model(model)
            for split in ("test", "train")]
    return model, *(images.normalize(images.images) for images in sets)


def sensitivity(job: dict) -> dict:
    """Leave-one-out of one network without training.

    Args:
        job: ``model``, ``data`` and ``images`` (their number), optionally ``image_size``; ``spec`` (fields of
            ``vitq.QuantSpec``) and ``groups``, or None for all.

    Returns:
        ``rows``: the table of :func:`~vitq.papers.vvtq2023.sensitivity.leave_one_out_sensitivity`.
    """
    model, images, calibration = _examined(job)
    table = leave_one_out_sensitivity(model, images, vitq.QuantSpec.from_dict(job["spec"]), job["groups"],
                                      calibration[:EXAMINATION_IMAGES])
    return {"rows": _plain(table), "fingerprint": zoo.fingerprint(model)}


def one_head(job: dict) -> dict:
    """One head at 2 bits in one network at 8, without training.

    Args:
        job: As for :func:`sensitivity`, but ``block`` instead of ``groups``: where the head changes.

    Returns:
        ``rows``: the table of :func:`~vitq.papers.vvtq2023.one_head.one_head_sensitivity`.
    """
    model, images, calibration = _examined(job)
    table = one_head_sensitivity(model, images, vitq.QuantSpec.from_dict(job["spec"]), block=job["block"],
                                 calibration=calibration[:EXAMINATION_IMAGES])
    return {"rows": _plain(table), "fingerprint": zoo.fingerprint(model)}


def activations(job: dict) -> dict:
    """Variation of the activations of one network.

    Args:
        job: ``model``, ``data`` and ``images``, optionally ``image_size``.

    Returns:
        ``rows``: the table of :func:`~vitq.papers.vvtq2023.activations.activation_variation`.
    """
    model, images, _ = _examined(job)
    table = activation_variation(model, list(images.split(16)))
    return {"rows": _plain(table), "fingerprint": zoo.fingerprint(model)}


def _plain(table: "pandas.DataFrame") -> list[dict]:
    """Rows of a table for JSON, NaN as None."""
    rows = table.to_dict("records")
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]
