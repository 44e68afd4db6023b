"""Errors that name what is wrong. Every one is an input problem a user can mend, shown without a traceback."""


class QualiCLIPError(Exception):
    """Base of all declared errors of the plugin and the harness."""


class WeightsError(QualiCLIPError):
    """A weight name, file or download cannot be used."""


class ImageError(QualiCLIPError):
    """An image cannot be read or scored."""


class ConfigError(QualiCLIPError):
    """A configuration value, option or plan is invalid."""


class DatasetError(QualiCLIPError):
    """A dataset, its metadata or its photographs cannot be used."""
