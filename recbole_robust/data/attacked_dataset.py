"""AttackedDataset: any RecBole data set, with fake users in its training split."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from recbole.utils.argument_list import dataset_arguments

from recbole_robust.compat import PandasSafeDataset
from recbole_robust.data.atomic_file import bad_number, check_atomic_file
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.heldout import heldout_split
from recbole_robust.data.injection import add_fake_users, append_rows, fake_interactions
from recbole_robust.data.leave_one_out import HELD_OUT, leave_one_out_rows, take_rows
from recbole_robust.data.newcomers import FAN_KEYS, Newcomers, hold_out_fans
from recbole_robust.data.noise import InteractionNoise
from recbole_robust.data.noisy_split import NoiseFlags, add_noise
from recbole_robust.data.poison import CHOICE_KEYS, Poison, targets_of
from recbole_robust.data.table_checks import check_named_columns, check_numerical, keep_tokens
from recbole_robust.data.user_folds import one_instance_a_user
from recbole_robust.data.views import RawLog, rating_grid
from recbole_robust.randomness import global_state_kept
from recbole_robust.types import FakeProfiles, UserError

logger = logging.getLogger(__name__)

# RecBole compares these keys before it takes a saved data set or saved loaders: with the poison and the held-out rows
# among them a cache made under one attack, or one split, is never taken under another.
dataset_arguments.extend(key for key in ("poison_hash", "heldout_file") if key not in dataset_arguments)

DOWNLOAD_TIMEOUT = 5.0  # seconds until a data set that is not there counts as "offline"


if TYPE_CHECKING:
    from recbole.data.dataset import Dataset as _Base  # what the mixin is mixed into
else:
    _Base = object


class AttackedMixin(PandasSafeDataset, _Base):
    """Overrides of RecBole's ``Dataset``: remember the raw ratings, split as told, then noise and poison for training.

    Attributes:
        raw_log: ratings and times as in the file (RecBole may normalise or drop the columns).
        rating_range, rating_step: the rating grid, in stars.
        n_fake_users, n_genuine_rows: of this split. Valid and test splits have no fake rows.
        card: the poison that was injected, or None.
        profiles: its fake profiles with 0-based item ids, or None.
        noise_flags: which rows of this split are noise, or None; for evaluation only.
        counts_before_noise: item counts of the training split without noise, or None where it has none.
        newcomers: the users that ``new_fans`` has held out of the data, or None.
    """

    n_fake_users = 0
    n_genuine_rows = 0
    card: PoisonCard | None = None
    profiles: FakeProfiles | None = None
    noise_flags: NoiseFlags | None = None
    counts_before_noise: np.ndarray | None = None
    newcomers: Newcomers | None = None
    base_cls: type
    time_field: str | None
    inter_feat: Any

    def __init__(
        self, config, poison: Poison | PoisonCard | None = None, noise: InteractionNoise | None = None
    ) -> None:
        self.config, self.poison, self.noise = config, poison, noise
        config["poison_hash"] = self.fingerprint() or None
        self._hidden: list[str | None] = []
        self._raw_columns: list[str] = []
        self._spans: dict[str, tuple[float, float]] = {}
        self._pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        super().__init__(config)

    # --- loading --------------------------------------------------------------------------------------------------

    def _get_load_and_unload_col(self, source):
        """Load ratings and times for the attacker even where the model does not; :meth:`_fill_nan` drops them again."""
        load_col, unload_col = super()._get_load_and_unload_col(source)
        if getattr(source, "value", source) != "inter" or not (load_col or unload_col):
            return load_col, unload_col
        for name in (self.config["RATING_FIELD"], self.time_field):
            if load_col and name not in load_col:
                load_col = load_col | {name}
                if name != self.time_field or not hasattr(self, "data_augmentation"):  # sequences need their times
                    self._hidden.append(name)
            elif unload_col and name in unload_col:
                unload_col = unload_col - {name}
                self._hidden.append(name)
        return load_col, unload_col

    def _load_feat(self, filepath, source):
        layout = (filepath, self.config["field_separator"], self.config["encoding"])
        kind = getattr(source, "value", source)
        is_inter = kind == "inter"
        types = {self.config["RATING_FIELD"]: "float", self.time_field: "float"} if is_inter else {}
        check_atomic_file(*layout, {self.uid_field: "token", self.iid_field: "token", **types})
        try:
            feat = super()._load_feat(filepath, source)
            if feat is not None:
                keep_tokens(feat, layout, [self.uid_field, self.iid_field], self.time_field, is_inter)
        except UserError:
            raise
        except (ValueError, KeyError, IndexError, pd.errors.ParserError) as error:
            reason = bad_number(*layout) or f"not an atomic file of RecBole's: {' '.join(str(error).split())}"
            raise UserError(f"{filepath}: {reason}") from None
        if is_inter:
            for name in (self.uid_field, self.iid_field):
                if feat is None or name not in feat:
                    found = "none" if feat is None else ", ".join(feat.columns)
                    raise UserError(f"{filepath}: expected a column {name}:token (load_col), got {found}")
            if feat.empty:
                raise UserError(f"{filepath}: expected rows below the header, got none")
        if hasattr(self.config, "columns_given"):  # RecBole's own Config has no layers to tell from
            check_named_columns(feat, filepath, self.config.columns_given(), kind)
        return feat

    def _load_inter_feat(self, token, dataset_path):
        names = self.benchmark_filename_list
        files = [f"{token}.inter"] if names is None else [f"{token}.{name}.inter" for name in names]
        for name in files:
            if not os.path.isfile(os.path.join(dataset_path, name)):
                raise UserError(f"dataset: expected a file {os.path.join(dataset_path, name)}, got none")
        super()._load_inter_feat(token, dataset_path)
        if self.config["new_fans"]:
            self._hold_out_fans()

    def _load_user_or_item_feat(self, token, dataset_path, source, field_name):
        """Who is held out has no row in the user features either: their ids are made of both tables."""
        feat = super()._load_user_or_item_feat(token, dataset_path, source, field_name)
        if feat is None or self.newcomers is None or field_name != "uid_field":
            return feat
        return feat[~feat[self.uid_field].isin(self.newcomers.users)].reset_index(drop=True)

    def _hold_out_fans(self) -> None:
        """Take out the users that ``new_fans`` wants held out, before there are ids and splits."""
        config = self.config
        wanted = config["target_items"]
        if isinstance(wanted, str):
            wanted = (config["target_sets"] or {}).get(self.dataset_name, {}).get(wanted)
        if not wanted or self.benchmark_filename_list is not None:
            got = "none" if not wanted else "a data set that is split already (benchmark_filename)"
            raise UserError(f"new_fans: expected target_items whose fans are held out, got {got}")
        fields = (self.uid_field, self.iid_field, config["RATING_FIELD"], self.time_field)
        self.inter_feat, self.newcomers = hold_out_fans(
            self.inter_feat, fields, [str(token) for token in wanted], config["new_fans"], config["seed"]
        )

    def _download(self):
        """RecBole's download, with one clear line where the data set is unknown or the machine is offline."""
        where = f"put {self.dataset_name}.inter into {self.dataset_path} (dataset/README.md says how)"
        try:
            url = self._get_download_url("url")
        except ValueError:
            raise UserError(f"dataset: {self.dataset_name!r} is neither in {self.dataset_path} nor one that RecBole "
                            f"can download; {where}") from None  # fmt: skip
        host = urlparse(url).hostname
        try:
            _reach(url)
            super()._download()
        except (OSError, RuntimeError, EOFError, BadZipFile) as error:
            if not os.path.isfile(os.path.join(self.dataset_path, f"{self.dataset_name}.inter")):
                shutil.rmtree(self.dataset_path, ignore_errors=True)  # half a download; it was not there before
            raise UserError(f"dataset: {self.dataset_name!r} is not in {self.dataset_path} and cannot be had from "
                            f"{host} ({error}); {where}") from None  # fmt: skip

    def _remove_duplication(self):
        """RecBole sorts by time first where times are loaded; a hidden column must not change what the victim sees."""
        time_field = self.time_field
        self.time_field = None if time_field in self._hidden else time_field
        super()._remove_duplication()
        self.time_field = time_field

    def _filter_by_inter_num(self):
        super()._filter_by_inter_num()
        if len(self.inter_feat) == 0:
            raise UserError(f"dataset: expected interactions after the filters, got none of {self.dataset_name}'s")

    # --- ratings --------------------------------------------------------------------------------------------------

    def _fill_nan(self):
        """Keep the raw ratings (before RecBole fills gaps by the mean), then drop what only the attacker needed."""
        rating, feat = self.config["RATING_FIELD"], self.inter_feat
        columns = {name: feat[name].to_numpy() if name in feat else None for name in (rating, self.time_field)}
        users, items = feat[self.uid_field].to_numpy(), feat[self.iid_field].to_numpy()
        self.raw_log = RawLog.of(users, items, self.item_num, columns[rating], columns[self.time_field])
        (low, high), step = rating_grid(self.raw_log.ratings)
        given = self.config["rating_range"]
        self.rating_range = (float(given[0]), float(given[1])) if given and columns[rating] is not None else (low, high)
        self.rating_step = float(self.config["rating_step"] or step)
        self._check_ratings()
        super()._fill_nan()
        for name in self._hidden:
            if name in self.inter_feat and name not in (self.config["threshold"] or {}):
                self._del_col(self.inter_feat, name)
        self._hidden = []

    def _check_ratings(self) -> None:
        """Ratings must be there, finite and in range where somebody needs them: an explicit model or an attack."""
        explicit = getattr(self.config, "is_explicit", False)
        name, ratings = f"{self.dataset_name}: {self.config['RATING_FIELD']}", self.raw_log.ratings
        if ratings is None:
            if explicit:
                raise UserError(f"{name}: {self.config['model']} learns ratings, expected a column "
                                f"{self.config['RATING_FIELD']}:float in the .inter file, got none")  # fmt: skip
        elif explicit or self.poison is not None or self.config["attack"]:
            low, high = self.config["rating_range"] or (-np.inf, np.inf)
            bad = np.flatnonzero(~(np.isfinite(ratings) & (ratings >= low) & (ratings <= high)))
            if len(bad):
                user, item = divmod(int(self.raw_log.keys[bad[0]]), self.item_num)
                user, item = self.id2token(self.uid_field, user), self.id2token(self.iid_field, item)
                expected = "finite numbers" if np.isinf(low) else f"ratings in [{low}, {high}] (rating_range)"
                raise UserError(f"{name}: expected {expected}, got {ratings[bad[0]]} in {len(bad)} rows "
                                f"(first: user {user}, item {item})")  # fmt: skip

    def _normalize(self):
        """Remember the span of what RecBole normalises, so that fake ratings can be mapped the same way."""
        tables = self.inter_feat, self.user_feat, self.item_feat
        check_numerical(tables, self.dataset_name, self.config["numerical_features"] or [])
        spans = {}
        for name in self.inter_feat:
            if pd.api.types.is_float_dtype(self.inter_feat[name]):
                spans[name] = (float(self.inter_feat[name].min()), float(self.inter_feat[name].max()))
        super()._normalize()
        wanted = spans if self.config["normalize_all"] else self.config["normalize_field"] or []
        self._spans = {name: spans[name] for name in wanted if name in spans}

    def _discretization(self):
        """Remember what RecBole makes of the values of numerical features: pairs of a base and an index."""
        names = [name for name in self.config["numerical_features"] or [] if name in self.inter_feat]
        before = {name: np.unique(self.inter_feat[name].to_numpy(), return_index=True) for name in names}
        super()._discretization()
        for name, (values, first) in before.items():
            self._pairs[name] = values, np.array([self.inter_feat[name].iloc[row] for row in first])

    def as_processed(self, name: str, values) -> np.ndarray:
        """Raw values of a column as RecBole's normalisation and discretisation map them (the nearest genuine value)."""
        values = np.asarray(values, dtype=np.float64)
        if name in self._spans:
            low, high = self._spans[name]
            values = np.ones(len(values)) if low == high else (values - low) / (high - low)
        if name in self._pairs:
            known, pairs = self._pairs[name]
            right = np.searchsorted(known, values).clip(max=len(known) - 1)
            left = (right - 1).clip(min=0)
            values = pairs[np.where(values - known[left] <= known[right] - values, left, right)]
        return values

    def survives_filters(self, raw: dict) -> np.ndarray:
        """Which fake rows the victim's ``val_interval`` keeps. Shape: ``(n_rows,)``, bool."""
        n_rows = max(len(v) for v in raw.values() if v is not None)
        keep = np.ones(n_rows, dtype=bool)
        for name, interval in (self.config["val_interval"] or {}).items():
            if raw.get(name) is not None:
                keep &= self._within_intervals(np.asarray(raw[name]), self._parse_intervals_str(interval))
        return keep

    def _change_feat_format(self):
        """Remember the columns that a row has before sequence augmentation adds its lists."""
        names, suffix = list(self.inter_feat), self.config["LIST_SUFFIX"] or ""
        if hasattr(self, "data_augmentation"):  # a benchmark file has the lists already
            lists = {name + suffix for name in names} | {self.item_list_length_field}
            names = [name for name in names if name not in lists]
        self._raw_columns = names
        super()._change_feat_format()

    def raw_columns(self) -> list[str]:
        """The columns of a training row before sequence augmentation adds its lists."""
        return [name for name in self._raw_columns if name in self.inter_feat]

    # --- splitting and poisoning ----------------------------------------------------------------------------------

    def leave_one_out(self, group_by, leave_one_mode):
        if self.config["heldout_file"]:
            return heldout_split(self, self.config["heldout_file"], keep_valid=leave_one_mode == "valid_and_test")
        if group_by is None or leave_one_mode not in HELD_OUT:
            return super().leave_one_out(group_by, leave_one_mode)  # RecBole says what is wrong
        return take_rows(self, leave_one_out_rows(self.inter_feat[group_by].numpy(), leave_one_mode))

    def fingerprint(self) -> str:
        """What a cache of these data is compared by: noise, new fans and poison, and the targets that noise spares."""
        parts = [self.noise.fingerprint()] if self.noise is not None else []
        if self.config["new_fans"]:
            fans = repr([self.config[key] for key in FAN_KEYS])
            parts.append(hashlib.sha256(fans.encode()).hexdigest()[:12])
        if self.poison is not None:
            parts.append(self.poison.fingerprint())
        elif self.noise is not None:
            targets = repr([self.config[key] for key in CHOICE_KEYS])
            parts.append(hashlib.sha256(targets.encode()).hexdigest()[:12])
        return "-".join(parts)

    def build(self):
        """RecBole's split; then noise in the training split; then the poison, planned on that or replayed, is appended.

        The global random state afterwards is that of the clean split, whatever noise and attack have drawn.
        """
        self._check_ratings()
        splits = super().build()
        if self.config["user_folds"]:
            splits = one_instance_a_user(splits, self.config["user_folds"], self.config["seed"])
        if self.noise is not None:
            settings = self.poison or self.config
            # RecBole's own Config has no such keys.
            names_targets = self.poison is not None or self.config["n_targets"] or self.config["target_items"]
            with global_state_kept():
                add_noise(self.noise, splits, targets_of(settings, splits[0]) if names_targets else [])
        splits[0].n_genuine_rows = len(splits[0].inter_feat)
        if self.poison is not None:
            with global_state_kept():
                self._poison(splits)
        return splits

    def _poison(self, splits) -> None:
        assert self.poison is not None
        train = splits[0]
        self.card = self.poison.plan(train)
        profiles = self.card.to_ids(train)
        seed = int(self.card.digest(), 16)
        add_fake_users(self, splits, profiles.n_users, seed)
        for part in (self, *splits):
            part.n_fake_users, part.card = profiles.n_users, self.card
        train.profiles = profiles
        append_rows(train, fake_interactions(train, profiles, seed), seed)

    def __reduce__(self):  # the class is made on the fly: tell pickle how to make it again
        return _restore, (type(self).base_cls,), self.__dict__


def _reach(url: str) -> None:
    """Connect to the host of a URL, or to the proxy for it, so that a machine that is offline is told in seconds.

    Raises:
        OSError: nobody answers.
    """
    address = urlparse(url)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlparse(proxy if "//" in proxy else f"//{proxy}")
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname, port), timeout=DOWNLOAD_TIMEOUT).close()


def _restore(base_cls):
    attacked = AttackedDataset(base_cls)
    return object.__new__(attacked)


@functools.cache
def AttackedDataset(base_cls: type) -> type:
    """The attacked form of a RecBole data set class: call it with ``(config, poison, noise)``.

    ``poison`` is a :class:`Poison` (attack, targets, budget), a :class:`PoisonCard` to replay, or None for the clean
    data. Valid and test rows, item ids and the genuine prefix of the training rows are those of the clean run.
    ``noise`` is an :class:`InteractionNoise` or None; the attacker sees the noisy training rows, as he would.

    Example::

        poison = Poison(Average(), target_items=["1019"], attack_size=0.03, n_fillers=20)
        dataset = AttackedDataset(Dataset)(config, poison)
        train_data, valid_data, test_data = data_preparation(config, dataset)
    """
    return type(f"Attacked{base_cls.__name__}", (AttackedMixin, base_cls), {"base_cls": base_cls})
