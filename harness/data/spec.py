"""Datasets as frozen records, read from short YAML files, and the catalogue of the shipped ones."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from harness.data.patterns import Pattern, fields
from qualiclip_plugin.utils.atomic import is_relative
from qualiclip_plugin.utils.config import read_settings
from qualiclip_plugin.utils.errors import ConfigError, DatasetError, did_you_mean
from qualiclip_plugin.utils.metadata import Columns

ANYWHERE = "**/"
"""At the start of a path inside an archive: in any folder."""

SHIPPED = Path(__file__).parent / "catalogue"


@dataclass(frozen=True)
class Opinion:
    """Meaning of the opinion scores.

    Attributes:
        kind: ``mos`` or ``dmos``, as the dataset's authors call it.
        lower_better: The declared direction: KADID's "dmos" is higher-better, CSIQ's is not.
        range: Lowest and highest value that may occur.
        votes: Opinions behind each image where the table has no column of them: as many as the authors report,
            or 1 where the table's std is already that of the mean; 0: unknown.
    """

    kind: Literal["mos", "dmos"]
    lower_better: bool
    range: tuple[float, float]
    votes: int = 0


@dataclass(frozen=True)
class Hub:
    """A Hugging Face repository that ``datasets.load_dataset`` reads directly.

    Attributes:
        repository: ``owner/name``.
        revision: Commit the numbers belong to; empty: never pinned, to be pinned by the first run.
        config: Configuration name, where it has several.
    """

    repository: str
    split: str
    revision: str = ""
    config: str = ""


@dataclass(frozen=True)
class RemoteFile:
    """One file to download: a plain address, or a file of a Hugging Face dataset repository.

    Attributes:
        file: Name in the repository, or the name under which an address is kept.
        address: ``https://...``; empty for a repository.
        repository: ``owner/name``; empty for an address.
        sha256: Expected hash; empty if unknown: then the first download's hash is kept and checked.
        bytes: Expected size; 0 if unknown.
    """

    file: str
    address: str = ""
    repository: str = ""
    revision: str = "main"
    sha256: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class LabelFile(RemoteFile):
    """A table of labels; without address and repository it lies in the archive (``**/NAME``: wherever there).

    Attributes:
        header: Names of its columns; empty: they stand in its first line.
    """

    header: tuple[str, ...] = ()
    separator: str = ","


@dataclass(frozen=True)
class Derive:
    """Columns that are parts of another one, such as the distortion in a file name.

    Attributes:
        pattern: Regular expression that its whole text matches; each named group becomes a column.
    """

    column: str
    pattern: str


@dataclass(frozen=True)
class Skip:
    """Rows of a label table that do not count.

    Attributes:
        pattern: Regular expression that its whole text matches.
    """

    column: str
    pattern: str


@dataclass(frozen=True)
class Archive:
    """A packed dataset and its table of labels.

    Attributes:
        images: The archive (zip, tar, tar.gz, ...).
        labels: A table, joined by column name.
        path: Where a row's image lies in the unpacked archive, with column names in braces; ``**/`` at its start
            stands for any folder.
        repeated: An image may stand in several rows, all of which say the same of it; it counts once.
    """

    images: RemoteFile
    labels: LabelFile
    path: str
    skip: Skip | None = None
    repeated: bool = False


@dataclass(frozen=True)
class DatasetSpec:
    """Everything that decides which images are scored and against what.

    Attributes:
        name: Name on the command line and in every table.
        version: Raised whenever the images, the labels or their reading change.
        images: Expected number of images; 0 if it is not known beforehand.
        columns: Where to find what in the dataset's own table.
        derive: Columns that are parts of another one.
        opinion: Meaning of the human scores; none if there are none.
        hub: Source: a Hub repository.
        archive: Source: an archive with a label table.
        folder: Source: a local folder, CSV or Parquet file, relative to the YAML file.
        generated: Source: a generator of this package.
        stream: Whether images are read from where they lie each time, and never kept: for sets larger than the disk.
        subset: Rows that count, as a value of the split column; empty: all of them.
        split: How supervised scorers are to be compared: the official part, ten splits disjoint by
            reference, or the whole set.
        unordered: Distortion types whose level is no severity: they take no part in D- and L-test.
        full_reference: Columns with full-reference qualities, higher better, for the P-test.
        resize: Pixels of the shorter side after resizing; 0: native size.
        exif: Whether a rotation stored in the file is applied.
        icc: Whether the colours of a profile stored in the file are converted to sRGB.
        seen_by: Training sets' names that contain these images; a scorer trained on one has seen them.
        notes: Traps, and what nobody could look at.
        example: The first line of the dataset's own table and some made-up rows as the real ones are written, with
            what is odd in them; the tests open the dataset with these.
        verified: What of this specification was tried on the real thing: ``run`` all of it, ``labels`` its whole
            label table, or ``nothing``, where only descriptions of the dataset were at hand.
    """

    name: str
    version: str
    description: str
    licence: str
    citation: str
    images: int = 0
    columns: Columns = field(default_factory=Columns)
    derive: Derive | None = None
    opinion: Opinion | None = None
    hub: Hub | None = None
    archive: Archive | None = None
    folder: str = ""
    generated: str = ""
    stream: bool = False
    subset: str = ""
    split: Literal["official", "ratio", "whole"] = "whole"
    unordered: tuple[str, ...] = ()
    full_reference: tuple[str, ...] = ()
    resize: int = 0
    exif: bool = True
    icc: bool = True
    seen_by: tuple[str, ...] = ()
    notes: str = ""
    example: str = ""
    verified: Literal["nothing", "labels", "run"] = "nothing"

    @property
    def key(self) -> str:
        """Name and version: what scores are stored under."""
        return f"{self.name}@{self.version}"

    @property
    def asked(self) -> frozenset[str]:
        """Columns of the dataset's own table that something is read from."""
        names = {*vars(self.columns).values(), *self.full_reference}
        if self.derive:
            names.add(self.derive.column)
        if self.archive:
            names |= set(fields(self.archive.path))
            names |= {self.archive.skip.column} if self.archive.skip else set()
        return frozenset(filter(None, names))

    @property
    def pinned(self) -> bool:
        """Whether the same bytes are read at any time; not so for a branch of a repository."""
        files = [self.archive.images, self.archive.labels] if self.archive else []
        if self.hub:
            return _is_commit(self.hub.revision)
        return all(bool(file.sha256) or not file.repository or _is_commit(file.revision) for file in files)

    @property
    def source(self) -> str:
        """Where the images come from, in a few words."""
        if self.hub:
            return f"Hub {self.hub.repository}"
        if self.archive:
            return f"archive {self.archive.images.file}"
        return f"generated ({self.generated})" if self.generated else "local folder"


def read_spec(path: str | Path) -> DatasetSpec:
    """Read one dataset specification.

    Args:
        path: A YAML file; see ``harness/data/catalogue`` for examples.

    Raises:
        ConfigError: Not YAML, an unknown or missing key or a value of the wrong type, named with its line.
    """
    spec = read_settings(path, DatasetSpec)
    if spec.folder:
        spec = dataclasses.replace(spec, folder=str(Path(path).parent / spec.folder))
    sources = [key for key in ("hub", "archive", "folder", "generated") if getattr(spec, key)]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        raise ConfigError(f"{path}: exactly one of hub, archive, folder, generated is needed, found {found}")
    if problem := _bad_name(spec) or _contradiction(spec):
        raise ConfigError(f"{path}: {problem}")
    try:
        _check_languages(spec)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return spec


@cache
def shipped_specs() -> Mapping[str, DatasetSpec]:
    """The specifications inside the package, by name."""
    return read_folder(SHIPPED)


def read_folder(folder: str | Path) -> Mapping[str, DatasetSpec]:
    """All specifications ``*.yaml`` of a folder, by name.

    Raises:
        ConfigError: The folder is not there, one file is invalid or two have the same name.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder}: not a folder with dataset YAML files")
    specs: dict[str, DatasetSpec] = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        spec = read_spec(path)
        if spec.name in specs:
            raise ConfigError(f"{path}: a dataset named {spec.name!r} exists already")
        specs[spec.name] = spec
    return types.MappingProxyType(specs)


def catalogue(include: Iterable[str | Path] = ()) -> Mapping[str, DatasetSpec]:
    """Shipped specifications and those of further folders.

    Raises:
        ConfigError: Two specifications share a name.
    """
    specs = dict(shipped_specs())
    for folder in include:
        for name, spec in read_folder(folder).items():
            if name in specs:
                raise ConfigError(f"{folder}: a dataset named {name!r} exists already")
            specs[name] = spec
    return specs


def find_spec(name: str, specs: Mapping[str, DatasetSpec]) -> DatasetSpec:
    """The specification of that name.

    Raises:
        DatasetError: Unknown name; suggests near ones.
    """
    if name in specs:
        return specs[name]
    raise DatasetError(f"no dataset and no folder named {name!r}{did_you_mean(name, specs, cutoff=0.4)}")


def _bad_name(spec: DatasetSpec) -> str:
    """What is wrong with a name, revision, address or path, all of which become parts of paths here."""
    files = {"images": spec.archive.images, "labels": spec.archive.labels} if spec.archive else {}
    optional = {"hub.repository": (spec.hub.repository, _REPOSITORY)} if spec.hub else {}
    optional |= {"hub.revision": (spec.hub.revision, _NAME)} if spec.hub else {}
    for key, file in files.items():
        optional[f"archive.{key}.repository"] = (file.repository, _REPOSITORY)
        optional[f"archive.{key}.revision"] = (file.revision, _NAME)
        optional[f"archive.{key}.address"] = (file.address, _ADDRESS)
        if not is_relative(file.file.removeprefix(ANYWHERE)):
            return f"archive.{key}.file is {file.file!r}, which leads out of its folder"
    wanted = {"name": (spec.name, _NAME), "version": (spec.version, _NAME)}
    for key, (text, form) in (wanted | {key: entry for key, entry in optional.items() if entry[0]}).items():
        if not re.fullmatch(form, text):
            return f"{key} is {text!r}, not of the form {_FORMS[form]}"
    return ""


_NAME = r"(?!\.\.?(?:/|$))[A-Za-z0-9._+-]+"
_REPOSITORY = f"{_NAME}/{_NAME}"
_ADDRESS = r"https?://\S+"
_FORMS = {_NAME: "letters, digits and . _ + -", _REPOSITORY: "owner/name", _ADDRESS: "https://..."}


def _contradiction(spec: DatasetSpec) -> str:
    if spec.stream and not (spec.hub or spec.archive):
        return "only a hub or an archive can be a stream"
    if bool(spec.opinion) != bool(spec.columns.opinion):
        return "opinion (what the scores mean) and columns.opinion (where they are) belong together"
    if (spec.subset or spec.split == "official") and not spec.columns.split:
        return "an official split or a subset needs columns.split"
    if spec.resize < 0 or spec.images < 0 or (spec.opinion and spec.opinion.votes < 0):
        return "resize, images and opinion.votes are 0 or more"
    if spec.opinion and not spec.opinion.range[0] < spec.opinion.range[1]:
        return f"opinion.range is {list(spec.opinion.range)}, the lowest and the highest value are needed"
    return ""


def _check_languages(spec: DatasetSpec) -> None:
    """Refuse patterns, paths and separators that are none, before the first row is read."""
    if spec.derive:
        Pattern(spec.derive.pattern, "derive.pattern")
    if not spec.archive:
        return
    if spec.archive.skip:
        Pattern(spec.archive.skip.pattern, "archive.skip.pattern")
    fields(spec.archive.path)
    separator = spec.archive.labels.separator
    if len(separator) != 1 or separator in '"\r\n':
        raise ConfigError(f"archive.labels.separator is {separator!r}, one character is needed")


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
