"""timm's Swin as MMDetection runs it: windows padded before they are shifted, one normalized map a stage."""

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from vitq.detection.config import DetectorConfig

PATCH = 4


class PaddedBlock(SwinTransformerBlock):
    """A Swin block that pads its map with zeros to whole windows first and shifts it then.

    timm shifts first; the two differ wherever a side of the map is no multiple of the window. The zeros are put between
    norm and attention, and take part in attention as keys.
    """

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        down, right = (-side % window for side, window in zip((height, width), self.window_size, strict=True))
        x = F.pad(x, (0, 0, 0, right, 0, down))
        padded = x.shape[1:3]
        shift = self.shift_size
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        windows = window_partition(x, self.window_size).flatten(1, 2)  # (B windows, window area, C)
        windows = self.attn(windows, mask=self.get_attn_mask(x))
        x = window_reverse(windows.unflatten(1, self.window_size), self.window_size, *padded)  # (B, H', W', C)
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        return x[:, :height, :width].contiguous()


class SwinBackbone(nn.Module):
    """Images (B, 3, H, W) of any size to four maps (B, C_i, H/4i, W/4i) behind a LayerNorm each.

    The norms are read by the pyramid only; the next stage goes on from the map before its norm. Windows are never
    shrunk, and every second block shifts, however small the map is.

    Args:
        config: Structure.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        swin = SwinTransformer(
            strict_img_size=False, always_partition=True, num_classes=0, embed_dim=config.embed_dim,
            depths=config.depths, num_heads=config.heads, window_size=config.window, mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path)
        self.patch_embed, self.layers = swin.patch_embed, swin.layers
        for stage in self.layers:
            for block in stage.blocks:
                block.__class__ = PaddedBlock
        self.widths = [config.embed_dim * 2**stage for stage in range(4)]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        x = self.patch_embed(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))  # (B, H/4, W/4, C)
        maps = []
        for stage, norm in zip(self.layers, self.norms, strict=True):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())  # (B, C, H', W')
        return maps
