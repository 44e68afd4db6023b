"""Why the D-test of the lite model is not higher: which degraded crops pass for pristine, and whether it sees them.

    python results/lite/d_test.py --photos FOLDER --names results/lite/held_out.txt

Writes ``d_test.md`` beside this file: Waterloo's four kinds on photographs that were not trained on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import LADDER_SETS, centre_crop, dl_tests, ladder_images, measure

from qualiclip_plugin.utils.environment import versions
from qualiclip_plugin.utils.statistics import d_threshold
from qualiclip_plugin.weights.loading import load_model

HERE = Path(__file__).parent
KINDS = LADDER_SETS["waterloo"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--names", type=Path, required=True, help="names of those not trained on, one a line")
    parser.add_argument("--weights", default="lite")
    arguments = parser.parse_args()
    model = load_model(arguments.weights)
    crops = torch.stack([centre_crop(arguments.photos / name) for name in arguments.names.read_text().split()])
    ladders = [torch.stack([measure(model, step)[0] for step in steps], 1) for steps in ladder_images(crops, KINDS)]
    text = "\n\n".join(page(torch.stack(ladders).double().numpy()))
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    (HERE / "d_test.md").write_text(f"{text}\n\n{len(crops)} photographs, {time.strftime('%Y-%m-%d')}, CPU, {made}\n")
    print(text)


def page(scores: np.ndarray) -> list[str]:
    """Figures of scores along ladders, (K, N, 6), the pristine crop first."""
    pristine, degraded = scores[0, :, 0], scores[:, :, 1:]
    both = np.concatenate([pristine, degraded.ravel()])
    threshold = d_threshold(both, np.arange(len(both)) < len(pristine))
    columns = [f"level {level}" for level in range(1, 6)]

    def shares(passing: np.ndarray) -> str:
        return (100 * pd.DataFrame(passing.mean(1), KINDS, columns)).to_markdown(floatfmt=".0f")

    alone = {kind: [dl_tests(scores[[at]])["d_test"]] for at, kind in enumerate(KINDS)}
    without = {kind: [dl_tests(np.delete(scores, at, 0))["d_test"]] for at, kind in enumerate(KINDS)}
    logits = np.log(scores / (1 - scores))
    levelled = dl_tests(logits - logits[:1, :, :1])["d_test"]
    figures = pd.DataFrame(alone, ["D of the kind alone"])
    return [
        f"D {dl_tests(scores)['d_test']:.3f}; the best threshold is {threshold:.3f}, "
        f"{(pristine <= threshold).mean():.0%} of the pristine crops lie below it.",
        "Degraded crops above the threshold, in percent:",
        shares(degraded > threshold),
        "Degraded crops whose score is not below that of their own pristine crop, in percent:",
        shares(degraded >= pristine[None, :, None]),
        pd.concat([figures, pd.DataFrame(without, ["D without the kind"])]).to_markdown(floatfmt=".3f"),
        f"D if the logit of every photograph's own pristine score were known and taken off: {levelled:.3f}.",
    ]


if __name__ == "__main__":
    main()
