"""This project inside other programs: pyiqa, torchmetrics, the Hugging Face Hub."""
