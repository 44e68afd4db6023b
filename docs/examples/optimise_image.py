"""Use QualiCLIP as a loss: change a photograph until its score is higher, in two ways, and look at both.

An *edit* of seven numbers (exposure, contrast, gamma, saturation, warmth, fine and coarse sharpening) can only do
what a person does with sliders. *Free pixels*, held near the photograph and smooth by penalties, can do anything, and
what raises the score fastest is a pattern that hardly shows: the weakness of learned metrics as a loss.

    python docs/examples/optimise_image.py --output optimise_image.jpg
    python docs/examples/optimise_image.py --image photo.jpg --steps 200
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pyiqa
import torch
from skimage import data
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from qualiclip_plugin.utils.images import read_image, to_float

GREY = (0.299, 0.587, 0.114)
EDITS = ("exposure", "contrast", "gamma", "saturation", "warmth", "fine sharpening", "coarse sharpening")


def dull_photograph() -> Tensor:
    """A photograph of the scikit-image wheel, a little dark and out of focus: (1, 3, 300, 451)."""
    photo = to_float(torch.from_numpy(data.chelsea()).permute(2, 0, 1))[None]
    return gaussian_blur(0.75 * photo, [9, 9], [1.2, 1.2])


def edited(image: Tensor, sliders: Tensor) -> Tensor:
    """An image (1, 3, H, W) after the edits that seven sliders (7,) around 0 stand for."""
    exposure, contrast, gamma, saturation, warmth, fine, coarse = sliders.unbind()
    for amount, sigma in ((fine, 1.0), (coarse, 4.0)):
        image = image + amount * (image - gaussian_blur(image, [int(6 * sigma) | 1] * 2, [sigma] * 2))
    image = image.clamp(1e-4, 1) ** torch.exp(-gamma) * torch.exp(exposure)
    image = 0.5 + torch.exp(contrast) * (image - 0.5)
    grey = (image * image.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
    image = grey + torch.exp(saturation) * (image - grey)
    return (image * torch.stack([1 + warmth, 1 + 0 * warmth, 1 - warmth]).view(3, 1, 1)).clamp(0, 1)


def roughness(change: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels (total variation) of a change (1, 3, H, W)."""
    return change.diff(dim=2).abs().mean() + change.diff(dim=3).abs().mean()


def climb(
    render: Callable[[Tensor], Tensor],
    start: Tensor,
    score: Callable[[Tensor], Tensor],
    penalty: Callable[[Tensor], Tensor],
    steps: int,
    rate: float,
) -> tuple[Tensor, Tensor, list[float]]:
    """Adam on ``1 - score + penalty``.

    Returns:
        The variables, the image they render, and the score before every step and after the last.
    """
    variables = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([variables], lr=rate)
    curve = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = score(render(variables)).mean()
        (1 - value + penalty(variables)).backward()
        optimizer.step()
        curve.append(value.item())
    with torch.no_grad():
        image = render(variables)
        curve.append(score(image).mean().item())
    return variables.detach(), image, curve


def optimise(image: Tensor, steps: int) -> dict[str, tuple[Tensor, Tensor, list[float]]]:
    """Both ways; see :func:`climb`."""
    # `qualiclip` with the packaged weights: as a loss, pyiqa lets gradients through; the value is still the score.
    loss = pyiqa.create_metric("qualiclip", as_loss=True, weights="lite", device="cpu")
    sliders = torch.zeros(len(EDITS))
    edit = climb(lambda v: edited(image, v), sliders, loss, lambda v: 0.05 * v.square().sum(), steps, 0.03)
    free = climb(
        lambda v: (image + v).clamp(0, 1),
        torch.zeros_like(image),
        loss,
        lambda v: 2 * roughness(v) + 20 * v.square().mean(),
        steps,
        0.002,
    )
    return {"edit": edit, "free pixels": free}


def draw(image: Tensor, results: dict[str, tuple[Tensor, Tensor, list[float]]], path: Path) -> None:
    """Before, after, the change, and the scores on the way."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), layout="constrained")
    before = next(iter(results.values()))[2][0]
    show(axes[0, 0], image, f"before: {before:.2f}")
    for column, (name, (_, after, curve)) in enumerate(results.items(), start=1):
        show(axes[0, column], after, f"{name}: {curve[-1]:.2f}")
        change = after - image
        factor = 0.25 / change.abs().quantile(0.99).item()
        title = f"its change, {factor:.1f} times (root mean square {change.square().mean().sqrt():.3f})"
        show(axes[1, column], 0.5 + factor * change, title)
        axes[1, 0].plot(curve, label=name)
    axes[1, 0].set(xlabel="step", ylabel="score of qualiclip-lite")
    axes[1, 0].legend()
    figure.savefig(path, dpi=80)


def show(axis: plt.Axes, image: Tensor, title: str) -> None:
    axis.imshow(image[0].permute(1, 2, 0).clamp(0, 1).numpy())
    axis.set_title(title, fontsize=9)
    axis.axis("off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="a photograph; default: one of scikit-image, made dull")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("optimise_image.jpg"))
    options = parser.parse_args()
    image = dull_photograph() if options.image is None else to_float(read_image(options.image))[None]
    results = optimise(image, options.steps)
    for name, (_, _, curve) in results.items():
        print(f"{name}: score {curve[0]:.3f} before, {curve[-1]:.3f} after {options.steps} steps")
    print("edit:", ", ".join(f"{name} {value:+.2f}" for name, value in zip(EDITS, results["edit"][0], strict=True)))
    draw(image, results, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
