"""Full distributions from the largest probabilities (spec test T10)."""

import pytest
import torch

from vitq.data.soft_labels import LabelFormat
from vitq.errors import InputError


@pytest.fixture(params=[0.3, 1.0, 10.0], ids=["flat", "usual", "peaked"])
def probabilities(request):
    generator = torch.Generator().manual_seed(0)
    return (request.param * torch.randn(64, 1000, generator=generator)).softmax(-1)


@pytest.mark.parametrize("top_k", [1, 5, 10])
def test_marginal_smoothing(probabilities, top_k):
    label = LabelFormat("marginal_smoothing", top_k)
    indices, kept = label.compress(probabilities)
    full = label.recover(indices, kept, 1000)
    assert full.shape == (64, 1000) and torch.allclose(full.sum(-1), torch.ones(64), atol=2e-6)
    assert full.gather(1, indices).equal(kept.float())
    others = full.scatter(1, indices, torch.nan)
    rest = [row[row.isfinite()] for row in others]
    assert all(len(row) == 1000 - top_k and bool((row == row[0]).all()) and row[0] >= 0 for row in rest)
    clear = kept[:, 0].float() > torch.stack([row[0] for row in rest])
    assert clear.any() and full.argmax(-1)[clear].equal(probabilities.argmax(-1)[clear])


def test_float16_is_rounded_down_by_less_than_one_step(probabilities):
    indices, kept = LabelFormat("marginal_smoothing", 5).compress(probabilities)
    exact = probabilities.gather(1, indices)
    assert (kept.float() <= exact).all() and (kept.float() >= exact * (1 - 2**-10) - 2**-24).all()


def test_a_certain_teacher_stays_certain():
    label = LabelFormat("marginal_smoothing", 2)
    one_hot = torch.eye(6)
    assert label.recover(*label.compress(one_hot), 6).equal(one_hot)


def test_other_formats(probabilities):
    indices, kept = LabelFormat("marginal_renorm", 5).compress(probabilities)
    full = LabelFormat("marginal_renorm", 5).recover(indices, kept, 1000)
    assert torch.allclose(full.sum(-1), torch.ones(64)) and ((full > 0).sum(-1) <= 5).all()
    assert torch.allclose(full.gather(1, indices), kept.float() / kept.float().sum(-1, keepdim=True))
    indices, kept = LabelFormat("hard", 1).compress(probabilities)
    hard = LabelFormat("hard", 1).recover(indices, kept, 1000)
    assert hard.equal(torch.nn.functional.one_hot(probabilities.argmax(-1), 1000).float())
    smooth = LabelFormat("smoothing", 1).recover(indices, kept, 1000)
    assert torch.allclose(smooth.sum(-1), torch.ones(64), atol=2e-6)
    assert torch.allclose(smooth.min(-1).values, (1 - kept[:, 0].float()) / 999)


@pytest.mark.parametrize("given", [("marginal_renorm_k5", 5), ("hard", 5), ("smoothing", 2), ("marginal_smoothing", 0)])
def test_wrong_formats_are_refused(given):
    with pytest.raises(InputError, match="top_k|format"):
        LabelFormat(*given)


def test_too_few_classes_are_refused():
    with pytest.raises(InputError, match="top_k=5 and 5 classes"):
        LabelFormat().check(5)
