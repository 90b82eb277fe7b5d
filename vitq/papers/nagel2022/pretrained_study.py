"""One run of the study on a pretrained network: distillation, then batch-norm statistics and oscillation by layer.

The functions take and return plain values, so that :func:`vitq.workers.sweep` can run them in worker processes.
"""

import copy
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

import vitq
from vitq import data, provenance, zoo
from vitq.errors import InputError
from vitq.files import read_json, write_json
from vitq.oscillation import LowBitWeights, distance_to_code
from vitq.papers.nagel2022.bn_reestimation import batch_norms, gaussian_kl
from vitq.papers.nagel2022.study import callback_state, read_lines, training_batches
from vitq.saving import load_state
from vitq.train import RunConfig, run
from vitq.train.evaluation import evaluation_mode
from vitq.train.losses import kl_divergence
from vitq.train.runs import MODEL, MODEL_REESTIMATED

FRESH = 1_000  # offset of the seed of crops that show regions trained on, but are none of the training crops


_SOURCES = ("vitq.train", "vitq.quantizers", "vitq.papers", "vitq.data", "vitq.convert", "vitq.oscillation",
            "vitq.numerics", "vitq.zoo")  # fmt: skip


def code_version() -> str:
    """Twelve digits that change with the code of a run: another code, another folder. Figures do not count."""
    names = [name for name in provenance.imported_modules() if name.startswith(_SOURCES)]
    return provenance.digest({name: provenance.module_hash(name) for name in names})[:12]


def normalized(images: data.ImageSet, model: nn.Module) -> data.ImageSet:
    """The images with the normalisation that a network of the zoo expects."""
    return images.normalized_for(*(zoo.preprocessing(model)[key] for key in ("mean", "std")))


def held_out(config: RunConfig, crops: int) -> dict[str, data.ImageSet]:
    """Two sets of crops that no run trains on: of unseen regions of the photographs, and new ones of the seen regions.

    Args:
        config: Of the run; its ``data`` says which split holds the unseen regions.
        crops: Number in each set.
    """
    given = config.data
    return {
        "unseen": data.load(given.name, given.test_split, size=given.image_size, images=crops, seed=given.seed),
        "fresh": data.load(given.name, "train", size=given.image_size, images=crops, seed=given.seed + FRESH),
    }


def logits_of(model: nn.Module, images: data.ImageSet, batch_size: int = 32) -> Tensor:
    """Logits (N, classes) in evaluation mode."""
    with evaluation_mode(model):
        return torch.cat([model(batch).float() for batch, _ in data.batches(images, batch_size)])


def faithfulness(logits: Tensor, reference: Tensor) -> dict[str, float]:
    """How far a network follows another: share of equal top-1 predictions and mean KL of the outputs.

    Args:
        logits: Of the network, (N, classes).
        reference: Of the full-precision network, same shape.

    Returns:
        ``agreement`` in percent, ``kl`` in nats.
    """
    if logits.shape != reference.shape:
        raise InputError(f"logits has shape {tuple(logits.shape)}, reference {tuple(reference.shape)}")
    same = (logits.argmax(-1) == reference.argmax(-1)).double().mean().item()
    return {"agreement": 100 * same, "kl": kl_divergence(logits.double(), reference.double()).item()}


@torch.no_grad()
def held_still(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Control for Table 1: running statistics as training leaves them, but of weights that do not move.

    Args:
        model: With re-estimated statistics, from which the averages start; it is changed and returned.
        batches: Training batches, each (B, 3, H, W); at least a few times 1/momentum of the batch norms.
    """
    norms = batch_norms(model).values()
    model.eval()
    for norm in norms:
        norm.train()
    for images in batches:
        model(images)
    return model.eval()


@torch.no_grad()
def divergence_by_layer(model: nn.Module, population: nn.Module) -> list[dict]:
    """Table 1 from two networks that differ in their running statistics alone.

    A channel whose weights are all zero is constant: its population variance is 0, and its running variance, which
    shrinks by a tenth a step, tells how long ago that began and nothing else. Such channels are counted and left out.

    Args:
        model: Its statistics are the estimate.
        population: The same network with re-estimated statistics.

    Returns:
        One row a batch norm: ``layer`` (the convolution before it), ``kind``, ``max_kl`` and ``mean_kl`` in nats over
        the channels that vary (0 if there is none), ``constant``, the number of the others.
    """
    sites, truth, rows, layer = vitq.weight_quantizers(model), batch_norms(population), [], ""
    for name, module in model.named_modules():
        layer = name if name in sites else layer
        if name in truth:
            varies = truth[name].running_var > 0
            kl = gaussian_kl(*(values[varies] for values in (truth[name].running_mean, truth[name].running_var,
                                                             module.running_mean, module.running_var)))
            kl = kl if len(kl) else torch.zeros(1)
            rows.append({"layer": layer, "kind": sites[layer].kind, "max_kl": kl.max().item(),
                         "mean_kl": kl.mean().item(), "constant": int((~varies).sum())})
    return rows


def frequency_by_layer(model: nn.Module, frequency: Tensor, bits: int, thresholds: list[float]) -> list[dict]:
    """Share of oscillating weights of each low-bit layer, without the first and last layer.

    Args:
        model: Quantized.
        frequency: Flat frequencies of all weights of at most ``bits`` bits, in model order.
        bits: Largest number of bits that was tracked.
        thresholds: Each gives a share of the weights whose frequency is above it, in percent.

    Returns:
        One row a layer: ``layer``, ``kind``, ``weights``, and ``above_<threshold>``.
    """
    low = LowBitWeights(model, bits)
    names = list(vitq.weight_quantizers(model))
    ends, rows = (names[0], names[-1]), []
    for name, values in low.split(frequency).items():
        if name not in ends:
            shares = {f"above_{t:g}": 100 * (values > t).double().mean().item() for t in thresholds}
            rows.append({"layer": name, "kind": low.sites[name].kind, "weights": values.numel(), **shares})
    return rows


def examined(job: dict) -> dict:
    """Train one configuration and examine it; a finished one is read back from its folder.

    Args:
        job: ``config`` (mapping of :class:`vitq.train.RunConfig`), ``out`` (its folder), ``crops`` (held-out crops of
            each kind), ``thresholds`` on the frequency, ``control`` (also measure weights that are held still).

    Returns:
        ``faithfulness``: rows of ``set`` (unseen, fresh), ``statistics`` (running, re-estimated, held still),
        ``agreement``, ``kl``. ``divergence``: rows of Table 1, with ``statistics`` too. ``oscillation``: rows a layer.
        ``history``: lines of the log. ``cpu_seconds`` of all this. From :func:`vitq.train.run`: ``metrics``,
        ``seconds``, ``peak_memory_mb``, ``data_version``, ``fingerprint``.
    """
    config, out = RunConfig.from_dict(job["config"]), Path(job["out"])
    done = out / "examined.json"
    if done.exists():
        return read_json(done)
    began = time.process_time()
    result = run(config, out)
    networks = {"running": vitq.load(out / MODEL).to(memory_format=torch.channels_last)}  # a third less time
    networks["re-estimated"] = _with_weights(networks["running"], out / MODEL_REESTIMATED)
    if job["control"]:
        batches = training_batches(config, config.bn_reestimation.batches, config.seed)
        networks["held still"] = held_still(copy.deepcopy(networks["re-estimated"]), [images for images, _ in batches])
    divergence = [row | {"statistics": name} for name, network in networks.items() if name != "re-estimated"
                  for row in divergence_by_layer(network, networks["re-estimated"])]
    tracked = next(entry for entry in config.remedies if entry["name"] == "tracking")
    frequency = callback_state(out, "OscillationTracking")["frequency"]
    study = {
        "faithfulness": _faithfulness(config, networks, job["crops"]), "divergence": divergence,
        "oscillation": frequency_by_layer(networks["running"], frequency, tracked["max_bits"], job["thresholds"]),
        "history": read_lines(out / "metrics.jsonl"), "cpu_seconds": time.process_time() - began,
        **{key: result[key] for key in ("metrics", "seconds", "peak_memory_mb", "data_version", "fingerprint")},
    }
    write_json(done, study)
    return study


def _with_weights(model: nn.Module, file: Path) -> nn.Module:
    """A copy with other weights; ``vitq.load`` would quantize a fresh network first, which takes longer."""
    twin = copy.deepcopy(model)
    load_state(twin, zoo.read_weights(file), file)
    return twin


def _faithfulness(config: RunConfig, networks: dict[str, nn.Module], crops: int) -> list[dict]:
    reference, rows = zoo.load(config.model, checkpoint=config.checkpoint), []
    for kind, images in held_out(config, crops).items():
        images = normalized(images, reference)
        target = logits_of(reference, images)
        rows += [{"set": kind, "statistics": name, **faithfulness(logits_of(network, images), target)}
                 for name, network in networks.items()]
    return rows


@torch.no_grad()
def latent_distances(model: nn.Module, layer: str, file: Path | str | None = None) -> Tensor:
    """Distances code - w/s of one layer's latent weights, flat, in steps of the grid.

    Args:
        model: Quantized.
        layer: Module path.
        file: Weights to look at instead of the model's own, of a run with the same quantizers.
    """
    site = vitq.weight_quantizers(_with_weights(model, Path(file)) if file else model)[layer]
    return distance_to_code(site.latent, site.quantizer).flatten()


def paper_depth(model: nn.Module) -> dict[str, str]:
    """Layers of an EfficientNet that lie where MobileNetV2's conv3 and conv10 do, by the paper's names.

    MobileNetV2's block 3 is the second block of its second stage, block 10 the last of the four of its fourth stage
    (Sandler et al. 2018, Table 2), each an expansion, a depthwise and a projecting convolution. In EfficientNet-lite0
    the second block of the second stage of inverted residuals is ``blocks.1.1``, and the last of the stage that keeps
    the resolution of 1/16 and the narrower width is ``blocks.3.2``.
    """
    sizes = Counter(name.rsplit(".", 1)[0] for name in vitq.weight_quantizers(model))
    found = {}
    for number, block in ((3, "blocks.1.1"), (10, "blocks.3.2")):
        if sizes[block] != 3:
            raise InputError(f"model: {block} has {sizes[block]} quantized layers, an inverted residual has 3")
        found |= {f"conv{number}.{i}": f"{block}.{part}" for i, part in enumerate(("conv_pw", "conv_dw", "conv_pwl"))}
    return found
