"""State dicts as the authors' code would save them: the tables filled with random numbers."""

import argparse

import pytest
import torch

from vitq import importing

torch.set_num_threads(1)


def state_of(source: str, model: str, bits: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], list]:
    """A released state dict of a network, with all its constants right, and the entries of its table."""
    network = importing.target(source, model, bits)
    entries = importing.paper(source).entries(network, bits, importing.names(source))
    generator, state = torch.Generator().manual_seed(seed), {}
    for entry in entries:
        name, value = entry.key.rpartition(".")[2], torch.randn(entry.shape, generator=generator)
        if name in ("s", "alpha"):
            value = 0.05 + 0.2 * value.abs()
        elif name in ("clip_val", "signed", "init_state"):
            value = torch.full(entry.shape, 2.0 if name == "clip_val" else 1.0)
        elif name == "nbits":
            ends = entry.key.split(".")[0] in ("head", "quant", "patch_embed") or "downsample" in entry.key
            value = torch.tensor([8.0 if ends else float(bits)])
        elif name in ("relative_position_index", "attn_mask"):
            module = dict(network.named_modules())[ours(entry.key, source).rpartition(".")[0]]
            value = getattr(module, name).reshape(entry.shape)
        state[entry.key] = value
    return state, entries


def ours(key: str, source: str) -> str:
    """Our path of a Swin block of theirs."""
    first, number, *rest = key.split(".")
    if first == "features":
        return ".".join(["layers", str((int(number) - 1) // 2), "blocks", *rest])
    return key


@pytest.fixture
def make():
    return state_of


@pytest.fixture
def saved(tmp_path):
    """Write a state dict as training scripts do, with options beside it."""
    def save(state, wrapped="state_dict", prefix="module."):
        state = {prefix + key: value for key, value in state.items()}
        file = tmp_path / "released.pth.tar"
        torch.save({"epoch": 3, "args": argparse.Namespace(lr=0.1), wrapped: state} if wrapped else state, file)
        return file
    return save
