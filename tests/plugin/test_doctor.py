"""What ``qualiclip doctor`` says of this machine."""

from __future__ import annotations

import pytest

from qualiclip_plugin import doctor
from tests.support.commands import run_main


def test_the_doctor_names_what_is_here_and_what_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "is_installed", lambda package: package != "openvino")
    assert run_main(monkeypatch, "qualiclip", "doctor") == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"version", "processor", "threads of torch", "GPU", "weight cache"} <= said.keys()
    assert said["weights lite"].endswith("qualiclip-lite.safetensors")
    assert said["weights official"].startswith("not here; would be ")
    assert 1 < float(said["size of the core installation"].partition(" GB")[0]) < 20
    assert (said["extra openvino"], said["extra ray"]) == ("lacks openvino", "installed")
