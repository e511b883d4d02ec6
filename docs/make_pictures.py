"""Make the README's pictures and the reports of results/ from the committed JSON files: `python docs/make_pictures.py`.

It takes about a minute. `--check` writes nothing, names the files that would change, and exits with 1 if there are any;
names of folders in results/ (`apt_ml-1m`) restrict it to these, and to the pictures that they alone make.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from recbole_robust.report import load_pages, write_report, write_text
from recbole_robust.report.pictures import attacks_picture, defenses_picture
from recbole_robust.sweep.page import TRIALS_FILE, write_page

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
PICTURES = {  # the README's: the file, and the folders whose numbers it shows
    "docs/pictures/attacks.svg": ("attacks_ml-100k", "attacks_ml-1m"),
    "docs/pictures/defenses.svg": ("purifyaug_table1_ml-100k",),
}


def readme_picture(name: str) -> str:
    """One of :data:`PICTURES`, drawn from the files."""
    pages = [page for folder in PICTURES[name] for page in load_pages(RESULTS / folder)]
    drawn = attacks_picture(pages) if "attacks" in name else defenses_picture(pages[0], pages[0].datasets[0])
    if drawn is None:
        raise ValueError(f"{name}: {' and '.join(PICTURES[name])} have nothing to show")
    return drawn


def folders() -> list[str]:
    """The folders of results/ that hold a report."""
    return sorted(path.parent.name for path in RESULTS.glob("*/report.md"))


def rendered(folder: str) -> dict[str, str]:
    """The report of one folder and its pictures: path in the repository to text."""
    with tempfile.TemporaryDirectory() as scratch:
        if (RESULTS / folder / TRIALS_FILE).is_file():
            write_page(RESULTS / folder, Path(scratch) / "report.md")
        else:
            write_report(RESULTS / folder, Path(scratch) / "report.md", pictures=True)
        return {f"results/{folder}/{path.name}": path.read_text("utf-8") for path in sorted(Path(scratch).iterdir())}


def main(arguments: list[str]) -> int:
    chosen = [name for name in arguments if not name.startswith("--")] or folders()
    texts = {path: text for folder in chosen for path, text in rendered(folder).items()}
    texts |= {name: readme_picture(name) for name, its in PICTURES.items() if set(its) <= set(chosen)}
    changed = [
        path
        for path, text in texts.items()
        if not (REPOSITORY / path).is_file() or (REPOSITORY / path).read_text(encoding="utf-8") != text
    ]
    if "--check" in arguments:
        sys.stdout.writelines(f"{path}\n" for path in changed)
        return int(bool(changed))
    for path in changed:
        write_text(REPOSITORY / path, texts[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
