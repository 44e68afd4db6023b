"""This project inside other programs: pyiqa, pytest, torchmetrics, the Hugging Face Hub."""
