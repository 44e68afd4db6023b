"""The faults: each disturbs a run, and says what came of it. ``FAULTS`` lists which work meets which."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from qualiclip_plugin.utils.atomic import sha256_file
from tests.faults.trials import ANY, DECLARED, NO_SCORE, Fault, Outcome, Trial, same
from tests.faults.works import HARNESS, LADDERS, PACKED, SCORING, TRAINING_RUN, WEIGHTS, WORKS, Work

KILLED = -signal.SIGKILL
OUTPUT_LOST = (1, 2)
"""Exit codes of a command whose standard output is closed, and full."""
OTHER_ALGORITHM = 1e-6
"""How far scores may differ where a library has no memory for its fast algorithm: another one rounds otherwise."""


def killed(trial: Trial) -> Outcome:
    """SIGKILL at a random moment; no stored score is gone or computed again."""
    code = _kill_within(trial, trial.seconds)
    stored = _finished(trial.output)
    outcome = trial.under(code, KILLED) + trial.compare()
    now = _finished(trial.output)
    return outcome + Outcome(lost=sum(now.get(image) != moment for image, moment in stored.items()))


def _kill_within(trial: Trial, seconds: float) -> int:
    process = trial.start()
    time.sleep(trial.random.uniform(0, seconds))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return trial.finish()


def _finished(output: Path) -> dict[str, str]:
    """When each stored score was computed, by image."""
    found: dict[str, str] = {}
    for path in sorted(output.rglob("part-*.parquet")):
        table = pq.read_table(path, columns=["image_hash", "finished"]).to_pydict()
        found |= dict(zip(table["image_hash"], table["finished"], strict=True))
    return found


def quota(trial: Trial) -> Outcome:
    """No file may grow beyond a random size."""
    sizes = [path.stat().st_size for path in trial.undisturbed.rglob("*") if path.is_file()]
    code = trial.run(file_bytes=trial.random.randint(0, max(sizes)))
    return trial.under(code, DECLARED) + trial.compare()


def full_disk(trial: Trial) -> Outcome:
    """A file system with random room, from none at all to a little more than the work needs."""
    sizes = [path.stat().st_size for path in trial.undisturbed.rglob("*") if path.is_file()]
    pages = trial.random.randint(0, sum(size // 4096 + 2 for size in sizes))
    with mounted(trial.output, 4096 * (pages + 1)):
        # A file system without a size would be one without a limit.
        ballast = trial.output / "ballast"
        ballast.write_bytes(bytes(4096))
        code = trial.run()
        ballast.unlink()
        outcome = trial.under(code, DECLARED)
        _mount("remount,size=256m", trial.output)
        return outcome + trial.compare()


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A file system in memory at a folder."""
    folder.mkdir(exist_ok=True)
    _mount(f"size={size}", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(options: str, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


def read_only(trial: Trial) -> Outcome:
    """A folder that may not be written, empty or with part of the work in it; not a byte of it changes."""
    _kill_within(trial, trial.seconds * trial.random.choice((0, 1)))
    before = _hashes(trial.output)
    _set_modes(trial.output, 0o555, 0o444)
    code = trial.run(obey_modes=True)
    _set_modes(trial.output, 0o755, 0o644)
    changed = Outcome(wrong=int(_hashes(trial.output) != before))
    return trial.under(code, DECLARED) + changed + trial.compare()


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def _set_modes(folder: Path, folders: int, files: int) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(folders if path.is_dir() else files)


def clock_jumps(trial: Trial) -> Outcome:
    """The clock jumps by up to ten years, forwards and backwards, all the while."""
    clock = trial.session.folder / "clock"
    clock.write_text("+0s")
    fake = {"LD_PRELOAD": libfaketime(), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "0"}
    fake |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    server = trial.session.server("clock", fake)
    with _meanwhile(lambda: clock.write_text(f"{trial.random.randint(-3650, 3650):+d}d"), trial, 0.05):
        code = server.run(trial.work.job(trial.session.world, trial.output))
    return trial.under(code) + Outcome(struck=1) + trial.compare()


def libfaketime() -> str:
    """The library that ``faketime`` loads into a program; empty where there is none."""
    if shutil.which("faketime") is None:
        return ""
    command = ["faketime", "-f", "+0s", "sh", "-c", "echo $LD_PRELOAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def changing_files(trial: Trial) -> Outcome:
    """Two of the files that are read exchange their contents all the while, in place and not in one step."""
    folder = {SCORING.name: "images", HARNESS.name: "set", TRAINING_RUN.name: "photos"}[trial.work.name]
    files = sorted((trial.session.world.folder / folder).glob("*.png"))
    chosen = trial.random.sample(files, 2)
    originals = {path: path.read_bytes() for path in chosen}

    def change() -> None:
        path, other = trial.random.sample(chosen, 2)
        path.write_bytes(originals[trial.random.choice((path, other))])

    try:
        with _meanwhile(change, trial, 0.01):
            code = trial.run()
    finally:
        for path, content in originals.items():
            path.write_bytes(content)
    names = {path.name for path in chosen}
    outcome = trial.under(code, DECLARED, NO_SCORE, wrong=lambda: _wrong_while_changing(trial, names))
    if trial.work is TRAINING_RUN:
        # Other photographs are another run.
        shutil.rmtree(trial.output / "run", ignore_errors=True)
    return outcome + trial.compare()


def _wrong_while_changing(trial: Trial, changing: set[str]) -> int:
    """Scores that belong to none of the contents that a file had; an error is no score."""
    if trial.work is TRAINING_RUN:
        return 0
    expected = dict(trial.expected)
    allowed = {expected.get(name) for name in changing}
    wrong = 0
    for name, value in trial.work.result(trial.output):
        if " " not in name and value.split(" ")[0] not in ("", "nan", "None"):
            known = allowed if name in changing else {expected.get(name)}
            wrong += value not in known
    return wrong


@contextlib.contextmanager
def _meanwhile(action: object, trial: Trial, pause: float) -> Iterator[None]:
    """Do something again and again, at random moments, while the block runs."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(trial.random.uniform(0, pause)):
            action()  # type: ignore[operator]

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def two_at_once(trial: Trial) -> Outcome:
    """Two runs into one place at the same time; both succeed, or one of them is told of the other."""
    second = trial.session.server("second")
    trial.start()
    time.sleep(trial.random.uniform(0, trial.seconds / 4))
    job = trial.work.job(trial.session.world, trial.output)
    other = second.run(type(job)(**{**vars(job), "log": f"{job.log}.second"}))
    code = trial.finish()
    accepted = (DECLARED,) if trial.work in (TRAINING_RUN, SCORING) else ()
    # Both may have scored an image; of two equal rows one is read.
    expected = dict(trial.expected)
    wrong = lambda: sum(expected.get(name) != value for name, value in trial.work.result(trial.output))
    both = trial.under(code, *accepted, wrong=wrong) + trial.under(other, *accepted, wrong=lambda: 0)
    neither = Outcome(crashed=int(code != 0 and other != 0))
    return Outcome(struck=1, wrong=both.wrong, crashed=both.crashed, seen=both.seen) + neither + trial.compare()


def little_memory(trial: Trial) -> Outcome:
    """The process may take only a random amount of memory; libraries that get none may end it in any way."""
    code = trial.run(memory_bytes=trial.random.randint(0, 200) * 2**20)
    return trial.under(code, ANY, wrong=lambda: _wrong_without_memory(trial)) + trial.compare(OTHER_ALGORITHM)


def _wrong_without_memory(trial: Trial) -> int:
    expected = dict(trial.expected)
    found = [(name, value) for name, value in trial.work.result(trial.output) if " " not in name]
    scored = [(name, value) for name, value in found if "memory" not in value.lower()]
    return sum(not same(value, expected.get(name, ""), OTHER_ALGORITHM) for name, value in scored)


def unwritable_output(trial: Trial) -> Outcome:
    """Standard output is full, or its reader has gone; what belongs into files is there before the next run."""
    code = trial.run(setups={"unwritable_output": (trial.random.random() < 0.5,)})
    expected = trial.expected
    return (
        trial.under(code, *OUTPUT_LOST, wrong=lambda: int(trial.work.result(trial.output) != expected))
        + trial.compare()
    )


def dead_decoder(trial: Trial) -> Outcome:
    """The system kills a process that decodes images."""
    job = trial.work.job(trial.session.world, trial.output)
    process = trial.session.server().start(type(job)(**{**vars(job), "argv": (*job.argv, "--workers", "1")}))
    tasks = Path(f"/proc/{process}/task")
    while tasks.exists() and not (found := _children(tasks)):
        time.sleep(0.001)
    for child in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return trial.under(trial.finish(), DECLARED) + trial.compare()


def _children(tasks: Path) -> list[int]:
    """Processes of Python's multiprocessing that the threads of a process have started."""
    found: list[int] = []
    for path in tasks.glob("*/children"):
        numbers: list[str] = []
        with contextlib.suppress(OSError):
            numbers = path.read_text().split()
        for one in numbers:
            with contextlib.suppress(OSError):  # one that has ended meanwhile
                # Beside them stands one that minds what they share.
                found += [int(one)] if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes() else []
    return found


def stalled_download(trial: Trial) -> Outcome:
    """The server sends nothing more after a random number of bytes."""
    trial.session.world.served.stall_after = trial.random.randint(0, 20_000)
    code = trial.run()
    trial.session.world.served.stall_after = None
    return trial.under(code, DECLARED) + trial.compare()


def cut_download(trial: Trial) -> Outcome:
    """The server hangs up after a random number of bytes."""
    trial.session.world.served.cuts = [trial.random.randint(0, 20_000)] * 1000  # more answers than are asked for
    code = trial.run()
    trial.session.world.served.cuts = []
    return trial.under(code, DECLARED) + trial.compare()


@dataclass(frozen=True)
class Damage:
    """A file that is altered between two runs.

    Attributes:
        pattern: Which files below the output folder.
        halfway: Damage what a killed run has left; else what a whole run has left.
    """

    pattern: str
    halfway: bool = False

    def __call__(self, trial: Trial) -> Outcome:
        """Cut a random file off or flip some of its bits; the next run says so, makes it again, or needs it not."""
        if self.halfway:
            _kill_within(trial, trial.seconds)
        else:
            trial.run()
        files = [path for path in trial.output.rglob(self.pattern) if path.is_file() and path.stat().st_size]
        if not files:
            return trial.compare()
        path = trial.random.choice(sorted(files))
        _spoil(path, trial)
        code = trial.run()
        outcome = trial.under(code, DECLARED) + Outcome(struck=int(code == 0))
        if code == DECLARED:
            places = _to_delete(trial.message, path)
            outcome += Outcome(crashed=int(not places), seen=(f"{path}: {trial.message}",) * (not places))
            for place in places:
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        return outcome + trial.compare()

    @property
    def __name__(self) -> str:
        return f"damage {self.pattern}"


def _to_delete(message: str, path: Path) -> list[Path]:
    """What a user deletes who has read the message: what it names after the word, which may be "it"."""
    if str(path) not in message and str(path.parent) not in message:
        return []
    named = re.search(r"(?:[Dd]elete|remove) (\S+)(?: and (\S+))?", message)
    words = [word for word in (named.groups() if named else ()) if word]
    subject = path if str(path) in message else path.parent
    places = [subject if word == "it" else path.parent / word for word in words]
    return [place for place in places if place.exists()]


def _spoil(path: Path, trial: Trial) -> None:
    content = bytearray(path.read_bytes())
    if trial.random.random() < 0.3:
        del content[trial.random.randrange(len(content)) :]
    else:
        for _ in range(trial.random.choice((1, 1, 2, 8))):
            content[trial.random.randrange(len(content))] ^= 1 << trial.random.randrange(8)
    stamp = path.stat()
    path.write_bytes(content)
    # A disk that decays leaves the times as they were.
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def why_not(fault: Fault) -> str:
    """Why a fault cannot be made here; empty where it can."""
    if fault is clock_jumps and not libfaketime():
        return "needs the program faketime (Debian package faketime)"
    if fault is full_disk:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with mounted(Path(folder), 4096):
                    return ""
            except (OSError, subprocess.CalledProcessError):
                return "needs the right to mount a file system"
    return ""


FAULTS: dict[str, tuple[Fault, tuple[Work, ...]]] = {
    "SIGKILL at a random moment": (killed, WORKS),
    "disk full": (full_disk, WORKS),
    "file size limit": (quota, WORKS),
    "read-only folder": (read_only, WORKS),
    "clock jumps": (clock_jumps, WORKS),
    "input files change while they are read": (changing_files, (SCORING, HARNESS, TRAINING_RUN)),
    "two processes at once": (two_at_once, WORKS),
    "little memory": (little_memory, (SCORING, HARNESS, TRAINING_RUN)),
    "standard output full or closed": (unwritable_output, (SCORING, HARNESS, PACKED, TRAINING_RUN)),
    "decoding process killed": (dead_decoder, (HARNESS,)),
    "download stalls": (stalled_download, (PACKED, WEIGHTS)),
    "connection cut": (cut_download, (PACKED, WEIGHTS)),
    "stored scores damaged": (Damage("part-*.parquet"), (HARNESS,)),
    "cell damaged": (Damage("cells/*/*.json"), (HARNESS,)),
    "labels damaged": (Damage("results/datasets/*.parquet"), (HARNESS,)),
    "identity of scores damaged": (Damage("identity.json"), (HARNESS,)),
    "generated pictures or labels damaged": (Damage("ladders/**/*.*"), (LADDERS,)),
    "download damaged": (Damage("downloads/*/*.*"), (PACKED,)),
    "unpacked pictures damaged": (Damage("unpacked/**/*.png"), (PACKED,)),
    "fetched weights damaged": (Damage("pyiqa/*"), (WEIGHTS,)),
    "checkpoint damaged": (Damage("checkpoints/*/*", halfway=True), (TRAINING_RUN,)),
    "starting weights damaged": (Damage("start.safetensors", halfway=True), (TRAINING_RUN,)),
}
"""Every fault with the works that meet it."""
