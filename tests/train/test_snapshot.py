import torch
from torch import nn

from vitq.train import snapshot
from vitq.train.callbacks import CallbackList


def test_momentum_of_channels_last_weights_comes_back_in_their_layout():
    """Fused optimizers walk through memory: momentum in another layout than its weight would meet wrong elements."""
    def make():
        torch.manual_seed(0)
        net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)

    def step(net, optimizer, seed):
        net(torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    net, optimizer = make()
    step(net, optimizer, 1)
    taken = snapshot.take(net, [optimizer], CallbackList(), [snapshot.take_rng()])
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in taken[0].items()}
    step(net, optimizer, 2)
    again, its_optimizer = make()
    snapshot.restore(tensors, taken[1], again, [its_optimizer], CallbackList())
    step(again, its_optimizer, 2)
    assert torch.equal(net.weight, again.weight)
