"""Sizes of a CLIP, told by the tensors of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import WrongInput

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its pictures, RGB in 0 to 1
HEAD = 64  # channels per head, in every CLIP up to ViT-L


@dataclass(frozen=True)
class Shape:
    """Sizes of both towers. size: pixels of the square picture the positions were learnt for. patch: pixels."""

    embed: int
    size: int
    patch: int
    width: int
    layers: int
    heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context: int = 77
    vocabulary: int = 49408
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        sizes = asdict(self)
        if min(sizes.values()) <= 0 or self.width % self.heads or self.text_width % self.text_heads:
            raise WrongInput(f"no CLIP has the sizes {sizes}; they are above 0, and heads divide their width.")
        if self.size < self.patch:
            raise WrongInput(f"a CLIP for pictures of {self.size} pixels has no room for a patch of {self.patch}.")

    @property
    def grid(self) -> int:
        return self.size // self.patch


def shape_of(tensors: Mapping[str, Any], **known: Any) -> Shape:
    """The sizes that a file of weights implies; `known` ones (heads, for towers whose heads are not 64 wide) go first.

    Raises:
        WrongInput: these are not the tensors of a CLIP with a vision transformer.
    """
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        vocabulary, text_width = tensors["token_embedding.weight"].shape
        found = {
            "embed": tensors["text_projection"].shape[1],
            "size": round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5) * patch,
            "patch": patch,
            "width": width,
            "layers": _blocks(tensors, "visual.transformer.resblocks."),
            "heads": max(1, width // HEAD),
            "text_width": text_width,
            "text_layers": _blocks(tensors, "transformer.resblocks."),
            "text_heads": max(1, text_width // HEAD),
            "context": tensors["positional_embedding"].shape[0],
            "vocabulary": vocabulary,
            "mlp_ratio": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        }
    except (KeyError, ValueError, IndexError) as error:
        raise WrongInput(
            f"these weights are not those of a CLIP with a vision transformer ({error}); its tensors are called "
            "visual.conv1.weight, token_embedding.weight and so on, as in open_clip."
        ) from None
    return Shape(**{**found, **known})


def _blocks(tensors: Mapping[str, Any], prefix: str) -> int:
    return 1 + max(int(key[len(prefix) :].split(".")[0]) for key in tensors if key.startswith(prefix))


TINY = Shape(
    embed=64, size=64, patch=16, width=64, layers=4, heads=1, text_width=64, text_layers=4, text_heads=1
)  # fmt: skip
