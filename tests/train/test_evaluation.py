import contextlib

import pytest
import torch
from torch import nn

from vitq import data
from vitq.errors import InputError
from vitq.train import evaluate


def table(count=23, classes=7):
    """Logits as images, so that the expected numbers can be counted by hand."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, classes, generator=generator), torch.randint(0, classes, (count,), generator=generator)


class Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        return self.scale * x


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_counts_each_image_once_at_any_batch_size(batch_size):
    logits, labels = table()
    net = Identity().train()
    result = evaluate(net, (logits, labels), batch_size=batch_size)
    assert result["images"] == 23 and net.training
    assert result["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).sum().item() / 23)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result["top5"] == pytest.approx(100 * (ranks < 5).sum().item() / 23)
    assert result["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)


class Shares:
    """One of several processes that evaluate together; the sums of those before it are handed on."""

    def __init__(self, index, count, before):
        self.part, self.before = (index, count), before

    def sum(self, totals):
        self.totals = totals + self.before
        return self.totals


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_together_count_each_file_once(draw_folder, tmp_path, batch_size, count):
    folder = draw_folder(tmp_path, [2, 2, 2], [5, 6, 4])  # 15 images: last batches of 1 to 3
    dataset = data.load("imagenet", "val", path=folder, size=32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 3)).eval()
    whole = evaluate(net, dataset, batch_size=15)
    totals = torch.zeros(6, dtype=torch.float64)
    for index in range(count):
        ranks = Shares(index, count, totals)
        with contextlib.suppress(InputError):  # a process alone may have had no image yet
            result = evaluate(net, dataset, batch_size=batch_size, ranks=ranks)
        totals = ranks.totals
    assert result["images"] == 15 and result["top1"] == whole["top1"] and result["top5"] == whole["top5"]
    assert result["loss"] == pytest.approx(whole["loss"], abs=1e-6)


def test_fewer_than_five_classes_unlabelled_images_and_a_teacher():
    logits, labels = table(classes=3)
    assert evaluate(Identity(), (logits, labels))["top5"] == 100

    class Turned(Identity):
        def forward(self, x):
            return x.roll(1, dims=1)

    labels[:20] = -1
    result = evaluate(Identity(), (logits, labels), teacher=Turned().eval())
    assert result["agreement"] == 0 and result["top1"] == pytest.approx(
        100 * (logits.argmax(1) == labels)[20:].sum().item() / 3)
    alone = evaluate(Identity(), (logits, labels - 100), teacher=Identity().eval())
    assert "top1" not in alone and alone["agreement"] == 100


def test_limit_and_an_empty_set():
    assert evaluate(Identity(), table(), batch_size=5, limit=2)["images"] == 10
    with pytest.raises(InputError, match="images"):
        evaluate(Identity(), (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)))


def test_modes_come_back_module_by_module():
    net = nn.Sequential(Identity(), nn.Dropout())
    net.train()
    net[0].eval()
    evaluate(net, table())
    assert [module.training for module in net.modules()] == [True, False, True]
