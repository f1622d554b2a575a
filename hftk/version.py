"""The version of hftk."""

__version__ = "0.1.0"
