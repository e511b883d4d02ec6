"""The command line: ``run`` (also without a name), ``attack``, ``benchmark``, ``sweep``, ``report`` and ``audit``."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

USAGE = """\
usage: recbole-robust [run] --model=<name> --dataset=<name> [--attack=<name>] [--any_key=value ...]
       recbole-robust attack --dataset=<name> --attack=<name> [--model=<name>] [--any_key=value ...]
       recbole-robust attack --dataset=<name> --from_json=<file>
       recbole-robust benchmark <grid.yaml> [--workers=0] [--address=<host:port>] [--only=<text>] [--retry-failed]
                                [--reuse=<folder>] [--dry-run] [--force] [--output_dir=...]
       recbole-robust sweep <sweep.yaml> [--workers=1] [--gpu_per_trial=0] [--address=<host:port>] [--resume] [--force]
                            [--output_dir=...]
       recbole-robust report <folder> [--format=markdown|latex|html] [--pictures] [--out=<file>]
       recbole-robust audit [<result.json or folder>] [--data_path=<folder>] [--splits=true]

run        train a model, attack it, measure it beside its baseline; prints a table and the path of result.json
attack     make the fake profiles of an attack and train no victim; prints the path of the poison card, which
           --poison=<card> replays on any model. The model decides on the protocol only, and so on the split that the
           attack sees: MF if you name none, or BPR where the data set has no ratings
benchmark  run a grid of such runs, one JSON a cell; goes on where it was. --workers=2: two at once, on Ray;
           --address: on a Ray cluster (auto: the one on this machine); --reuse: take equal cells from the results of
           other grids in a folder, if these sources made them; --dry-run: what would run, about how long
sweep      search for the best configuration by Ray Tune, on validation data only; writes trials.json, a table and
           best.yaml, which --config_files=best.yaml takes; --resume goes on with a sweep that was stopped
report     render the cells of a folder: Markdown (with --pictures: SVG beside it), LaTeX tables, or one HTML page
audit      check this installation on the toy data, or the results in a folder: one line a check; exit code 1 where one
           fails. Beside the cells of a grid it leaves audit.json, which the report tells of. --splits=false does not
           read the data to make the splits again

  -m, --model        MF, DampedMean, Pop, PurifyAugMF, PCMF, RGCF or any RecBole model; PurifyAug and ATJT go around
                     another (--base_model=BPR, --base_model=SASRec); SeqDCN: DCN that sees the sequence
  -d, --dataset      ml-100k (ships with RecBole), ml-1m, or a folder in data_path (dataset/)
  --attack           Random, Average, Bandwagon, Segment, LoveHate, CopyProfile, Diluted, AUSH, TNA, DADA,
                     PGA, AdaptivePGA, RevAdv, DPA2DL, or the control Organic; none: a clean run
  --defense          AT, VAT, PamaCF, GDA, APT, TCE, RCE, GroupWeights, PCA, FAP, CoRating; the last three, detectors,
                     combine with one another and with one of the others: CoRating,AT
  --poison           a poison card (a folder) to inject instead of running an attack
  --from_json        attack: a file of fake users as VAT and PamaCF ship them; its item ids are taken as item tokens
  --config_files     YAML files, separated by blanks
  --help, --version

Every key of properties/*.yaml and of RecBole can be given as --key=value; nested ones as --attack_args.shrink=5.
"""


OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
SHORT = {"-m": "--model", "-d": "--dataset", "-h": "--help"}
# true by themselves; no value after a blank
FLAGS = {"force", "retry_failed", "help", "version", "tune", "dry_run", "pictures", "resume"}
WITH_HYPHEN = {"retry-failed", "dry-run", "config-files"}


def parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split into words and keys: ``--key=value``, ``--key value``, ``--flag`` (true), ``-m`` and ``-d``.

    What follows a key is its value unless it begins with ``--`` (so ``--key -1`` is a number).

    Raises:
        UserError: a key given twice with different values, or one without a name.
    """
    from recbole_robust.types import UserError

    words: list[str] = []
    keys: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        argument = SHORT.get(argument, argument)
        if not argument.startswith("--"):
            words.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        if not key or key != key.strip("-. "):
            raise UserError(f"expected --key=value, got {argument!r}")
        key = key.replace("-", "_") if key in WITH_HYPHEN else key
        if not equals:
            value = rest.pop(0) if rest and _is_value_of(key, rest[0]) else "true"
        if keys.get(key, value) != value:
            raise UserError(f"--{key}: expected one value, got {keys[key]!r} and {value!r}")
        keys[key] = value
    return words, keys


def _is_value_of(key: str, text: str) -> bool:
    if key in FLAGS:
        return text.lower() in ("true", "false")
    return not text.startswith("--") and text not in SHORT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Exit code 0: done; 1: the audit, a cell of a grid or all trials of a sweep failed; 2: the
    user's mistake or the machine's (a full disk), one line on stderr.

    Any other exception is our fault: it propagates, so that Python prints it and exits with code 1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from recbole_robust.types import UserError

    try:
        words, keys = parse(arguments)
        if "help" in keys or words[:1] == ["help"]:
            print(USAGE, end="")
            return 0
        if "version" in keys:
            from recbole_robust import __version__

            print(f"recbole-robust {__version__}")
            return 0
        command = words.pop(0) if words else "run"
        commands = {
            "run": _run, "attack": _attack, "benchmark": _benchmark,
            "sweep": _sweep, "report": _report, "audit": _audit,
        }  # fmt: skip
        if command not in commands:
            what, names = "option" if command.startswith("-") else "command", [*commands]
            told = f"{', '.join(names[:-1])} or {names[-1]}"
            raise UserError(f"unknown {what} {command!r}: expected {told} (--help says more)")
        return commands[command](words, keys, arguments) or 0
    except UserError as error:
        print("error:", str(error).replace("\n", " "), file=sys.stderr)
        return 2
    except (OSError, MemoryError, RuntimeError) as error:
        if not (told := _of_the_machine(error)):
            raise
        print("error:", " ".join(told.split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _of_the_machine(error: Exception) -> str:
    """What to tell of a full disk, a folder that cannot be written to, or too little memory; else nothing."""
    if isinstance(error, OSError):
        told = (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")
        return told if error.errno in OF_THE_MACHINE else ""
    from recbole_robust.complaints import lacks_memory

    return f"out of memory: {error}" if lacks_memory(error) else ""


def _run(words: list[str], keys: dict[str, str], arguments: list[str]) -> None:
    from recbole_robust.types import UserError

    if words:
        raise UserError(f"expected --key=value, got {words[0]!r}")
    if not keys:
        raise UserError("model: expected --model=<name> --dataset=<name>, got nothing (--help says more)")
    from recbole_robust.complaints import complaining_as
    from recbole_robust.quick_start import run_recbole_robust

    given = [argument for i, argument in enumerate(arguments) if i or argument != "run"]
    command = shlex.join(["python", "run_recbole_robust.py", *given])
    files = _config_files(keys)
    with complaining_as("RecBole"):
        result = run_recbole_robust(config_file_list=files, command_line=keys, command=command)
    print(render(result))
    print(f"result: {result['path']}")


def _attack(words: list[str], keys: dict[str, str], arguments: list[str]) -> None:
    from recbole_robust.complaints import complaining_as
    from recbole_robust.quick_start import run_attack
    from recbole_robust.types import UserError

    if words:
        raise UserError(f"attack: expected --key=value, got {words[0]!r}")
    if not keys:
        raise UserError("attack: expected --dataset=<name> --attack=<name>, got nothing (--help says more)")
    files, from_json = _config_files(keys), keys.pop("from_json", None)
    with complaining_as("RecBole"):
        stored = run_attack(config_file_list=files, command_line=keys, from_json=from_json)
    print(render_card(stored.card.content()))
    print(f"card: {stored.path}")


def _config_files(keys: dict[str, str]) -> list[str]:
    """The files of ``--config_files``, which is taken out of the keys."""
    listed = keys.pop("config_files", "")
    return [listed] if os.path.isfile(listed) else listed.split()


def _benchmark(words: list[str], keys: dict[str, str], arguments: list[str]) -> int:
    from recbole_robust.benchmark import run_grid
    from recbole_robust.schedule import plan_grid

    flags = ("force", "retry_failed", "dry_run")
    source, options = _grid_or_sweep("benchmark", "grid", words, keys, ("only", "reuse"), flags, ("workers",))
    if options.pop("dry_run", False):
        print(plan_grid(source, **options))
        return 0
    done = run_grid(source, **options)
    if done.n_failed:
        print(
            f"benchmark: {done.n_failed} of {done.n_run + done.n_skipped} cells failed: the report names them",
            file=sys.stderr,
        )
    print(f"report: {done}")
    return int(done.n_failed > 0)


def _sweep(words: list[str], keys: dict[str, str], arguments: list[str]) -> int:
    from recbole_robust.complaints import complaining_as
    from recbole_robust.sweep import run_sweep

    flags, numbers = ("force", "resume"), ("workers", "gpu_per_trial")
    source, options = _grid_or_sweep("sweep", "sweep", words, keys, (), flags, numbers)
    with complaining_as("RecBole"):
        done = run_sweep(source, **options)
    print(done)
    return int(not done.best)


def _grid_or_sweep(
    command: str, what: str, words: list[str], keys: dict[str, str], texts: Sequence[str], flags: Sequence[str],
    numbers: Sequence[str],
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """The file and the options of a command, of their kinds."""
    from recbole_robust.types import UserError
    from recbole_robust.yaml_text import parse_value

    if len(words) != 1:
        raise UserError(f"{command}: expected one {what} file, got {len(words)}")
    texts = ("output_dir", "address", *texts)
    options: dict[str, Any] = {"output_dir": f"output/{command}"}
    for key, value in keys.items():
        if key not in (*texts, *flags, *numbers):
            known = ", ".join(sorted((*texts, *flags, *numbers)))
            raise UserError(f"{command}: unknown option --{key}; known: {known}")
        if key in texts and not value.strip("\0 "):
            raise UserError(f"{command}: --{key}: expected text, got {value!r}")
        if key in flags and value.lower() not in ("true", "false"):
            raise UserError(f"{command}: --{key}: expected true or false, got {value!r}")
        options[key] = value if key in texts else value.lower() == "true" if key in flags else parse_value(value)
    return words[0], options


def _report(words: list[str], keys: dict[str, str], arguments: list[str]) -> None:
    from recbole_robust.report import format_of, write_report
    from recbole_robust.types import UserError

    if len(words) != 1 or set(keys) - {"out", "format", "pictures"}:
        raise UserError("report: expected a folder (and --format=markdown|latex|html, --pictures, --out=<file>)")
    pictures = keys.get("pictures", "false").lower()
    if pictures not in ("true", "false"):
        raise UserError(f"report: --pictures: expected true or false, got {keys['pictures']!r}")
    if not keys.get("out", "page").strip():
        raise UserError("report: --out: expected a file, got nothing")
    if os.path.isfile(os.path.join(words[0], "trials.json")):  # of a sweep
        from recbole_robust.sweep.page import write_page

        if (format := format_of(keys.get("format"), keys.get("out"))) != "markdown":
            raise UserError(f"format: expected markdown of the folder of a sweep, got {format!r}")
        print(f"report: {write_page(words[0], keys.get('out'))}")
        return
    print(f"report: {write_report(words[0], keys.get('out'), keys.get('format'), pictures == 'true')}")


def _audit(words: list[str], keys: dict[str, str], arguments: list[str]) -> int:
    from recbole_robust.audit import audit_files, record_if_grid, self_checks
    from recbole_robust.types import UserError

    splits = keys.get("splits", "true").lower()
    if len(words) > 1 or set(keys) - {"data_path", "splits"} or splits not in ("true", "false"):
        given = " ".join([*words[1:], *(f"--{key}={value}" for key, value in keys.items())])
        raise UserError(f"audit: expected at most one path, --data_path=<folder> and --splits=true|false, got {given}")
    with _quiet_log():
        found = (
            audit_files(words[0], keys.get("data_path"), splits == "true")
            if words
            else self_checks(keys.get("data_path"))
        )
        findings = []
        for finding in found:
            print(finding.line, flush=True)
            findings.append(finding)
        if words:
            record_if_grid(words[0], findings)
    n_checks, n_failed = len(findings), sum(bool(finding.failures) for finding in findings)
    print(f"audit: {n_failed} of {n_checks} checks failed" if n_failed else f"audit: all {n_checks} checks passed")
    return 1 if n_failed else 0


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Only warnings and errors of the log are shown inside this block."""
    import logging

    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(level)


COLUMNS = ("targethr", "hit", "recall", "ndcg", "tailhit", "itemcoverage")


def render(result: dict[str, Any]) -> str:
    """The table of a run: method and baseline, each clean, attacked and lifted, at the largest K."""
    from tabulate import tabulate

    method = f"{result['model']} + {result['defense']}" if result["defense"] else result["model"]
    rows = [(method, result["clean"], result["attacked"], result["lift"])]
    if result["baseline"]:
        other = result["baseline"]
        rows.append((f"{other['model']} (baseline)", other["clean"], other["attacked"], other["lift"]))
    some = next(block for row in rows for block in row[1:3] if block)
    k = max(int(name.split("@")[1]) for name in some if "@" in name)
    names = [name for c in COLUMNS if (name := f"{c}@{k}") in some]
    names += [name for name in ("gauc", "auc", "logloss", "rmse", "targetrank") if name in some]
    table = []
    for label, *blocks in rows:
        for condition, block in zip(("clean", "attacked", "lift"), blocks, strict=True):
            if block:
                sign = "+" if condition == "lift" else ""
                values = [block.get(name) for name in names]
                table.append([label, condition, *("" if v is None else f"{v:{sign}.{_digits(n)}f}"
                                                  for n, v in zip(names, values, strict=True))])  # fmt: skip
                label = ""
    poison = result["poison"]
    head = f"{result['dataset']}, protocol {result['protocol']}, seed {result['seed']}, "
    if poison:
        fillers = "" if poison["n_fillers"] is None else f" x {poison['n_fillers']} fillers"
        head += f"{result['attack']}: {poison['n_fake_users']} fake users{fillers}, "
    else:
        head += "no attack, "
    keys = result["config"]
    if keys.get("noise_ratio"):
        head += f"noise: {keys['noise_kind']} in {keys['noise_ratio']:.4g} of the {keys['noise_unit']}, "
    head += f"targets {' '.join(result['target_items']) or 'none'}"
    lines = [head, tabulate(table, headers=["model", "data", *names], disable_numparse=True)]
    for condition, found in (result["detection"] or {}).items():
        lost = f"{found['n_genuine_lost']} genuine users lost"
        auc = _or_dash(found["auc"])
        caught = "" if found["recall"] is None else f"{found['recall']:.0%} of the fakes, AUC {auc}, "
        lines.append(f"flagged in the {condition} data: {found['n_flagged']} users, {caught}{lost}")
    for condition, found in (result["recognition"] or {}).items():
        n_noisy, means = found["n_noisy"], (found["mean_weight_noisy"], found["mean_weight_clean"])
        weights = " and ".join(_or_dash(mean) for mean in means)
        lines.append(f"noise in {n_noisy} of {found['n_sequences']} training sequences of the {condition} data: "
                     f"recognition AUC {_or_dash(found['auc'])}, mean weight noisy and clean {weights}")  # fmt: skip
    return "\n".join(lines)


def _or_dash(value: float | None) -> str:
    """A number that a result has as null where there is none (the AUC of one class)."""
    return "-" if value is None else f"{value:.3f}"


def render_card(content: dict[str, Any]) -> str:
    """The table of a poison card: attack, budget, targets, profile lengths and stealth."""
    from tabulate import tabulate

    n_fakes, n_users = content["n_fake_users"], content["n_genuine_users"]
    options = ", ".join(f"{key} {value}" for key, value in content["attack_args"].items())
    targets = zip(content["target_items"], content["target_popularity"], strict=True)
    rows = {
        "attack": f"{content['attack']} ({options})" if options else content["attack"],
        "fake users": f"{n_fakes}, {100 * n_fakes / n_users:.1f} % of {n_users} genuine ones",
        "profile length": f"{content['n_rows'] / n_fakes:.1f}",
        "targets": ", ".join(f"{token} ({count} ratings)" for token, count in targets),
        "stealth": ", ".join(f"{k} {_or_dash(v)}" for k, v in content["stealth"].items()),
    }
    head = f"{content['dataset']}, protocol {content['protocol']}"
    if content["seed"] is not None:  # a file of fake users says nothing of seed, fillers and knowledge
        head += f", seed {content['seed']}"
        rows["profile length"] += f": {content['n_fillers']} fillers, and targets ({content['target_mode']})"
        rows["knowledge"] = f"{content['knowledge']}, rows of {100 * content['known_users']:g} % of the users"
    return f"{head}\n{tabulate(list(rows.items()), tablefmt='plain', disable_numparse=True)}"


def _digits(name: str) -> int:
    return 1 if name == "targetrank" else 4


if __name__ == "__main__":
    sys.exit(main())
