"""Where ``properties/`` lies: inside the package once installed, beside it in the source tree."""

from __future__ import annotations

from pathlib import Path


def properties_dir() -> Path:
    """Return the folder of our YAML layers.

    The package's own ``properties`` where it holds ``overall.yaml`` (a wheel or an sdist was installed), else the
    folder of that name beside the package (a source tree or an editable install).
    """
    package = Path(__file__).resolve().parent
    installed = package / "properties"
    return installed if (installed / "overall.yaml").is_file() else package.parent / "properties"
