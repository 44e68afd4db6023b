"""What a dataset is: short YAML files turned into frozen records, and the catalogue of those that ship."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from qualiclip_plugin.documents import read_yaml
from qualiclip_plugin.errors import ConfigError, DatasetError, did_you_mean

SHIPPED = Path(__file__).parents[1] / "datasets"


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the dataset's own table; empty where it has none.

    Attributes:
        image: Image, or file name of the image.
        opinion: Human opinion score.
        std: Standard deviation of the opinions of one image.
        votes: Number of opinions of one image.
        reference: Content: which photograph a distorted image comes from.
        distortion: Kind of distortion.
        level: Severity, 0 pristine, higher worse.
        split: Official part of the dataset a row belongs to.
    """

    image: str = "file_name"
    opinion: str = ""
    std: str = ""
    votes: str = ""
    reference: str = ""
    distortion: str = ""
    level: str = ""
    split: str = ""


@dataclass(frozen=True)
class Opinion:
    """Meaning of the opinion scores.

    Attributes:
        kind: ``mos`` or ``dmos``, as the dataset's authors call it.
        lower_better: The declared direction: KADID's "dmos" is higher-better, CSIQ's is not.
        range: Lowest and highest value that may occur.
    """

    kind: Literal["mos", "dmos"]
    lower_better: bool
    range: tuple[float, float]


@dataclass(frozen=True)
class Hub:
    """A Hugging Face repository that ``datasets.load_dataset`` reads directly.

    Attributes:
        repository: ``owner/name``.
        split: Which of its splits.
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
        revision: Commit of the repository.
        sha256: Expected hash; empty where unknown: then the first download's hash is kept and checked.
        bytes: Expected size; 0 where unknown.
    """

    file: str
    address: str = ""
    repository: str = ""
    revision: str = "main"
    sha256: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Skip:
    """Rows of a label table that do not count.

    Attributes:
        column: Which column decides.
        pattern: Regular expression that its whole text matches.
    """

    column: str
    pattern: str


@dataclass(frozen=True)
class Archive:
    """A packed dataset and its table of labels.

    Attributes:
        images: The archive (zip, tar, tar.gz, ...).
        labels: A CSV, joined by column name; without address and repository it lies in the archive.
        path: Where a row's image lies in the unpacked archive, with column names in braces.
        skip: Rows that do not count.
    """

    images: RemoteFile
    labels: RemoteFile
    path: str
    skip: Skip | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """Everything that decides which images are scored and against what.

    Attributes:
        name: Name on the command line and in every table.
        version: Raised whenever the images, the labels or their reading change.
        description: One sentence.
        licence: Terms of the images, in words.
        citation: Whom to cite.
        images: Expected number of images; 0 where it is not known beforehand.
        columns: Where to find what in the dataset's own table.
        opinion: Meaning of the human scores; none where there are none.
        hub: Source: a Hub repository.
        archive: Source: an archive with a label table.
        folder: Source: a local folder, CSV or Parquet file, relative to the YAML file.
        generated: Source: a generator of this package.
        subset: Rows that count, as a value of the split column; empty: all of them.
        split: How supervised scorers are to be compared: the official part, ten splits disjoint by
            reference, or the whole set.
        full_reference: Columns with full-reference qualities, higher better, for the P-test.
        resize: Pixels of the shorter side after resizing; 0: native size.
        exif: Whether a rotation stored in the file is applied.
        seen_by: Training sets' names that contain these images; a scorer trained on one has seen them.
        notes: Traps.
        ran: Whether this specification has been run by the project.
    """

    name: str
    version: str
    description: str
    licence: str
    citation: str
    images: int = 0
    columns: Columns = Columns()
    opinion: Opinion | None = None
    hub: Hub | None = None
    archive: Archive | None = None
    folder: str = ""
    generated: str = ""
    subset: str = ""
    split: Literal["official", "ratio", "whole"] = "whole"
    full_reference: tuple[str, ...] = ()
    resize: int = 0
    exif: bool = True
    seen_by: tuple[str, ...] = ()
    notes: str = ""
    ran: bool = False

    @property
    def key(self) -> str:
        """Name and version: what scores are stored under."""
        return f"{self.name}@{self.version}"

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
        path: A YAML file; see ``harness/datasets`` for examples.

    Raises:
        ConfigError: Not YAML, an unknown or missing key or a value of the wrong type, named with its line.
    """
    values, node = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(values).__name__}")
    lines = _line_numbers(node)
    spec: DatasetSpec = _build(DatasetSpec, values, lines, str(path), "")
    if spec.folder:
        spec = dataclasses.replace(spec, folder=str(Path(path).parent / spec.folder))
    sources = [key for key in ("hub", "archive", "folder", "generated") if getattr(spec, key)]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        raise ConfigError(f"{path}: exactly one of hub, archive, folder, generated is needed, found {found}")
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


def _line_numbers(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            lines |= _line_numbers(value, f"{name}.")
    return lines


def _build(cls: Any, values: Any, lines: Mapping[str, int], path: str, prefix: str) -> Any:
    where = f"{path}, line {lines.get(prefix.rstrip('.'), 1)}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.')} needs keys, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(fields)}"
            raise ConfigError(f"{path}, line {lines.get(prefix + str(key), 1)}: unknown key {prefix}{key}{hint}")
    missing = [name for name, field in fields.items() if name not in values and _required(field)]
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(prefix + name for name in missing)}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], values[key], lines, path, prefix + key) for key in values})


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, lines: Mapping[str, int], path: str, name: str) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if isinstance(hint, types.UnionType):
        return None if value is None else _value(options[0], value, lines, path, name)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, lines, path, f"{name}.")
    if typing.get_origin(hint) is Literal:
        if value in options:
            return value
        expected = " or ".join(map(str, options))
    elif typing.get_origin(hint) is tuple:
        number = options[0] is float
        size = len(options) if number else None
        if isinstance(value, list) and size in (None, len(value)) and all(_is(options[0], item) for item in value):
            return tuple(map(options[0], value))
        expected = "two numbers" if number else "a list of words"
    elif _is(hint, value):
        return hint(value)
    else:
        expected = {str: "text (in quotes)", int: "a whole number", bool: "true or false"}[hint]
    raise ConfigError(f"{path}, line {lines.get(name, 1)}: {name} must be {expected}, got {value!r}")


def _is(kind: type, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)
