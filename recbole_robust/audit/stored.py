"""Checks of results against what they name: the poison card on disk, and the split that their command makes."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_robust import results as run_results
from recbole_robust.audit.finding import Finding, run_check
from recbole_robust.config import Config
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.load import prepare
from recbole_robust.types import UserError

Results = Sequence[Mapping[str, Any]]

SPLIT_CHECK = "the split is the recorded one"


def cards_are_those_of_the_results(results: Results, root: Path) -> Finding:
    """The cards that are still there: readable, of the recorded hash, budget and targets, and of no more users."""
    found = [(result, card) for result in results if result.get("poison") and (card := _card_of(result, root))]
    n_gone = sum(bool(result.get("poison")) for result in results) - len(found)
    note = f"{len({card for _, card in found})} cards" + (
        f"; no longer there: those of {n_gone} results" if n_gone else ""
    )

    def check() -> Iterator[str]:
        loaded: dict[Path, PoisonCard | str] = {}
        for result, folder in found:
            if folder not in loaded:
                try:
                    loaded[folder] = PoisonCard.load(folder)
                except UserError as error:
                    loaded[folder] = str(error)
            card, poison = loaded[folder], result["poison"]
            if isinstance(card, str):
                yield card
                continue
            n_users = card.settings.get("n_genuine_users")
            pairs = {
                "poison.hash": (poison["hash"], card.digest()),
                "poison.n_fake_users": (poison["n_fake_users"], card.profiles.n_users),
                "poison.target_items": (poison["target_items"], card.target_items),
            }
            for name, (recorded, stored) in pairs.items():
                if recorded != stored:
                    yield f"{result['path']}: {name}: expected {stored} of the card {folder.name}, got {recorded}"
            if n_users is not None and result["n_genuine"] > n_users:
                yield (f"{result['path']}: n_genuine: expected at most the {n_users} genuine users of the card, "
                       f"got {result['n_genuine']}")  # fmt: skip

    return run_check("poison cards are those of the results", check, note)


def _card_of(result: Mapping[str, Any], root: Path) -> Path | None:
    """The folder of a result's card: where it was written, or where it is if the output folder has moved."""
    recorded, file = Path(result["poison"].get("card") or "none"), root / str(result["path"])
    places = (recorded, file.parent / recorded, file.parent.parent / "cards" / recorded.name)
    with contextlib.suppress(ValueError, OSError):  # a name that no file can have
        return next((place for place in places if place.is_dir()), None)
    return None


def split_is_the_recorded_one(results: Results, data_path: str | None = None) -> Finding:
    """Make the split of one result a data set and seed again, by its command, and compare the hash of its rows."""
    chosen = list(
        {(r.get("dataset"), r.get("seed"), r["split_hash"]): r for r in results if r.get("split_hash")}.values()
    )
    skipped: list[str] = []
    failures: list[str] = []
    for result in chosen:
        try:
            made = split_hash_of(result, data_path)
        except UserError as error:
            skipped.append(str(error))
            continue
        except Exception as error:  # whatever a command that is none of ours makes of the data
            skipped.append(f"{result['path']}: {type(error).__name__}: {error}")
            continue
        if made != result["split_hash"]:
            failures.append(f"{result['path']}: expected split {made}, made again, got {result['split_hash']}")
    note = f"{len(chosen) - len(skipped)} splits made again" + (
        f", {len(skipped)} not: {skipped[0]}" if skipped else ""
    )
    return Finding(SPLIT_CHECK, tuple(failures), note)


def split_hash_of(result: Mapping[str, Any], data_path: str | None = None) -> str:
    """The hash of the split that a result's command makes now.

    Raises:
        UserError: the data are not here, or the command needs files that are not in it.
    """
    arguments = shlex.split(result["command"])[2:]
    if any(argument.startswith("--config_files") for argument in arguments):
        raise UserError("its command reads further YAML files")
    with tempfile.TemporaryDirectory() as folder:
        keys = {"use_gpu": False, "log_tensorboard": False, "output_dir": folder}
        own = tuple(f"--{key}=" for key in (*keys, *(["data_path"] if data_path else [])))
        given = [argument for argument in arguments if argument.startswith("--") and not argument.startswith(own)]
        config = Config(config_dict=keys, command_line=[*given, *([f"--data_path={data_path}"] if data_path else [])])
        file = Path(config["data_path"]) / f"{config['dataset']}.inter"
        if not file.is_file():  # RecBole would try to download it
            raise UserError(f"no file {file} (--data_path)")
        loaders = prepare(config)  # RecBole's evaluation loaders sort the rows, and a run's hash is of these
        return run_results.split_hash([loader._dataset for loader in loaders])
