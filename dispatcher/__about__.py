"""The version, read by the build, the User-Agent and `build_info`."""

__version__ = "0.1.0"
