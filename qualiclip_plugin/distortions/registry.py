"""The registry of distortions: which exist, in which group, at which strengths.

Tables by name (:func:`get_table`):

- ``default`` (also ``all``): every kind, all ladders ordered by severity for every image.
- ``paper``: the ordered counterparts of the 24 types that ARNIQA and QualiCLIP train on; signed ladders are split
  into one-sided kinds that share their ``type``.
- ``camera``: the kinds that cameras and the web make.
- ``arniqa``: the 24 types at their original strengths, unordered ladders included, for reproduction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from qualiclip_plugin.distortions import blur, brightness, color, noise, sharpness, spatial
from qualiclip_plugin.distortions import jpeg as compression
from qualiclip_plugin.distortions import jpeg2000 as wavelet
from qualiclip_plugin.utils.errors import ConfigError, did_you_mean

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]

GROUP_COLOURS = {
    "blur": "#3465a4",
    "color": "#ad3c82",
    "compression": "#8f5902",
    "noise": "#5c3566",
    "brightness": "#b08200",
    "spatial": "#127d5a",
    "sharpness": "#b43228",
}
"""In every picture."""
GROUPS = tuple(GROUP_COLOURS)

ARNIQA = "ARNIQA's strengths (arXiv 2310.14918), after KADID-10k"
BEYOND = "beyond ARNIQA's list; strengths chosen here"


@dataclass(frozen=True)
class Distortion:
    """One kind of degradation and its ladder.

    Attributes:
        name: Unique in its table.
        group: One of :data:`GROUPS`.
        apply: ``apply(images (N, 3, H, W) in [0, 1], strength (N,), noise (N,) int64 seeds)`` to images of the
            same shape in [0, 1]. Pure: the input stays as it is, equal arguments give equal pixels, and no sample
            depends on another one. Strength and noise may stay on the CPU, which spares a GPU a synchronisation.
        strengths: Physical values of level 1, 2, ... from mild to severe.
        unit: What the strength is.
        type: The type this kind belongs to; one-sided kinds split from one ladder share it.
        source: Where the strengths come from.
        notes: Where and why the ladder departs from its source.
        paper: Whether the type is one of the 24 of ARNIQA and QualiCLIP.
        camera: Whether cameras and the web make it.
    """

    name: str
    group: str
    apply: Apply
    strengths: tuple[float, ...]
    unit: str
    type: str = ""
    source: str = ARNIQA
    notes: str = ""
    paper: bool = True
    camera: bool = False

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ConfigError(f"distortion {self.name!r}: unknown group {self.group!r}; groups are {GROUPS}")
        if not self.strengths:
            raise ConfigError(f"distortion {self.name!r} has no strengths")
        if not self.type:
            object.__setattr__(self, "type", self.name)

    def strength(self, level: int) -> float:
        """Strength of a level in 1..len(strengths)."""
        if not 1 <= level <= len(self.strengths):
            raise ConfigError(f"{self.name} has levels 1 to {len(self.strengths)}, not {level}")
        return self.strengths[level - 1]


_ORDERED = (
    # blur
    Distortion(
        "gaussian_blur", "blur", blur.gaussian_blur, (0.5, 1, 2, 3, 5), "standard deviation, pixels",
        notes="ARNIQA's level 1, 0.1, is the identity; 3 fills the gap between 2 and 5", camera=True,
    ),
    Distortion(
        "lens_blur", "blur", blur.lens_blur, (1, 1.5, 2, 3, 8), "radius, pixels",
        notes="ARNIQA's 1, 2, 4, 6, 8 stop getting worse on fine regular patterns", camera=True,
    ),
    Distortion(
        "motion_blur", "blur", blur.motion_blur, (3, 6, 9, 14, 21), "length, pixels",
        notes="ARNIQA moves at constant speed by 1 (the identity), 2, 4, 6, 10, out of order on stripes; a line "
        "weighted to its middle blurs as much as a constant one of 0.7 times its length", camera=True,
    ),
    Distortion(
        "camera_shake", "blur", blur.camera_shake, (0.2, 0.4, 0.6, 0.8, 1), "share of the exposure in motion",
        source=BEYOND, paper=False, camera=True,
    ),
    # color
    Distortion(
        "color_diffusion", "color", color.color_diffusion, (0.15, 0.3, 0.5, 0.75, 1), "share of the diffused picture",
        notes="ARNIQA's amounts 1, 3, 6, 8, 12 blur and amplify at once: the one undoes the other in some pictures, "
        "and the last three leave the gamut of colourful ones, where they stop getting worse",
    ),
    Distortion(
        "color_shift", "color", color.color_shift, (0.2, 0.4, 0.6, 0.8, 1), "opacity of the moved green plane",
        notes="ARNIQA moves by 1, 3, 6, 8, 12 pixels, out of order for a third of all photographs",
    ),
    Distortion("saturation_hsv", "color", color.saturation_hsv, (0.4, 0.2, 0.1, 0, -0.4), "factor of HSV's S"),
    Distortion(
        "saturation_lab", "color", color.saturation_lab, (1.25, 1.5, 2, 2.5, 3.5), "factor of a*, b*",
        notes="ARNIQA's level 1, factor 1, is the identity, and above 4 colours fold back at the gamut's edge",
    ),
    # compression
    Distortion("jpeg2000", "compression", wavelet.jpeg2000, (16, 32, 45, 120, 170), "compression ratio"),
    Distortion(
        "jpeg", "compression", compression.jpeg, (69, 40, 20, 10, 5), "libjpeg quality",
        notes="each level doubles the quantization steps, so the coarser values are among the finer ones; ARNIQA's "
        "43, 36, 24, 7, 4 are out of order on flat areas. Pictures of nearly one colour escape the order",
        camera=True,
    ),
    # noise
    Distortion(
        "white_noise", "noise", noise.white_noise, (0.001, 0.002, 0.003, 0.005, 0.01), "variance", camera=True
    ),
    Distortion(
        "color_noise", "noise", noise.color_noise, (0.0001, 0.0005, 0.001, 0.002, 0.003), "variance", camera=True
    ),
    Distortion("impulse_noise", "noise", noise.impulse_noise, (0.001, 0.005, 0.01, 0.02, 0.03), "share of values"),
    Distortion(
        "multiplicative_noise", "noise", noise.multiplicative_noise, (0.001, 0.005, 0.01, 0.02, 0.05), "variance",
        camera=True,
    ),
    Distortion(
        "shot_noise", "noise", noise.shot_noise, (0.001, 0.003, 0.008, 0.02, 0.05), "variance at white",
        source=BEYOND, paper=False, camera=True,
    ),
    Distortion(
        "blotchy_noise", "noise", noise.blotchy_noise, (0.015, 0.025, 0.04, 0.06, 0.085), "standard deviation",
        source=BEYOND, paper=False, camera=True,
    ),
    # brightness
    Distortion("brighten", "brightness", brightness.brighten, (0.1, 0.2, 0.4, 0.7, 1.1), "amount"),
    Distortion("darken", "brightness", brightness.darken, (0.05, 0.1, 0.2, 0.4, 0.8), "amount"),
    Distortion(
        "mean_shift_up", "brightness", brightness.mean_shift, (0.04, 0.08, 0.12, 0.15, 0.2), "added value",
        type="mean_shift", notes="one side of ARNIQA's signed ladder 0, .08, -.08, .15, -.15",
    ),
    Distortion(
        "mean_shift_down", "brightness", brightness.mean_shift, (-0.04, -0.08, -0.12, -0.15, -0.2), "added value",
        type="mean_shift", notes="one side of ARNIQA's signed ladder 0, .08, -.08, .15, -.15",
    ),
    Distortion(
        "overexposure", "brightness", brightness.exposure, (0.3, 0.6, 1, 1.5, 2.2), "stops", type="exposure",
        source=BEYOND, paper=False, camera=True,
    ),
    Distortion(
        "underexposure", "brightness", brightness.exposure, (-0.5, -1, -1.7, -2.5, -3.5), "stops", type="exposure",
        source=BEYOND, paper=False, camera=True,
    ),
    Distortion(
        "low_light", "brightness", brightness.low_light, (0.2, 0.4, 0.55, 0.7, 0.85), "share of light lost",
        source=BEYOND, paper=False, camera=True,
    ),
    Distortion(
        "vignette", "brightness", brightness.vignette, (0.2, 0.4, 0.6, 0.8, 1), "share lost in the corners",
        source=BEYOND, paper=False, camera=True,
    ),
    # spatial
    Distortion("jitter", "spatial", spatial.jitter, (0.05, 0.1, 0.2, 0.5, 1), "pixels, deviation of one pass"),
    Distortion(
        "non_eccentricity_patch", "spatial", spatial.non_eccentricity_patch, (20, 40, 60, 80, 100), "patches"
    ),
    Distortion(
        "pixelate", "spatial", spatial.pixelate, (2, 4, 8, 16, 32), "side of a square, pixels",
        notes="ARNIQA shrinks to the nearest pixel by .95 - s**.6, severe at once and not ordered: squares that "
        "nest are",
    ),
    Distortion(
        "quantization", "spatial", spatial.quantization, (32, 16, 8, 4, 2), "values per channel",
        notes="ARNIQA's 20, 16, 13, 10, 7 do not divide one another and its stretch to [0, 1] moves the white "
        "point: intervals that nest, with their means, are ordered",
    ),
    Distortion("color_block", "spatial", spatial.color_block, (2, 4, 6, 8, 10), "squares"),
    Distortion(
        "resize", "spatial", spatial.resize, (1.5, 2, 3, 4, 6), "factor", source=BEYOND, paper=False, camera=True
    ),
    # sharpness and contrast
    Distortion("high_sharpen", "sharpness", sharpness.high_sharpen, (1, 2, 3, 6, 12), "amount"),
    Distortion(
        "contrast_up", "sharpness", sharpness.linear_contrast, (0, 0.15, 0.3, 0.5, 0.8), "amount",
        type="linear_contrast", notes="one side of ARNIQA's signed ladder 0, .15, -.4, .3, -.6; -.2 is the identity",
    ),
    Distortion(
        "contrast_down", "sharpness", sharpness.linear_contrast, (-0.3, -0.4, -0.5, -0.6, -0.75), "amount",
        type="linear_contrast", notes="one side of ARNIQA's signed ladder 0, .15, -.4, .3, -.6; -.2 is the identity",
    ),
    Distortion(
        "nonlinear_contrast", "sharpness", sharpness.nonlinear_contrast, (0.4, 0.3, 0.2, 0.1, 0.05),
        "half of the range kept", camera=True,
    ),
    Distortion(
        "haze", "sharpness", sharpness.haze, (0.2, 0.35, 0.5, 0.65, 0.8), "share of air where it is thickest",
        source=BEYOND, paper=False, camera=True,
    ),
)  # fmt: skip

_ORIGINAL = (
    Distortion("gaussian_blur", "blur", blur.gaussian_blur, (0.1, 0.5, 1, 2, 5), "standard deviation, pixels"),
    Distortion("lens_blur", "blur", blur.lens_blur, (1, 2, 4, 6, 8), "radius, pixels"),
    Distortion("motion_blur", "blur", blur.motion_blur_uniform, (1, 2, 4, 6, 10), "length, pixels"),
    Distortion("color_diffusion", "color", color.color_diffusion_amount, (1, 3, 6, 8, 12), "amount"),
    Distortion("color_shift", "color", color.color_shift_distance, (1, 3, 6, 8, 12), "pixels"),
    "saturation_hsv",
    Distortion("saturation_lab", "color", color.saturation_lab, (1, 2, 3, 6, 9), "factor of a*, b*"),
    "jpeg2000",
    Distortion("jpeg", "compression", compression.jpeg, (43, 36, 24, 7, 4), "libjpeg quality"),
    "white_noise", "color_noise", "impulse_noise", "multiplicative_noise", "brighten", "darken",
    Distortion("mean_shift", "brightness", brightness.mean_shift, (0, 0.08, -0.08, 0.15, -0.15), "added value"),
    "jitter", "non_eccentricity_patch",
    Distortion("pixelate", "spatial", spatial.pixelate_nearest, (0.01, 0.05, 0.1, 0.2, 0.5), "strength"),
    Distortion("quantization", "spatial", spatial.quantization_stretched, (20, 16, 13, 10, 7), "values"),
    "color_block", "high_sharpen",
    Distortion("linear_contrast", "sharpness", sharpness.linear_contrast, (0, 0.15, -0.4, 0.3, -0.6), "amount"),
    "nonlinear_contrast",
)  # fmt: skip
"""ARNIQA's 24 types in its order; by name those that are here as they are there."""


def make_table(distortions: tuple[Distortion, ...]) -> Mapping[str, Distortion]:
    """A read-only table of distortions by name.

    Raises:
        ConfigError: Two distortions have the same name.
    """
    table: dict[str, Distortion] = {}
    for distortion in distortions:
        if distortion.name in table:
            raise ConfigError(f"two distortions are called {distortion.name!r}")
        table[distortion.name] = distortion
    return MappingProxyType(table)


DISTORTIONS = make_table(_ORDERED)

TABLES: Mapping[str, Mapping[str, Distortion]] = MappingProxyType(
    {
        "default": DISTORTIONS,
        "all": DISTORTIONS,
        "paper": make_table(tuple(d for d in _ORDERED if d.paper)),
        "camera": make_table(tuple(d for d in _ORDERED if d.camera)),
        "arniqa": make_table(tuple(DISTORTIONS[d] if isinstance(d, str) else d for d in _ORIGINAL)),
    }
)


def get_table(name: str = "default") -> Mapping[str, Distortion]:
    """The table of this name.

    Raises:
        ConfigError: There is none; the message lists those there are.
    """
    if name not in TABLES:
        raise ConfigError(f"unknown distortion table {name!r}; there are {', '.join(TABLES)}")
    return TABLES[name]


def get_distortion(name: str, table: str = "default") -> Distortion:
    """The distortion of this name.

    Raises:
        ConfigError: There is none; the message suggests names near it.
    """
    kinds = get_table(table)
    if name not in kinds:
        hint = did_you_mean(name, kinds, cutoff=0.4) or f"; there are {', '.join(kinds)}"
        raise ConfigError(f"unknown distortion {name!r} in table {table!r}{hint}")
    return kinds[name]
