"""The one place that states the version; setup.py and CMakeLists.txt read this line."""

__version__ = "0.1.0"
