"""result.json: its keys, its name, and how it is written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import shlex
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from recbole.utils.logger import RemoveColorFilter

import recbole_robust
from recbole_robust.complaints import SuspectedKeys, complaint_of_recbole
from recbole_robust.config import Config
from recbole_robust.data.card import bytes_digest, files_digest
from recbole_robust.json_kinds import MAPPING, NUMBER, TEXT, TEXTS, WHOLE, Kind, are_metrics, is_number, or_null, short
from recbole_robust.types import Outcome, UserError
from recbole_robust.whole_files import written_whole

if TYPE_CHECKING:
    from recbole_robust.poisoning import StoredCard

SCHEMA_VERSION = 1
NOT_OF_A_RUN = (  # files and folders that stand above a run (docs/principles.md): no result depends on them
    "statistics.py", "grid.py", "reuse.py", "schedule.py", "cluster.py", "benchmark.py", "cli.py",
    "sweep", "report", "audit",
)  # fmt: skip
SHOWN = (
    "model", "dataset", "protocol", "attack", "defense", "seed", "config", "poison", "clean", "attacked", "lift",
    "baseline", "detection", "recognition", "target_items",
)  # fmt: skip


def run_key(config: Config, data: str = "") -> str:
    """``model-dataset-attack-defense-seed-sha12``: equal for equal resolved configurations and equal ``data``."""
    attack = config["attack"] or ("card" if config["poison"] else "clean")
    parts = (config["model"], config["dataset"], attack, config["defense"] or "none", str(config["seed"]))
    extra = files_digest(config["poison"]) if config["poison"] else ""
    switches = f"{config['compare_clean']}{extra}{data}"
    key = hashlib.sha256(f"{config.key()}{switches}".encode()).hexdigest()[:12]
    return "-".join([*parts, key])


def split_hash(splits) -> str:
    """Sixteen hexadecimal digits of the genuine rows of train, valid and test, in order."""
    sha = hashlib.sha256()
    for split in splits:
        for name in (split.uid_field, split.iid_field):
            sha.update(np.ascontiguousarray(split.inter_feat[name].numpy(), dtype="<i8").tobytes())
        sha.update(b"|")
    return sha.hexdigest()[:16]


def lift(outcomes: Mapping[str, Outcome | None]) -> dict[str, float] | None:
    """Attacked minus clean, of every metric that both have."""
    clean, attacked = outcomes["clean"], outcomes["attacked"]
    if clean is None or attacked is None:
        return None
    return {name: attacked.metrics[name] - value for name, value in clean.metrics.items() if name in attacked.metrics}


def _block(outcome: Outcome | None) -> dict[str, float] | None:
    return None if outcome is None else outcome.metrics


def assemble(
    config: Config,
    command: str,
    poison: StoredCard | None,
    outcomes: Mapping[str, Outcome | None],
    baseline: tuple[Config, Mapping[str, Outcome | None]] | None,
    seconds: Mapping[str, float],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of result.json; what was not run is None.

    Beside the keys of the design: ``valid`` (metrics on the validation rows, what selection saw), ``target_items``
    (those of a clean run too, which has no poison) and ``machine`` (the processor's architecture). ``poison.reused``:
    the card was there already, so that ``seconds.attack`` has no training of the attack in it.
    """
    ran = [outcome for outcome in outcomes.values() if outcome is not None]
    both = ran + [o for o in (baseline[1].values() if baseline else ()) if o is not None]
    times = {stage: sum(o.seconds[stage] for o in both) for stage in ("train", "evaluate")}
    last = ran[-1]
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "model": config["model"],
        "base_model": config["base_model"],
        "dataset": config["dataset"],
        "protocol": config["protocol"],
        "attack": poison.card.settings.get("attack") if poison else None,
        "defense": config["defense"],
        "seed": config["seed"],
        "config": config.resolved(),
        "split_hash": last.extra["split_hash"],
        "target_items": list(last.per_target),
        "poison": poison and {
            "card": str(poison.path),
            "hash": poison.card.digest(),
            "n_fake_users": poison.card.profiles.n_users,
            "n_fillers": poison.card.settings.get("n_fillers"),
            "target_items": poison.card.target_items,
            "reused": poison.reused,
            "stealth": poison.card.settings.get("stealth"),
        },
        "clean": _block(outcomes["clean"]),
        "attacked": _block(outcomes["attacked"]),
        "lift": lift(outcomes),
        "valid": {name: o.valid_metrics for name, o in outcomes.items() if o and o.valid_metrics} or None,
        "per_target": {
            token: {name: o.per_target[token] for name, o in outcomes.items() if o} for token in last.per_target
        },
        "baseline": baseline and {
            "model": baseline[0]["model"],
            "defense": baseline[0]["defense"],
            "clean": _block(baseline[1]["clean"]),
            "attacked": _block(baseline[1]["attacked"]),
            "lift": lift(baseline[1]),
        },
        "detection": {n: o.extra["detection"] for n, o in outcomes.items() if o and o.extra.get("detection")} or None,
        "recognition": {
            n: o.extra["recognition"] for n, o in outcomes.items() if o and o.extra.get("recognition")
        } or None,
        "n_genuine": last.extra["n_genuine"],
        "best_epoch": {name: o.extra["best_epoch"] for name, o in outcomes.items() if o},
        "seconds": {key: round(value, 3) for key, value in {**seconds, **times}.items()},
        **environment,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    found = {"python": platform.python_version(), "recbole_robust": recbole_robust.__version__}
    for package in ("recbole", "torch", "numpy", "pandas", "scipy"):
        found[package] = metadata.version(package)
    return found


def code_digest(package: Path) -> str:
    """A hash of the sources in our folder that a result may depend on."""
    files = (path for path in sorted(package.rglob("*.py")) if path.relative_to(package).parts[0] not in NOT_OF_A_RUN)
    return bytes_digest(files)[:12]


# Of the sources as they are imported: who works on a model, or on what it calls, is given no weights and no results of
# its older self.
CODE = code_digest(Path(__file__).parent)


def command_of(config: Config, command_line) -> str:
    """A command line that gives the same run: from the arguments, or from the keys that the caller gave."""
    if command_line and not isinstance(command_line, Mapping):
        given = list(command_line)
    else:
        keys = {k: v for k, v in config.external_config_dict.items() if k not in ("model", "dataset")}
        given = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in keys.items() if k != "output_dir"]
    names = [f"--model={config['model']}", f"--dataset={config['dataset']}"]
    given = [argument for argument in given if not argument.startswith(("--model=", "--dataset="))]
    return " ".join(["python run_recbole_robust.py", *(shlex.quote(argument) for argument in [*names, *given])])


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file whole: to a temporary name, then renamed. NaN becomes null."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(_no_nan(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _no_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _no_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_of_this_code(path: Path) -> dict[str, Any] | None:
    """Read a result.json; None where other sources made it.

    Raises:
        UserError: not JSON, or made by these sources and not as :func:`read` expects it.
    """
    content = _read_json(path)
    return None if isinstance(content, dict) and content.get("code") != CODE else _checked(content, path)


def read(path: Path) -> dict[str, Any]:
    """Read a result.json.

    Raises:
        UserError: not JSON, of another schema, or with a value of another kind than a result's.
    """
    return _checked(_read_json(path), path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"result file {path}: {error}; --force runs again") from None


def _checked(content: Any, path: Path) -> dict[str, Any]:
    """What :func:`read` says of the content of a file."""
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"result file {path}: expected schema_version {SCHEMA_VERSION}; --force runs again")
    missing = [key for key in SHOWN if key not in content]
    if missing:
        raise UserError(f"result file {path}: expected a whole result, {missing[0]} is missing; --force runs again")
    for place, value, (expected, allows) in _shown_values(content):
        if not allows(value):
            raise UserError(f"result file {path}: {place}: expected {expected}, got {short(value)}; --force runs again")
    return content


_NUMBERS: Kind = (
    "metrics with numbers, one of them name@K at least",
    lambda v: are_metrics(v) and any("@" in name for name in v),
)
_MAPPINGS: Kind = ("a mapping of mappings", lambda v: isinstance(v, dict) and all(map(MAPPING[1], v.values())))
_KINDS: dict[str, Kind] = {
    "model": TEXT, "dataset": TEXT, "protocol": TEXT, "attack": or_null(TEXT), "defense": or_null(TEXT),
    "seed": WHOLE, "config": MAPPING, "poison": or_null(MAPPING), "baseline": or_null(MAPPING),
    "detection": or_null(_MAPPINGS),
    "recognition": or_null(_MAPPINGS),
    "target_items": TEXTS,
}  # fmt: skip
_OPTIONAL_WHOLE, _OPTIONAL_NUMBER = or_null(WHOLE), or_null(NUMBER)
_NOISE: dict[str, Kind] = {"noise_ratio": NUMBER, "noise_kind": TEXT, "noise_unit": TEXT}
_FOUND: dict[str, dict[str, Kind]] = {
    "detection": {
        "n_flagged": WHOLE, "n_genuine_lost": WHOLE, "recall": _OPTIONAL_NUMBER, "auc": _OPTIONAL_NUMBER,
    },
    "recognition": {
        "n_noisy": WHOLE, "n_sequences": WHOLE, "auc": _OPTIONAL_NUMBER, "mean_weight_noisy": _OPTIONAL_NUMBER,
        "mean_weight_clean": _OPTIONAL_NUMBER,
    },
}  # fmt: skip


def _shown_values(content: Mapping[str, Any]) -> Iterator[tuple[str, Any, Kind]]:
    """Place, value and kind of what the table of a run is made of. What is inside comes after what it is in."""
    for name, kind in _KINDS.items():
        yield name, content[name], kind
    for place, one in (("", content), ("baseline.", content["baseline"])):
        if one is not None:
            blocks = [one.get(condition) for condition in ("clean", "attacked")]
            for name, block in zip(("clean", "attacked", "lift"), [*blocks, one.get("lift")], strict=True):
                yield f"{place}{name}", block, or_null(_NUMBERS)
            yield f"{place}clean and attacked", blocks, ("one of them at least", any)
    if content["baseline"] is not None:
        yield "baseline.model", content["baseline"].get("model"), TEXT
    if content["poison"] is not None:
        yield "poison.n_fake_users", content["poison"].get("n_fake_users"), WHOLE
        yield "poison.n_fillers", content["poison"].get("n_fillers"), _OPTIONAL_WHOLE
    if content["config"].get("noise_ratio"):
        for name, kind in _NOISE.items():
            yield f"config.{name}", content["config"].get(name), kind
    for name, kinds in _FOUND.items():
        for condition, found in (content[name] or {}).items():
            for key, kind in kinds.items():
                yield f"{name}.{condition}.{key}", found.get(key), kind
            if name == "detection" and found["recall"] is not None:
                yield f"detection.{condition}.auc", found.get("auc"), ("a number beside a recall", is_number)


class _LogFile(logging.FileHandler):
    """On a full disk it loses its lines; that the disk is full is told by what must be written."""

    def handleError(self, record: logging.LogRecord) -> None: ...


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Inside this block what RecBole and we log goes to a file, warnings too: RecBole's are many and say little.

    A mistake of the user, told by us or by RecBole, leaves nothing behind: neither the log nor empty folders that were
    not there before (another process may have made those, and be about to write into them). A suspicion keeps the log.
    """
    output_dir = path.parent.parent
    folders = (path.parent, output_dir / "saved", output_dir / "cards", output_dir / "clean", output_dir)
    new = [folder for folder in folders if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(RemoveColorFilter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    quiet = [h for h in root.handlers if h is not handler and h.level < logging.WARNING]
    levels = [h.level for h in quiet]
    for other in quiet:
        other.setLevel(logging.WARNING)
    mistaken = False
    try:
        yield
    except Exception as error:
        mistaken = isinstance(error, UserError) and not isinstance(error, SuspectedKeys)
        mistaken = mistaken or complaint_of_recbole(error) is not None
        raise
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        for other, before in zip(quiet, levels, strict=True):
            other.setLevel(before)
        with contextlib.suppress(OSError):
            handler.close()
        if mistaken:
            path.unlink(missing_ok=True)
            for folder in new:
                with contextlib.suppress(OSError):  # not empty, or not there
                    folder.rmdir()
