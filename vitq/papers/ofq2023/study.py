"""One run of the small-scale study of OFQ: training or annealing, noise, and what the claims need of it.

The functions take and return plain values, so that :func:`vitq.workers.sweep` can run them in worker processes.
"""

import statistics
from pathlib import Path

import torch
from torch import Tensor

import vitq
from vitq import data, zoo
from vitq.files import read_json, write_json
from vitq.papers.nagel2022.study import callback_state, read_lines
from vitq.papers.ofq2023.errata import lose_tensors
from vitq.papers.ofq2023.mechanism import scale_jitter
from vitq.papers.ofq2023.noise_injection import inject_noise
from vitq.train import RunConfig, evaluate, run
from vitq.train.checkpoints import save_tensors
from vitq.train.runs import MODEL

REPORTING_THRESHOLD = 0.005  # "oscillating": a flip frequency above this (Nagel 2022)


def studied(job: dict) -> dict:
    """Do one job of the study: ``{"kind": "train" | "noise", ...}``, see :func:`trained` and :func:`noise`."""
    return noise(job) if job["kind"] == "noise" else trained(job)


def trained(job: dict) -> dict:
    """Train or anneal one configuration and analyse it; a finished one is read back from its folder.

    Args:
        job: ``config`` (mapping of :class:`vitq.train.RunConfig`), ``out`` (its folder) and ``lost``: begin with a
            network that has lost what the released conversion loses.

    Returns:
        ``metrics`` (top1, and of the last fifth of the run the mean shares of flips and reversals a step in percent and
        the jitter of the scales), ``history`` (lines of the log), ``reversals`` (share of each step, percent),
        ``scale`` (mean distance of the recorded scales to the first ones, percent), ``settled`` and, where they were
        recorded, ``open_share`` (percent of each step) and ``query_key``.
    """
    out = Path(job["out"])
    if (out / "study.json").exists():
        return read_json(out / "study.json")
    config = RunConfig.from_dict(job["config"] | ({"checkpoint": _lossy_checkpoint(job)} if job.get("lost") else {}))
    result = run(config, out)
    study = {"metrics": {"top1": result["metrics"]["top1"], "train_loss": result["metrics"]["train_loss"]},
             "history": read_lines(out / "metrics.jsonl"), "seconds": result["seconds"],
             "data_version": result["data_version"], "fingerprint": result["fingerprint"],
             "test_images": result["test_images"]}
    frequency = callback_state(out, "OscillationTracking").get("frequency")
    if frequency is not None:
        study["metrics"]["oscillating_percent"] = 100 * (frequency > REPORTING_THRESHOLD).float().mean().item()
    trace = callback_state(out, "ScaleTrace")
    if trace:
        study |= _trace(trace, study["metrics"], out)
    annealing = callback_state(out, "ConfidenceGuidedAnnealing")
    if annealing:
        study["open_share"] = (100 * annealing["open_share"]).tolist()
    watched = callback_state(out, "QueryKeyTrace")
    if watched:
        study["query_key"] = query_key_statistics(watched)
    write_json(out / "study.json", study)
    return study


def _lossy_checkpoint(job: dict) -> str:
    """The float network without the tensors that the released conversion loses, as a file beside the run."""
    file = Path(job["out"]).with_name(Path(job["out"]).name + "-lost.safetensors")
    broken, _ = lose_tensors(zoo.load(job["config"]["model"]), seed=job["config"]["seed"])
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(file, broken.state_dict())
    return str(file)


def _trace(trace: dict[str, Tensor], metrics: dict, out: Path) -> dict:
    last = max(3, len(trace["reversals"]) // 5)
    metrics["reversals_percent"] = 100 * trace["reversals"][-last:].mean().item()
    metrics["flips_percent"] = 100 * trace["flips"][-last:].mean().item()
    jitter = scale_jitter(trace["scales"][-last:])
    metrics |= {"scale_variance": jitter["variance"], "scale_step": jitter["step"]}
    scales = trace["scales"][:, parameter_rows(out)]
    return {"reversals": (100 * trace["reversals"]).tolist(), "settled": settled(scales),
            "scale": (100 * (scales / scales[0] - 1).abs().mean(1)).tolist()}


def parameter_rows(out: Path) -> Tensor:
    """Which columns of a scale trace belong to weights that are parameters, bool."""
    sites = [s for s in vitq.weight_quantizers(vitq.load(out / MODEL)).values() if s.quantizer.bits <= 4]
    return torch.cat([torch.full((s.quantizer.step_size(s.latent).numel(),), s.is_parameter) for s in sites])


def settled(scales: Tensor) -> float:
    """Step after which a scale never changes again, from a trace (steps, rows): the mean over the rows."""
    moved = scales.diff(dim=0) != 0  # (steps - 1, rows)
    steps = torch.arange(1, len(scales))[:, None]
    return float((moved * steps).max(0).values.double().mean())


def query_key_statistics(watched: dict[str, Tensor]) -> dict[str, float | None]:
    """Summary of a :class:`~vitq.papers.ofq2023.mechanism.QueryKeyTrace`, means over blocks.

    Returns:
        ``change``: mean relative change of the probe gradient of W_q and W_k from step to step; ``cosine`` likewise;
        ``flips_q_k`` and ``flips_q_v``: correlation over the steps of the numbers of flipped codes; None without flips.
    """
    flips = watched["flips"].double()
    found = {"change": watched["change"].mean().item(), "cosine": watched["cosine"].mean().item()}
    for name, other in (("flips_q_k", 1), ("flips_q_v", 2)):
        pairs = [(f[:, 0].tolist(), f[:, other].tolist()) for f in flips.unbind(1)]
        usable = [p for p in pairs if len(set(p[0])) > 1 and len(set(p[1])) > 1]
        found[name] = statistics.mean(statistics.correlation(*p) for p in usable) if usable else None
    return found


def noise(job: dict) -> dict:
    """Table 1's design on one converged run: noise of each kind, several draws.

    Args:
        job: ``config`` and ``run`` (the finished run), ``out``, ``x`` (half width), ``kinds``, ``draws``, ``images``.

    Returns:
        ``rows``: kind, seed of the draw, top1, perturbed and flipped (percent); the first has kind ``"none"``.
    """
    out = Path(job["out"])
    if (out / "noise.json").exists():
        return read_json(out / "noise.json")
    config = RunConfig.from_dict(job["config"])
    model = vitq.load(Path(job["run"]) / MODEL)
    test = data.load(config.data.name, config.data.test_split, images=job["images"], seed=config.data.seed)
    rows = [{"kind": "none", "draw": 0, "top1": evaluate(model, test)["top1"], "perturbed": 0.0, "flipped": 0.0}]
    for kind in job["kinds"]:
        for draw in range(job["draws"]):
            noisy, share = inject_noise(model, job["x"], kind, seed=draw)
            rows.append({"kind": kind, "draw": draw, "top1": evaluate(noisy, test)["top1"], **share})
    found = {"rows": rows}
    write_json(out / "noise.json", found)
    return found
