"""Poison cards: the fake profiles of an attack as a folder that can be stored, checked, and replayed on any model.

A card is a folder with two files: ``<dataset>.inter``, the fake profiles as a RecBole atomic file, and ``poison.json``,
which says how they came about.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from recbole_robust.data.card_rows import folder_written_whole, rows_from_text, rows_to_text
from recbole_robust.data.injection import fake_tokens
from recbole_robust.json_kinds import MAPPING, TEXT, Kind, is_whole, short
from recbole_robust.types import AttackerView, FakeProfiles, UserError

SCHEMA_VERSION = 2
CARD_FILE = "poison.json"
LARGEST = float(np.finfo(np.float64).max)
_OWN_KEYS = ("schema_version", "content_hash", "hash", "dataset", "target_items", "labels", "n_rows")


@dataclass(frozen=True)
class PoisonCard:
    """Fake profiles that can be stored and replayed on any model: items by token, the settings beside them.

    Attributes:
        item_tokens: the tokens that ``profiles.item_ids`` index. Shape: ``(n_tokens,)``.
        settings: attack, its hyper-parameters, budget, seed and so on, as JSON values; further keys of poison.json.
    """

    dataset: str
    target_items: list[str]
    item_tokens: list[str]
    profiles: FakeProfiles
    settings: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for what is injected: data set, targets and rows, in their order."""
        named = [self.item_tokens[i] for i in self.profiles.item_ids.tolist()]
        numbers = dataclasses.replace(self.profiles, item_ids=np.arange(len(named)))  # the items are told by name
        parts = "\x1f".join([self.dataset, *self.target_items, "", *named, numbers.digest()])
        return hashlib.sha256(parts.encode()).hexdigest()[:12]

    @property
    def is_control(self) -> bool:
        """Whether those who join are genuine users (the control Organic)."""
        return self.settings.get("attack") == "Organic"

    def fingerprint(self) -> str:
        """What a cache of poisoned data is compared by."""
        return self.digest()

    def plan(self, train) -> PoisonCard:
        """Itself: a card is replayed, whatever the split."""
        return self

    def to_ids(self, train) -> FakeProfiles:
        """The profiles with the 0-based item ids of ``train``.

        Raises:
            UserError: the card is of another data set, names an item that this one does not have, or has ratings that
                this one cannot have.
        """
        name = train.dataset_name
        if self.dataset != name:
            raise UserError(f"poison: expected a card for {name}, got one for {self.dataset}")
        token2id = train.field2token_id[train.iid_field]
        missing = [token for token in (*self.item_tokens, *self.target_items) if token not in token2id]
        if missing:
            raise UserError(f"poison: expected items of {name}, got unknown {', '.join(missing[:5])}")
        if train.raw_log.ratings is not None and not self.has_ratings:
            raise UserError(f"poison: expected a card with ratings, as {name} has them, got one without")
        low, high = train.rating_range
        bad = self.profiles.ratings[~((self.profiles.ratings >= low) & (self.profiles.ratings <= high))]
        if len(bad):
            raise UserError(f"poison: expected ratings in [{low:g}, {high:g}], as {name} has them, got {bad[0]:g}")
        ids = np.array([token2id[token] for token in self.item_tokens], dtype=np.int64) - 1
        return dataclasses.replace(self.profiles, item_ids=ids[self.profiles.item_ids])

    @property
    def has_ratings(self) -> bool:
        """Whether the data set that the card was made for has ratings; else each fake one is a 1 that says nothing."""
        return self.settings.get("rating_range", True) is not None

    def content(self) -> dict[str, Any]:
        """What poison.json says, less the hash of all of it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "hash": self.digest(),
            "dataset": self.dataset,
            "target_items": self.target_items,
            **self.settings,
            "n_rows": len(self.profiles.item_ids),
            "labels": fake_tokens(self.profiles.n_users),  # the user tokens that are fake
        }

    def save(self, folder: str | Path) -> None:
        """Write the card as a folder, whole or not at all; an equal card that is there already is kept.

        Raises:
            UserError: something else than a card is in the way.
        """
        folder, content = Path(folder), self.content()
        if _content_hash_of(folder) == content_hash(content):
            return
        files = {CARD_FILE, f"{self.dataset}.inter"}
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= files):
            raise UserError(f"poison: {folder}: expected a folder for a card, got something else there")
        try:
            rows = rows_to_text(self.item_tokens, self.profiles, self.has_ratings)
        except ValueError as error:
            raise UserError(f"poison: {error}") from None
        with folder_written_whole(folder) as temporary:
            (temporary / f"{self.dataset}.inter").write_text(rows, encoding="utf-8", newline="\n")
            told = {**content, "content_hash": content_hash(content)}
            (temporary / CARD_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | Path) -> PoisonCard:
        """Read a card: its folder, or the poison.json in it.

        Raises:
            UserError: not there, not a card, or changed since it was written.
        """
        path = Path(path)
        if path.is_file() and path.name != CARD_FILE:
            raise UserError(f"poison: {path}: expected a poison card, which is a folder with {CARD_FILE}, got a file")
        place = card_folder(path) / CARD_FILE if path.exists() else path
        _check_is_inside(place)
        try:
            content = json.loads(place.read_text(encoding="utf-8"))
            if content["schema_version"] != SCHEMA_VERSION:
                found = content["schema_version"]
                raise UserError(
                    f"poison: {place}: expected schema_version {SCHEMA_VERSION}, got {found}; make it again"
                )
            dataset, labels = _text(content["dataset"]), content["labels"]
            if dataset != Path(dataset).name or "\0" in dataset or labels != fake_tokens(len(labels)):
                raise ValueError("expected the name of a data set and the tokens of fake users")
            targets = [_text(token) for token in content["target_items"]]
            settings = {key: value for key, value in content.items() if key not in _OWN_KEYS}
            recorded = content.pop("content_hash")
            _check_settings(settings, len(labels), place)
        except OSError as error:
            raise UserError(f"poison: {place}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"poison: {place}: expected a poison card, got {reason}") from None
        place = place.with_name(f"{dataset}.inter")
        _check_is_inside(place)
        try:
            tokens, profiles = rows_from_text(place.read_text(encoding="utf-8"), len(labels))
            profiles.check(AttackerView(csr_matrix((1, len(tokens))), -LARGEST, LARGEST, 0.0))  # no item twice
        except OSError as error:
            raise UserError(f"poison: {place}: {error.strerror or error}") from None
        except ValueError as error:
            raise UserError(f"poison: {place}: {' '.join(str(error).split())}") from None
        if labels and not len(profiles.item_ids):
            raise UserError(f"poison: {place}: expected rows of the card's {len(labels)} fake users, got none")
        card = cls(dataset, targets, tokens, profiles, settings)
        found = content_hash(content)
        if recorded == found and content != card.content():  # the rows are others
            recorded, found = content["hash"], card.digest()
        if recorded != found:
            raise UserError(f"poison: {place.parent}: expected contents of hash {recorded}, got {found}")
        return card


def content_hash(content: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of all that a card says; the rows are in it by their own hash."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def card_folder(path: str | Path) -> Path:
    """The folder of a card that is named by its folder or by its poison.json."""
    path = Path(path)
    return path.parent if path.name == CARD_FILE else path


def files_digest(path: str | Path) -> str:
    """A SHA-256 of the bytes of a card's files, valid or not; empty where there is none."""
    files = [file for file in sorted(card_folder(path).glob("*")) if file.name == CARD_FILE or file.suffix == ".inter"]
    if not files:
        return ""
    return bytes_digest(file for file in files if file.is_file())


def bytes_digest(files: Iterable[Path]) -> str:
    """A SHA-256 of the contents of some files, in their order."""
    return hashlib.sha256(b"\x1f".join(file.read_bytes() for file in files)).hexdigest()


def _content_hash_of(folder: Path) -> str | None:
    """The hash of the card that is stored there, or None where there is none or it is damaged."""
    try:
        return content_hash(PoisonCard.load(folder).content())
    except UserError:
        return None


def _check_is_inside(place: Path) -> None:
    """A card from somebody else reads nothing but its own files."""
    if place.is_symlink() and place.resolve().parent != place.parent.resolve():
        raise UserError(f"poison: {place}: expected a file of the card, got a link out of its folder")


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _check_settings(settings: dict[str, Any], n_labels: int, place: Path) -> None:
    """The settings that are read have the kind that a run and a report expect; what is not there, or null, is passed.

    Raises:
        UserError: names the setting, what was expected and what came.
    """
    kinds: dict[str, Kind] = {
        "attack": TEXT,
        "attack_args": MAPPING,
        "seed": ("a whole number", _is_count),
        "n_fake_users": (f"{n_labels}, as the labels say", lambda v: _is_count(v) and v == n_labels),
        "n_fillers": ("a whole number", _is_count),
        "rating_range": (
            "[lowest, highest]",
            lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)) and v[0] <= v[1],
        ),
        "stealth": (
            "a mapping of names to numbers",
            lambda v: isinstance(v, dict) and all(one is None or _is_number(one) for one in v.values()),
        ),
    }
    for name, (expected, allows) in kinds.items():
        value = settings.get(name)
        if value is not None and not allows(value):
            raise UserError(f"poison: {place}: {name}: expected {expected}, got {short(value)}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    value.encode()  # half a letter (\\ud800) is an error that its caller tells
    return value
