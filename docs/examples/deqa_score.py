"""DeQA-Score (You et al., CVPR 2025) as a command: images in, a JSON list of scores in 1..5 out; higher is better.

It asks for transformers 4.36.1, and so for an environment of its own; its model runs code from the Hub.

    python -m venv deqa && deqa/bin/pip install transformers==4.36.1 torch pillow accelerate
    iqa-harness run --scorer "cmd:deqa/bin/python deqa_score.py@lower_better=false,trained_on=koniq10k+spaq+kadid10k"
"""

from __future__ import annotations

import json
import sys

import torch
from PIL import Image
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(
    "zhiyuanyou/DeQA-Score-Mix3",
    trust_remote_code=True,
    attn_implementation="eager",
    torch_dtype=torch.float16,
    device_map="auto",
)
print(json.dumps(model.score([Image.open(path).convert("RGB") for path in sys.argv[1:]]).tolist()))
