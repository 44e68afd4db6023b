"""From a file to RGB pixels, always in the same way, and from paths to a list of image files.

Pillow decodes. This package adds a declared answer for every kind of input: which formats are tried,
how sixteen bits become eight, what lies behind transparent pixels, what is refused and with which words.
The rules in one place:

- EXIF rotation is applied (``exif=False`` leaves the stored orientation).
- Colours with an ICC profile become sRGB (``icc=False`` leaves them); one that is sRGB changes nothing.
- Sixteen-bit samples keep their high byte, in grey as in colour; twelve-bit TIFF its high eight bits. Samples that
  use a small part of their type are refused.
- Transparent pixels are composited on ``background``.
- Of an animation, or a file with several pages, the first image is read; of a TIFF the first of
  full resolution.
- A file that ends too early is an error, also where another library told Pillow to accept it.
- An image with more than ``max_pixels`` pixels is refused from its header, before anything is decoded.
- A folder stands for all images in it, also for those of a format that is not read: reading these says why.
"""

from qualiclip_plugin.utils.images.decode import MAX_SCANS, DecodedImage, decode_image, read_image, to_float
from qualiclip_plugin.utils.images.files import images_in
from qualiclip_plugin.utils.images.formats import FORMATS, SUFFIXES, UNREAD
from qualiclip_plugin.utils.images.pixels import MAX_PIXELS, WHITE

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MAX_SCANS",
    "SUFFIXES",
    "UNREAD",
    "WHITE",
    "DecodedImage",
    "decode_image",
    "images_in",
    "read_image",
    "to_float",
]
