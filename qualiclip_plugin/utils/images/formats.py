"""Which formats are read, which are known as images and not read, and how a file of each is recognised."""

from __future__ import annotations

from importlib import util

# Only these are tried, whatever Pillow supports besides: plain raster formats that run no helper program
# (EPS starts Ghostscript) and hold one picture at a declared size.
FORMATS: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c", ".jpc", ".jpf"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}

RAW = "a raw photograph; develop it to a TIFF, PNG or JPEG first"

# JPEG XL: the Pillow plugin of the package index decodes a file before its size can be checked, and is under the GPL.
UNREAD: dict[str, tuple[str, ...]] = {
    "a JPEG XL; convert it first, for example with: djxl photo.jxl photo.png": (".jxl",),
    "a JPEG XR; convert it to a PNG first": (".jxr", ".wdp", ".hdp"),
    RAW: (
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef"),
        *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw"),
        ".x3f",
    ),
    "a Photoshop document; export it as a PNG or TIFF first": (".psd", ".psb"),
    "a GIMP document; export it as a PNG or TIFF first": (".xcf",),
    "an OpenEXR with light and no display values; tone-map it to a PNG first": (".exr",),
    "a Radiance HDR with light and no display values; tone-map it to a PNG first": (".hdr", ".rgbe"),
    "a DICOM; convert it to a PNG first": (".dcm", ".dicom"),
    "a FITS; convert it to a PNG first": (".fit", ".fits"),
    "a texture; convert it to a PNG first": (".dds", ".ktx", ".ktx2"),
    "a picture of an uncommon format; convert it to a PNG first": (
        *(".bpg", ".cur", ".flif", ".ico", ".icns", ".jls", ".pam", ".pcx", ".qoi", ".ras", ".rgb", ".sgi", ".tga"),
        *(".xbm", ".xpm"),
    ),
}
"""What is known as a picture and not read, with what to do: suffixes. Vector graphics and documents are neither."""

SUFFIXES = frozenset(suffix for table in (FORMATS, UNREAD) for suffixes in table.values() for suffix in suffixes)
"""What is taken for an image where a folder is read: an image that cannot be read then is an error and not absent."""

HEAD_BYTES = 160
_UNREAD_SIGNATURES: dict[tuple[int, bytes], str] = {
    (0, b"\xff\x0a"): ".jxl",
    (0, b"\0\0\0\x0cJXL "): ".jxl",
    (0, b"II\xbc\x01"): ".jxr",
    (0, b"FUJIFILMCCD-RAW"): ".raf",
    (0, b"IIU\0"): ".rw2",
    (0, b"IIRO"): ".orf",
    (0, b"IIRS"): ".orf",
    (0, b"MMOR"): ".orf",
    (0, b"\0MRM"): ".mrw",
    (0, b"FOVb"): ".x3f",
    (6, b"HEAPCCDR"): ".crw",
    (8, b"CR\x02"): ".cr2",
    (4, b"ftypcrx "): ".cr3",
    (0, b"8BPS"): ".psd",
    (0, b"gimp xcf"): ".xcf",
    (0, b"v/1\x01"): ".exr",
    (0, b"#?R"): ".hdr",
    (128, b"DICM"): ".dcm",
    (0, b"SIMPLE  ="): ".fits",
    (0, b"DDS "): ".dds",
    (0, b"\xabKTX"): ".ktx",
    (0, b"qoif"): ".qoi",
    (0, b"P7\n"): ".pam",
}
_SIGNATURES: dict[tuple[int, bytes], str] = {
    (0, b"\x89PNG\r\n\x1a\n"): "PNG",
    (0, b"\xff\xd8\xff"): "JPEG",
    (0, b"GIF8"): "GIF",
    (0, b"BM"): "BMP",
    (0, b"II*\0"): "TIFF",
    (0, b"MM\0*"): "TIFF",
    (0, b"II+\0"): "TIFF",
    (0, b"MM\0+"): "TIFF",
    (8, b"WEBP"): "WebP",
    (0, b"\xff\x4f\xff\x51"): "JPEG 2000",
    (0, b"\0\0\0\x0cjP  "): "JPEG 2000",
    (4, b"ftypavi"): "AVIF",
    **{(4, b"ftyp" + brand): "HEIF" for brand in (b"hei", b"hev", b"mif1", b"msf1")},
}
_EXTRA = (
    'a HEIF, which is read with an extra: pip install "qualiclip-plugin[heif]"; or convert it to a PNG or JPEG first'
)


def unread_kind(head: bytes) -> str | None:
    """What a file is and what to do, where its first bytes show an image of a format that is not read.

    Args:
        head: The first ``HEAD_BYTES`` of the file, or all of it.
    """
    for (at, signature), suffix in _UNREAD_SIGNATURES.items():
        if head.startswith(signature, at):
            return next(kind for kind, suffixes in UNREAD.items() if suffix in suffixes)
    return _EXTRA if read_format(head) == "HEIF" and not has_heif() else None


def read_format(head: bytes) -> str | None:
    """The format that is read and that the first bytes of a file are those of."""
    return next((name for (at, signature), name in _SIGNATURES.items() if head.startswith(signature, at)), None)


def has_heif() -> bool:
    """Whether the extra ``heif`` is installed."""
    return util.find_spec("pillow_heif") is not None
