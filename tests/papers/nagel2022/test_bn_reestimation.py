"""Batch-norm re-estimation and the divergence of Table 1, against tests 12 and 13 of the spec."""

import pytest
import torch
from torch import nn

from vitq.errors import InputError
from vitq.papers.nagel2022 import batch_norm_divergence, gaussian_kl, reestimate_batch_norm


def test_statistics_of_the_spec():
    batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [9.0]])]
    norm = nn.BatchNorm1d(1)
    model = nn.Sequential(nn.Identity(), norm).train()
    for _ in range(2):
        reestimate_batch_norm(model, batches)
        assert norm.running_mean.item() == pytest.approx(4.5)
        assert norm.running_var.item() == pytest.approx(5.0)
    assert model.training and norm.momentum == 0.1


def test_only_batch_norm_leaves_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.9), nn.BatchNorm2d(2)).eval()
    x = torch.randn(64, 1, 4, 4)
    a = reestimate_batch_norm(model, [x])[3].running_var.clone()
    b = reestimate_batch_norm(model, [x])[3].running_var.clone()
    assert torch.equal(a, b) and not model.training


def test_timm_batch_norm_act_is_found():
    import timm

    model = timm.create_model("test_efficientnet", num_classes=5).eval()
    x = torch.randn(8, 3, 64, 64)
    reestimate_batch_norm(model, [x])
    out = model.conv_stem(x)
    torch.testing.assert_close(model.bn1.running_mean, out.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_empty_batches_are_refused_and_a_model_without_batch_norm_is_left_alone():
    with pytest.raises(InputError, match="batches"):
        reestimate_batch_norm(nn.Sequential(nn.BatchNorm1d(2)), [])
    reestimate_batch_norm(nn.Linear(1, 1), [])


def test_kl_of_the_spec():
    zero, one, four = torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([4.0])
    assert gaussian_kl(zero, one, one, four).item() == pytest.approx(0.44315, abs=1e-5)
    assert gaussian_kl(one, four, one, four).item() == 0


def test_divergence_names_the_convolution_and_its_kind():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)).eval()
    x = torch.randn(32, 3, 8, 8)
    table = batch_norm_divergence(reestimate_batch_norm(model, [x]), [x])
    assert table["max_kl"].abs().max() < 1e-6
    model[3].running_mean += 1
    table = batch_norm_divergence(model, [x])
    assert table["layer"].tolist() == ["0", "2"] and table["kind"].tolist() == ["pointwise", "depthwise"]
    assert table["mean_kl"][0] < 1e-6 < table["mean_kl"][1]
