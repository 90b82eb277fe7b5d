"""What a detector is made of: the four published models by name, and small ones by fields."""

from dataclasses import asdict, dataclass, fields, replace

from vitq.errors import InputError


@dataclass(frozen=True)
class DetectorConfig:
    """Structure of a Mask R-CNN or Cascade Mask R-CNN on Swin, as MMDetection 2.11 builds it. Boxes are in pixels.

    Args:
        cascade: Three box heads and three mask heads instead of one each.
        classes: Object classes; the background is class number ``classes``, the last.
        embed_dim: Width of Swin's first stage.
        depths: Blocks of the four stages.
        heads: Attention heads of the four stages.
        window: Side of a window, in tokens.
        mlp_ratio: Width of Swin's MLPs over the stage's.
        drop_path: Largest stochastic depth rate of the backbone, in training.
        channels: Width of the feature pyramid and of the convolutional heads.
        hidden: Width of the box heads' linear layers.
        anchor_scale: Anchor side over the stride of its level.
        mask_convs: Convolutions of a mask head.
        proposals: Proposals an image that the box heads see in evaluation.
        score_threshold: Detections below it are dropped.
        detections: Most detections an image.
        samples: Boxes an image that the heads are trained on.
        candidates: Best anchors of a level that go into suppression in training.
    """

    cascade: bool = False
    classes: int = 80
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    channels: int = 256
    hidden: int = 1024
    anchor_scale: int = 8
    mask_convs: int = 4
    proposals: int = 1000
    score_threshold: float = 0.05
    detections: int = 100
    samples: int = 512
    candidates: int = 2000

    def __post_init__(self) -> None:
        for name in ("depths", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != 4:
                raise InputError(f"{name}={getattr(self, name)!r}: give one number for each of the four stages")
        for name in ("classes", "embed_dim", "window", "channels", "hidden", "anchor_scale", "mask_convs", "proposals",
                     "detections", "samples", "candidates"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: give at least 1")

    @property
    def stages(self) -> int:
        """Box heads, one after the other."""
        return 3 if self.cascade else 1

    @classmethod
    def from_dict(cls, values: dict) -> "DetectorConfig":
        """Build from a mapping; an unknown key is refused with the list of valid ones."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"config has unknown {', '.join(unknown)}: choose from {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)


_SMALL = (2, 2, 18, 2)
MODELS = {
    "mask_rcnn_swin_tiny": DetectorConfig(),
    "mask_rcnn_swin_small": DetectorConfig(depths=_SMALL),
    "cascade_mask_rcnn_swin_tiny": DetectorConfig(cascade=True),
    "cascade_mask_rcnn_swin_small": DetectorConfig(cascade=True, depths=_SMALL),
}
_MICRO = DetectorConfig(classes=4, embed_dim=48, depths=(2, 2, 2, 1), heads=(3, 6, 12, 12), window=4, mlp_ratio=2.0,
                        channels=48, hidden=256, anchor_scale=4, mask_convs=2, proposals=100, samples=64,
                        candidates=300)
MICRO = {  # for generated shapes of 128 pixels; trained by vitq.detection.micro
    "mask_rcnn_swin_micro": _MICRO,
    "cascade_mask_rcnn_swin_micro": replace(_MICRO, cascade=True, hidden=192, samples=48),
}


def config_of(name: "str | DetectorConfig") -> DetectorConfig:
    """The configuration of a published or a micro model, or the one that was given."""
    if isinstance(name, DetectorConfig):
        return name
    known = MODELS | MICRO
    if name not in known:
        raise InputError(f"name={name!r}: choose one of {', '.join(known)}, or give a DetectorConfig")
    return known[name]
