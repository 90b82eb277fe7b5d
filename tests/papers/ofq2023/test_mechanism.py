"""Traces of the mechanism, T14, and the small study's own statistics."""

import pytest
import torch

import vitq
from vitq import zoo
from vitq.errors import InputError
from vitq.papers.ofq2023 import ofq_spec, study
from vitq.papers.ofq2023.mechanism import QueryKeyTrace, ScaleTrace, scale_jitter
from vitq.train import TrainConfig, fit

STEPS = TrainConfig(steps=5, batch_size=8, learning_rate=1e-3, optimizer="adamw", log_every=5, device="cpu",
                    scale_learning_rate="with_weights")


def trained(callback, **options):
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(41, (16,))
    model = vitq.calibrate(vitq.quantize(zoo.load("vit_micro"), ofq_spec(2, **options)), [x])
    fit(model, (x, y), STEPS, callbacks=[callback])
    return model, callback


def test_scale_trace_follows_scales_and_counts_reversals():
    model, trace = trained(ScaleTrace(last=3), query_key="fused", weight="lsq")
    sites = [s for s in vitq.weight_quantizers(model).values() if s.quantizer.bits == 2]
    scales = torch.cat([s.quantizer.step_size(s.latent).flatten() for s in sites]).detach()
    assert torch.equal(trace.scales[-1], scales) and trace.scales.shape == (3, len(scales))
    assert (trace.flips >= trace.reversals).all() and trace.flips.min() > 0
    assert trace.reversals[0] == 0  # the first move of a code has nothing to reverse


def test_jitter_of_known_scales():
    still, zigzag = torch.full((10, 2), 2.0), torch.tensor([1.0, 3.0] * 5)[:, None]
    assert scale_jitter(still) == {"variance": 0, "step": 0, "reversal": 0}
    found = scale_jitter(zigzag)
    assert found["reversal"] == 1
    assert found["variance"] == pytest.approx(10 / 9 / 4)
    assert found["step"] == pytest.approx((5 * 2 / 1 + 4 * 2 / 3) / 9)


def test_a_scale_that_jumps_moves_thresholds_and_statsq_does_not():
    """T14 on the mechanism itself: one weight crosses its threshold; how far do the thresholds of its row move?"""
    from vitq.quantizers import LSQ, StatsQ

    row = torch.linspace(-1, 1, 64)[None].clone()
    lsq, statsq = LSQ(2, channel_axis=0, init="lsq", variant="paper"), StatsQ(2)
    lsq.initialize(row)
    gradients = []
    for side in (-1e-4, 1e-4):
        moved = row.clone()
        moved[0, 40] = (0.5 + side) * lsq.scale.item()  # at the threshold between codes 0 and 1
        lsq.scale.grad = None
        lsq(moved)[0, 40].backward()
        gradients.append(lsq.scale.grad.item())
    assert gradients == pytest.approx([-0.5, 0.5], abs=1e-3)  # flips its sign with the code
    before = statsq.step_size(row)
    moved = row.clone()
    moved[0, 40] += 2e-4
    assert (statsq.step_size(moved) - before).abs().item() <= 2 * 2e-4 / 64


@pytest.mark.parametrize("query_key", ["fused", "reparameterized"])
def test_query_key_trace(query_key):
    _, trace = trained(QueryKeyTrace(last=4, images=8), query_key=query_key)
    assert trace.change.shape == (4, 4, 2) and (trace.change > 0).all()
    assert (trace.cosine.abs() <= 1.0001).all()
    assert (trace.flips.sum() > 0) == (query_key == "fused")
    found = study.query_key_statistics(trace.state_dict())
    assert (found["flips_q_k"] is None) == (query_key != "fused")


def test_correlation_of_flips():
    shared = torch.tensor([1.0, 5.0, 2.0, 8.0])
    flips = torch.stack([shared, 2 * shared + 1, shared.flip(0)], dim=-1)[:, None]  # (steps, 1 block, 3)
    found = study.query_key_statistics({"flips": flips, "change": torch.ones(4, 1, 2), "cosine": torch.ones(4, 1, 2)})
    assert found["flips_q_k"] == pytest.approx(1) and found["flips_q_v"] < 0 and found["change"] == 1


def test_settled_is_the_last_change():
    scales = torch.ones(10, 3)
    scales[4:, 0] = 2
    scales[6:, 1] = 2
    scales[9:, 2] = 2
    assert study.settled(scales) == pytest.approx((4 + 6 + 9) / 3)


def test_bad_arguments():
    with pytest.raises(InputError, match="last"):
        ScaleTrace(last=0)
    with pytest.raises(InputError, match="last"):
        QueryKeyTrace(last=1)
    with pytest.raises(InputError, match="attention"):
        torch.manual_seed(0)
        model = vitq.quantize(zoo.load("mobilenet_micro"), vitq.QuantSpec(3))
        fit(model, (torch.randn(8, 3, 32, 32), torch.randint(41, (8,))), STEPS, callbacks=[QueryKeyTrace()])
