"""Pictures that a prompt shows: files of others, so read within bounds, and cut as a model of Qwen2.5-VL sees them.

A picture stands in a prompt as ``start pad ... pad end``, a pad for each of its patches of 28 x 28 pixels. Trajectories
hold these ids and the picture's reference, a path or a ``data:`` URL; pixels are made where they are computed with.
"""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Sequence
from io import BytesIO
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

KIND = "qwen2_5_vl"
"""``model_type`` of the models that read pictures here."""
PIXELS = {"shortest_edge": 224 * 224, "longest_edge": 1280 * 28 * 28}
"""A picture is scaled to have from so many pixels to so many: 64 to 1,280 tokens, as RARE's inference has them."""
MOST = 10
"""Pictures of a prompt; 10 as published."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MAX_BYTES, _MAX_PIXELS = 32 << 20, 64 << 20


def remote(reference: str) -> bool:
    """Whether it is an address on the network: nothing here fetches one."""
    return reference.startswith(("http://", "https://"))


def short(reference: str) -> str:
    """A reference as messages show it: the end of a path, the beginning of a ``data:`` URL."""
    return f"{reference[:40]}..." if reference.startswith("data:") else reference[-60:]


def picture_bytes(reference: str) -> tuple[bytes, str]:
    """Content and format (``PNG``) of a path or a ``data:`` URL.

    Raises UserError unless it is a picture of a known format and of a sane size.
    """
    try:
        if remote(reference):
            raise ValueError("addresses are not fetched; download it, and write a path")
        if reference.startswith("data:"):
            held = base64.b64decode(reference.partition(",")[2], validate=True)
        else:
            with Path(reference).open("rb") as file:
                held = file.read(_MAX_BYTES + 1)
        if len(held) > _MAX_BYTES:
            raise ValueError(f"above {_MAX_BYTES >> 20} MiB")
        return held, str(_opened(held).format)
    except (OSError, ValueError) as error:
        raise UserError(f"image {short(reference)}: is no picture that can be read ({error})") from error


def open_picture(reference: str) -> Image:
    """The picture of a path or a ``data:`` URL, in RGB. Raises UserError as ``picture_bytes`` does."""
    held, _ = picture_bytes(reference)
    try:
        return _opened(held).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # the header was whole, and what follows is not
        raise UserError(f"image {short(reference)}: is damaged ({error})") from error


def _opened(held: bytes) -> Image:
    """Its header is read, no pixel yet. Raises OSError or ValueError."""
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(BytesIO(held), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError("too many pixels") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"of {', '.join(_FORMATS)}, it is none") from error
    width, height = image.size
    if width * height > _MAX_PIXELS or max(width, height) > 100 * min(width, height):
        raise ValueError(f"{width} x {height} pixels: too many, or too narrow")
    return image


def under(folder: Path, reference: str) -> str:
    """Where a path of a row leads, which must be a file below the row's own folder, or below the folder of that.

    ``data:`` URLs and addresses stay as they are. Raises ValueError on any other path.
    """
    if remote(reference) or reference.startswith("data:"):
        return reference
    for root in (folder.resolve(), folder.resolve().parent):
        path = (root / reference).resolve()
        if path.is_relative_to(root) and path.is_file():
            return str(path)
    raise ValueError(f"{short(reference)} is no file below {folder}, or below the folder above it")


class Pictures:
    """How the model of one folder reads pictures."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Raises UserError if the folder does not say how pictures are cut."""
        from transformers import Qwen2VLImageProcessor

        self.pad: int = config["image_token_id"]
        self._edges: tuple[int, int] = (config["vision_start_token_id"], config["vision_end_token_id"])
        try:
            self._processor: Any = Qwen2VLImageProcessor.from_pretrained(folder, size=PIXELS)
        except OSError as error:
            raise UserError(
                f"model {folder} has no preprocessor_config.json, which says how pictures are cut"
            ) from error

    @classmethod
    def of(cls, folder: str | Path) -> Pictures | None:
        """None for a model that reads text alone, and for what is no folder."""
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return cls(Path(folder), config) if config.get("model_type") == KIND else None

    def ids(self, references: Sequence[str]) -> list[int]:
        """What stands for these pictures in a prompt. Raises UserError as ``picture_bytes`` does, or for too many."""
        if len(references) > MOST:
            raise UserError(f"a prompt shows {len(references)} pictures: {MOST} is the most")
        start, end = self._edges
        return list(chain.from_iterable([start, *[self.pad] * self._pads(name), end] for name in references))

    def pixels(self, references: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``[patches, values]`` of all pictures, and ``[pictures, 3]``: the patches of each in time, height, width."""
        made = self._processor(images=[open_picture(name) for name in references], return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    def collapsed(self, token_ids: Sequence[int]) -> list[int]:
        """Ids with one pad for each picture, as vLLM wants them."""
        runs = ((token, list(run)) for token, run in groupby(token_ids))
        return list(chain.from_iterable([token] if token == self.pad else run for token, run in runs))

    def _pads(self, reference: str) -> int:
        width, height = _opened(picture_bytes(reference)[0]).size
        patches: int = self._processor.get_number_of_image_patches(height, width)
        return patches // self._processor.merge_size**2
