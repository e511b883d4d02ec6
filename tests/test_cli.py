"""The command line: what it accepts, and that bad input is one clear line, exit code 2 and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import pytest
import recbole.data.dataset.dataset as recbole_dataset
from recbole import utils
from recbole.utils import init_seed

import recbole_robust
from recbole_robust import cli, quick_start, registry
from recbole_robust.cli import main, parse
from recbole_robust.complaints import SuspectedKeys, blaming, complaint_of_recbole
from recbole_robust.data import attacked_dataset
from recbole_robust.data.card import PoisonCard
from recbole_robust.types import UserError

QUICK = ["--epochs=1", "--topk=[5]", "--use_gpu=false", "--show_progress=false", "--log_tensorboard=false"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(bad_data: Path, output_dir: Path, capsys, monkeypatch, tmp_path) -> Callable[..., Ran]:
    """Run the command line in this process, by default MF on toy; what the words say wins."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, bare: bool = False) -> Ran:
        base = ["--model=MF", "--dataset=toy", f"--data_path={bad_data}", f"--output_dir={output_dir}", *QUICK]
        given = {word.split("=")[0] for word in words}
        code = main([*words] if bare else [*(word for word in base if word.split("=")[0] not in given), *words])
        return Ran(code, *capsys.readouterr())

    return call


def without_column(table: str, number: int) -> str:
    rows = [line.split("\t") for line in table.splitlines()]
    return "\n".join("\t".join(row[:number] + row[number + 1 :]) for row in rows) + "\n"


@pytest.fixture(scope="session")
def bad_data(tmp_path_factory, data_path) -> Path:
    """A data folder: toy as it is, and one data set for each way in which a file can be wrong."""
    toy = (data_path / "toy" / "toy.inter").read_text()
    header, *rows = toy.splitlines()
    first = rows[0].split("\t")

    def with_rating(value: str) -> str:
        return "\n".join([header, "\t".join([*first[:2], value, first[3]]), *rows[1:]]) + "\n"

    def with_row(row: str) -> str:
        return "\n".join([header, *rows[:7], row, *rows[7:]]) + "\n"

    own = [row for row in rows if row.startswith("u0\t")]
    contents: dict[str, str | bytes] = {
        "toy": toy,
        "norating": without_column(toy, 2),
        "nanrating": with_rating("nan"),
        "blankrating": with_rating(""),
        "infrating": with_rating("inf"),
        "highrating": with_rating("9"),
        "textrating": with_rating("good"),
        "empty": "",
        "headeronly": header + "\n",
        "headeronly2": header,
        "noheader": "\n".join(rows) + "\n",
        "notypes": toy.replace(":token", "").replace(":float", ""),
        "badtype": toy.replace("rating:float", "rating:flaot"),
        "tokenrating": toy.replace("rating:float", "rating:token"),
        "floatuser": toy.replace("user_id:token", "user_id:float"),
        "twice": toy.replace("timestamp:float", "rating:float"),
        "nouser": toy.replace("user_id:token", "visitor:token"),
        "noitem": toy.replace("item_id:token", "thing:token"),
        "csv": toy.replace("\t", ","),
        "longrow": with_row(rows[7] + "\t1\t2"),
        "shortrow": with_row("u3\ti2"),
        "onecell": with_row("u3"),
        "garbage": bytes(range(256)) * 40,
        "zeros": bytes(2000),
        "utf16": toy.encode("utf-16"),
        "utf8later": (header + "\n" + rows[0] + "\n").encode() + b"u\xff\ti1\t3\t5\n",
        "everything": "\n".join([header, *own]) + "\n",  # one user who has rated every item
    }
    folder = tmp_path_factory.mktemp("data")
    for name, content in contents.items():
        (folder / name).mkdir()
        path = folder / name / f"{name}.inter"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "nofile").mkdir()
    return folder


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def check_refused(ran: Ran, output_dir: Path, *told: str) -> None:
    """Exit code 2; one line on stderr that tells all of ``told``; nothing on stdout and nothing left behind."""
    assert ran.code == 2, ran
    assert re.fullmatch(r"error: [^\n]+\n", ran.err), ran.err
    for text in told:
        assert text in ran.err
    assert ran.out == ""
    assert files_below(output_dir) == []


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words", "keys"),
    [
        ("", [], {}),
        ("run --model=MF", ["run"], {"model": "MF"}),
        ("-m MF -d toy", [], {"model": "MF", "dataset": "toy"}),
        ("--model PurifyAugMF --dataset ml-100k", [], {"model": "PurifyAugMF", "dataset": "ml-100k"}),
        ("--note=a=b=c", [], {"note": "a=b=c"}),
        ("--x=", [], {"x": ""}),
        ("--x -1 --y -.5", [], {"x": "-1", "y": "-.5"}),
        ("--show_progress --model MF", [], {"show_progress": "true", "model": "MF"}),
        ("--compare_clean false", [], {"compare_clean": "false"}),
        ("--force grid.yaml", ["grid.yaml"], {"force": "true"}),
        ("--force false --tune TRUE", [], {"force": "false", "tune": "TRUE"}),
        ("--attack_args.shrink 5", [], {"attack_args.shrink": "5"}),
        ("--seed=1 --seed=1", [], {"seed": "1"}),
        ("--retry-failed --config-files=x.yaml", [], {"retry_failed": "true", "config_files": "x.yaml"}),
        ("--time-aware=true", [], {"time-aware": "true"}),  # a key of RecBole's DiffRec
        ("-h", [], {"help": "true"}),
        ("--x -h", [], {"x": "true", "help": "true"}),
        ("--größe=Ω", [], {"größe": "Ω"}),
    ],
)
def test_parse(line, words, keys):
    assert parse(line.split()) == (words, keys)


@pytest.mark.parametrize("word", ["--", "--=5", "---epochs=5", "--.x=5", "--x.=5"])
def test_a_key_has_a_name(word):
    with pytest.raises(UserError, match=r"^expected --key=value, got "):
        parse([word])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["benchmark", "--help"], ["--model=MF", "--help"]])
def test_help(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: recbole-robust [run] --model=<name>")
    for name in [*registry.ATTACKS, *registry.MODELS]:
        assert re.search(rf"\b{name}\b", out), name


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-robust {recbole_robust.__version__}\n"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_ends_in_the_path_of_its_result(run, output_dir, bad_data):
    ran = run("--attack=Average", "--n_fake_users=4", "--n_fillers=5", "--target_items=[i1,i2]")
    assert ran.code == 0
    *table, last = ran.out.splitlines()
    path = Path(last.removeprefix("result: "))
    assert path.name == "result.json" and path.parent.parent == output_dir
    result = json.loads(path.read_text())
    assert (result["model"], result["dataset"], result["attack"]) == ("MF", "toy", "Average")
    assert result["poison"]["n_fake_users"] == 4
    assert result["target_items"] == ["i1", "i2"]
    assert result["command"].startswith("python run_recbole_robust.py --model=MF --dataset=toy ")
    assert [line.split()[-1] and line.split()[0] for line in table[3:]] == ["MF", "attacked", "lift"]
    assert f"{result['attacked']['targethr@5']:.4f}" in table[4]


def test_the_space_form_is_the_same_run(run):
    one = run("--target_items=[i1]")
    other = run("run", "--model", "MF", "--dataset", "toy", "--target_items", "[i1]")
    assert (one.code, other.code) == (0, 0)
    assert one.out == other.out  # also: the stored result is told again


def test_model_and_keys_from_a_file(run, tmp_path, bad_data, output_dir):
    path = tmp_path / "my keys.yaml"  # with a blank
    path.write_text("model: DampedMean\ndataset: toy\ntopk: [5]\ntarget_items: [i3]\nuse_gpu: no\n")
    words = [f"--config_files={path}", f"--data_path={bad_data}", f"--output_dir={output_dir}", "--show_progress=0"]
    ran = run(*words, bare=True)
    assert ran.code == 0
    assert "DampedMean" in ran.out


def test_implicit_models_need_no_ratings(run):
    assert run("--model=BPR", "--dataset=norating", "--attack=Random", "--n_fake_users=3").code == 0


@pytest.mark.parametrize("line_end", ["\n\n", "\r\n"])
def test_blank_lines_and_windows_line_ends_are_fine(line_end, run, tmp_path, data_path):
    (tmp_path / "toy").mkdir()
    toy = (data_path / "toy" / "toy.inter").read_bytes()
    (tmp_path / "toy" / "toy.inter").write_bytes(toy.replace(b"\n", line_end.encode()))
    odd = run(f"--data_path={tmp_path}", "--target_items=[i1]")
    assert odd.code == 0
    assert odd.out.splitlines()[:-1] == run("--target_items=[i1]", "--force").out.splitlines()[:-1]


# --- bad input --------------------------------------------------------------------------------------------------------

AVERAGE = "--attack=Average"
REFUSED: dict[str, tuple[list[str], list[str]]] = {  # what: (words, what the line tells)
    "model": (["--model=MFF"], ["unknown model 'MFF'", "did you mean MF "]),
    "model in other letters": (["--model=mf"], ["unknown model 'mf'", "did you mean MF "]),
    "model that is optional in RecBole": (["--model=lightgbm"], ["unknown model 'lightgbm'"]),
    "model, a list": (["--model=[MF]"], ["unknown model", "['MF']"]),
    "model, unicode": (["--model=МФ"], ["unknown model 'МФ'", "known: "]),
    "model, none": (["--model=~"], ["model: expected a name, got none"]),
    "dataset, none": (["--dataset=None"], ["dataset: expected a name, got none"]),
    "dataset": (["--dataset=toyy"], ["dataset: 'toyy'", "put toyy.inter into", "data", "dataset/README.md"]),
    "dataset, a path": (["--dataset=../toy"], ["dataset: expected the name of a folder in data_path", "'../toy'"]),
    "dataset without its file": (["--dataset=nofile"], ["dataset: expected a file", "nofile.inter"]),
    "attack": (["--attack=Averag"], ["unknown attack 'Averag': did you mean Average?"]),
    "attack, a list": (["--attack=[Average]"], ["unknown attack", "did you mean Average"]),
    "defense": (["--defense=Apt2"], ["unknown defense 'Apt2'"]),
    "key": (["--epohcs=3"], ["unknown key 'epohcs': did you mean epochs? (in command line)"]),
    "key twice": (["--seed=1", "--seed=2"], ["--seed: expected one value, got '1' and '2'"]),
    "no key": (["--=3"], ["expected --key=value, got '--=3'"]),
    "a word": (["run", "MF"], ["expected --key=value, got 'MF'"]),
    "command": (["train"], ["unknown command 'train'", "run, attack, benchmark, sweep, report or audit"]),
    "option": (["-v"], ["unknown option '-v'"]),
    "preset": (["--model=PurifyAugMF", "--preset=litteral"], ["unknown preset of PurifyAugMF 'litteral'", "literal?"]),
    "protocol": (["--protocol=apr"], ["unknown protocol 'apr'", "did you mean apt"]),
    "metric": (["--metrics=[Recal]"], ["unknown metric 'Recal'", "did you mean recall"]),
    "metrics, none": (["--metrics=[]"], ["metrics: expected", "got []"]),
    "metrics of two kinds": (["--metrics=[Hit,RMSE]"], ["metrics: expected", "got Hit, RMSE"]),
    "valid_metric": (["--valid_metric=NDCG@7"], ["valid_metric: expected NDCG@5", "got 'NDCG@7'"]),
    "attack_size 0": ([AVERAGE, "--attack_size=0"], ["attack_size: expected a number in (0, 1], got 0"]),
    "attack_size < 0": ([AVERAGE, "--attack_size=-0.1"], ["attack_size: expected a number in (0, 1], got -0.1"]),
    "attack_size < 0, space": ([AVERAGE, "--attack_size", "-0.1"], ["attack_size: expected", "got -0.1"]),
    "attack_size > 1": ([AVERAGE, "--attack_size=1.01"], ["attack_size: expected a number in (0, 1], got 1.01"]),
    "attack_size nan": ([AVERAGE, "--attack_size=nan"], ["attack_size: expected a number in (0, 1], got 'nan'"]),
    "attack_size .nan": ([AVERAGE, "--attack_size=.nan"], ["attack_size: expected a number in (0, 1], got nan"]),
    "attack_size, none": ([AVERAGE, "--attack_size=~"], ["attack_size: expected", "got neither"]),
    "attack_size, a flag": ([AVERAGE, "--attack_size"], ["attack_size: expected a number in (0, 1], got True"]),
    "n_fake_users 0": ([AVERAGE, "--n_fake_users=0"], ["n_fake_users: expected a whole number >= 1, got 0"]),
    "n_fake_users 1.5": ([AVERAGE, "--n_fake_users=1.5"], ["n_fake_users: expected a whole number >= 1, got 1.5"]),
    "n_fillers < 0": ([AVERAGE, "--n_fillers=-1"], ["n_fillers: expected a whole number >= 0, got -1"]),
    "n_fillers > items": ([AVERAGE, "--n_fillers=61"], ["n_fillers: expected at most 5", "60 items", "got 61"]),
    "n_fillers + targets > items": (
        [AVERAGE, "--n_fillers=59", "--target_items=[i1,i2]"],
        ["n_fillers: expected at most 58 (60 items less 2 targets", "got 59"],
    ),
    "filler_size > 1": ([AVERAGE, "--filler_size=1.5"], ["filler_size: expected a number in [0, 1], got 1.5"]),
    "filler_size 1": ([AVERAGE, "--filler_size=1.0"], ["expected at most", "got 60 (filler_size)"]),
    "filler_size < 0": ([AVERAGE, "--filler_size=-0.5"], ["filler_size: expected a number in [0, 1], got -0.5"]),
    "target_items": (["--target_items=[i1,nope]"], ["target_items: expected tokens", "nope"]),
    "target_items twice": (["--target_items=[i1,i1]"], ["target_items: expected distinct items"]),
    "target_items, none": (["--target_items=[]"], ["target_items: expected a list of item tokens", "got []"]),
    "target_items, a number": (["--target_items=5"], ["target_items: expected a list of item tokens", "got 5"]),
    "target set": (["--target_items=apt_9"], ["target_items: expected", "named set", "got 'apt_9'"]),
    "n_targets < 0": (["--n_targets=-1"], ["n_targets: expected a whole number >= 0, got -1"]),
    "n_targets 0": ([AVERAGE, "--n_targets=0"], ["n_targets: expected at least 1, since Average attacks, got 0"]),
    "n_targets > items": (["--n_targets=61"], ["n_targets: expected at most 60", "got 61"]),
    "n_targets > unpopular items": (
        ["--n_targets=30", "--target_choice=unpopular"],
        ["n_targets: expected at most 12 (unpopular items), got 30"],
    ),
    "target_choice": (["--target_choice=rare"], ["target_choice: expected one of random, unpopular", "got 'rare'"]),
    "target_mode": (["--target_mode=evry"], ["target_mode: expected one of all, split, round_robin, got 'evry'"]),
    "denominator": (["--target_hr_denominator=some"], ["target_hr_denominator: expected one of eligible, all"]),
    "topk > items": (["--topk=61"], ["topk: expected at most 60 (the items), got 61"]),
    "topk 0": (["--topk=0"], ["topk: expected a whole number >= 1, or a list of them, got 0"]),
    "topk -1": (["--topk", "-1"], ["topk: expected a whole number >= 1", "got -1"]),
    "topk, a list": (["--topk=[5,0]"], ["topk: expected", "got [5, 0]"]),
    "topk, a fraction": (["--topk=[5.5]"], ["topk: expected", "got [5.5]"]),
    "topk, none": (["--topk=[]"], ["topk: expected", "got []"]),
    "topk, text": (["--topk=ten"], ["topk: expected", "got 'ten'"]),
    "epochs -1": (["--epochs=-1"], ["epochs: expected a whole number >= 0, got -1"]),
    "epochs, a fraction": (["--epochs=1.5"], ["epochs: expected a whole number >= 0, got 1.5"]),
    "epochs, none": (["--epochs="], ["epochs: expected a whole number >= 0, got ''"]),
    "learning_rate 0": (["--learning_rate=0"], ["learning_rate: expected a number in (0, 1e+06], got 0"]),
    "learning_rate, text": (["--learning_rate=fast"], ["learning_rate: expected a number in (0, 1e+06], got 'fast'"]),
    "learner": (["--learner=adamm"], ["learner: expected one of adam, ", "got 'adamm'"]),
    "loss_type": (["--loss_type=MSEE"], ["loss_type: expected one of MSE", "got 'MSEE'"]),
    "seed": (["--seed=4294967296"], ["seed: expected a whole number from 0 to 4294967295, got 4294967296"]),
    "weight_decay": (["--weight_decay=-1e-4"], ["weight_decay: expected a number in [0, inf), got -0.0001"]),
    "batch size": (["--train_batch_size=0"], ["train_batch_size: expected a whole number >= 1, got 0"]),
    "embedding_size": (["--embedding_size=0"], ["embedding_size: expected a whole number >= 1, got 0"]),
    "a list of RecBole's": (["--model=NeuMF", "--mlp_hidden_size=64"], ["mlp_hidden_size: expected a list", "got 64"]),
    "eval_args.mode": (["--eval_args.mode=uniform"], ["eval_args.mode: expected full, labeled, uniN", "'uniform'"]),
    "eval_args.split": (["--eval_args.split={RS: [1, 2]}"], ["eval_args.split: expected", "got {'RS': [1, 2]}"]),
    "eval_args.order": (["--eval_args.order=OT"], ["eval_args.order: expected one of RO, TO, got 'OT'"]),
    "eval_args.what": (["--eval_args.what=1"], ["eval_args: expected the parts split, ", "got 'what'"]),
    "no blank": (["--threshold={rating:3}"], ["threshold: expected a blank after each colon", "{rating:3}"]),
    "tune, text": (["--tune=perhaps"], ["tune: expected true or false, got 'perhaps'"]),
    "tune elsewhere": (["--tune", "--protocol=recbole"], ["tune: expected eval_args.split", "'RS'"]),
    "base_model": (["--base_model=SASRecc"], ["unknown base_model 'SASRecc'", "did you mean SASRec"]),
    "base_model of none": (["--base_model=SASRec"], ["base_model: expected none, since MF wraps no model"]),
    "baseline": (["--baseline=MFF"], ["unknown baseline 'MFF'", "did you mean MF "]),
    "attack_args field": ([AVERAGE, "--attack_args.shrnk=5"], ["unknown key of Average 'attack_args.shrnk'", "shrink"]),
    "attack_args value": ([AVERAGE, "--attack_args.shrink=big"], ["attack_args.shrink: expected a number", "'big'"]),
    "attack_args choice": ([AVERAGE, "--attack_args.intent=pull"], ["attack_args.intent: expected one of push, nuke"]),
    "attack_args, no mapping": ([AVERAGE, "--attack_args=5"], ["attack_args: expected a mapping", "got 5"]),
    "noise_ratio > 1": (["--noise_ratio=1.5"], ["noise_ratio: expected a number in [0, 1], got 1.5"]),
    "noise_ratio < 0": (["--noise_ratio=-0.1"], ["noise_ratio: expected a number in [0, 1], got -0.1"]),
    "noise_ratio, text": (["--noise_ratio=some"], ["noise_ratio: expected a number in [0, 1], got 'some'"]),
    "noise_ratio, none": (["--noise_ratio=~"], ["noise_ratio: expected a number in [0, 1], got None"]),
    "noise_unit": (["--noise_unit=items"], ["noise_unit: expected one of users, interactions, got 'items'"]),
    "noise_kind": (["--noise_kind=shuffle"], ["noise_kind: expected one of replace, insert, drop, swap", "'shuffle'"]),
    "noise_strength 0": (["--noise_strength=0"], ["noise_strength: expected a number in (0, 1], got 0"]),
    "noise_by": (["--noise_by=rating"], ["noise_by: expected one of uniform, popularity, got 'rating'"]),
    "noise_scope": (["--noise_scope=all"], ["noise_scope: expected one of train, histories, got 'all'"]),
    "noise of order without sequences": (
        ["--noise_ratio=0.2", "--noise_kind=swap"],
        ["noise_kind: expected replace, insert or drop, since MF sees no order, got swap"],
    ),
    "knowledge": ([AVERAGE, "--knowledge=black-box"], ["knowledge: expected gray-box or more", "got black-box"]),
    "model's own key": (["--model=PurifyAugMF", "--se_heads=7"], ["se_heads: expected a divisor of 64, got 7"]),
    "model's own number": (["--model=PurifyAugMF", "--kl_T=0"], ["kl_T: expected a number in (0, inf), got 0"]),
    "output_dir": (["--output_dir="], ["output_dir: expected the name of a folder, got ''"]),
    "gpu_id": (["--gpu_id=first"], ["gpu_id: expected the numbers of GPUs", "got 'first'"]),
    "several devices": (["--nproc=2"], ["nproc: expected 1", "got 2"]),
    # the data
    "no ratings": (["--dataset=norating"], ["norating: rating: MF learns ratings, expected a column rating:float"]),
    "NaN ratings": (["--dataset=nanrating"], ["nanrating: rating: expected finite numbers, got nan in 1 rows", "u0"]),
    "blank ratings": (["--dataset=blankrating"], ["rating: expected finite numbers, got nan", "user u0, item i28"]),
    "infinite ratings": (["--dataset=infrating"], ["rating: expected finite numbers, got inf"]),
    "ratings out of range": (
        ["--dataset=highrating", "--rating_range=[1,5]"],
        ["rating: expected ratings in [1, 5] (rating_range), got 9.0 in 1 rows", "user u0"],
    ),
    "rating_range": (["--rating_range=[5,1]"], ["rating_range: expected [lowest, highest], both in", "got [5, 1]"]),
    "text for ratings": (["--dataset=textrating"], ["textrating.inter: expected numbers in rating:float, got 'good'"]),
    "NaN ratings, implicit victim": (
        ["--model=BPR", "--dataset=nanrating", "--load_col.inter=[user_id,item_id,rating]", "--attack=Random"],
        ["rating: expected finite numbers, got nan"],
    ),
    "empty": (["--dataset=empty"], ["empty.inter: expected a header of name:type columns", "got ''"]),
    "header only": (["--dataset=headeronly"], ["headeronly.inter: expected rows below the header, got none"]),
    "header only, no line end": (["--dataset=headeronly2"], ["expected rows below the header, got none"]),
    "no header": (["--dataset=noheader"], ["noheader.inter: expected a header of name:type columns", "got 'u0'"]),
    "no types": (["--dataset=notypes"], ["expected a header of name:type columns", "got 'user_id'"]),
    "type": (["--dataset=badtype"], ["token, token_seq, float, float_seq", "got 'rating:flaot'"]),
    "ratings as tokens": (["--dataset=tokenrating"], ["expected rating:float in the header, got rating:token"]),
    "users as floats": (["--dataset=floatuser"], ["expected user_id:token in the header, got user_id:float"]),
    "a column twice": (["--dataset=twice"], ["expected each column once, got rating twice"]),
    "no user column": (["--dataset=nouser"], ["expected a column user_id:token", "got item_id, rating, timestamp"]),
    "no item column": (["--dataset=noitem"], ["expected a column item_id:token", "got user_id, rating, timestamp"]),
    "commas": (["--dataset=csv"], ["expected a header of name:type columns with '\\t' between them"]),
    "long row": (["--dataset=longrow"], ["expected 4 columns as in the header, got 6 in line 9"]),
    "short row": (["--dataset=shortrow"], ["expected 4 columns as in the header, got 2 in line 9"]),
    "row of one cell": (["--dataset=onecell"], ["expected 4 columns as in the header, got 1 in line 9"]),
    "garbage": (["--dataset=garbage"], ["garbage.inter: expected UTF-8 text, got other bytes"]),
    "zeros": (["--dataset=zeros"], ["zeros.inter: expected a header of name:type columns"]),
    "utf-16": (["--dataset=utf16"], ["utf16.inter: expected UTF-8 text"]),
    "bytes in the body": (["--dataset=utf8later"], ["utf8later.inter: expected UTF-8 text"]),
    "nothing to sample as a negative": (
        ["--model=BPR", "--dataset=everything", "--topk=1", "--target_items=[i1]"],
        ["everything: expected an item that a user has not rated"],
    ),
    "filters that leave nothing": (["--user_inter_num_interval=[999,inf)"], ["interactions after the filters"]),
    "heldout_file": (["--heldout_file=none.inter"], ["heldout_file: expected a file, got none.inter"]),
    # the other commands
    "benchmark of nothing": (["benchmark"], ["benchmark: expected one grid file, got 0"]),
    "benchmark of no file": (["benchmark", "no.yaml"], ["benchmark: expected a grid file or one of", "'no.yaml'"]),
    "benchmark option": (["benchmark", "x", "--sedes=1"], ["benchmark: unknown option --sedes"]),
    "a flag of a grid": (["benchmark", "x", "--force=no"], ["benchmark: --force: expected true or false, got 'no'"]),
    "a flag of a sweep": (["sweep", "x", "--resume=x"], ["sweep: --resume: expected true or false, got 'x'"]),
    "no folder of a grid": (["benchmark", "x", "--output_dir="], ["benchmark: --output_dir: expected text, got ''"]),
    "no page": (["report", "x", "--out="], ["report: --out: expected a file, got nothing"]),
    "report of nothing": (["report"], ["report: expected a folder"]),
    "report of no folder": (["report", "nowhere"], ["nowhere: expected a folder of result files"]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input(what, run, output_dir):
    words, told = REFUSED[what]
    check_refused(
        run(*words, bare=words[0] in ("benchmark", "sweep", "report", "run", "train", "-v")), output_dir, *told
    )


def test_no_arguments(run, output_dir):
    check_refused(run(bare=True), output_dir, "model: expected --model=<name> --dataset=<name>, got nothing")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, ["No such file"]),
        ("topk: [1, 2\n b: }", ["not valid YAML"]),
        ("- topk\n- 5\n", ["expected a mapping of keys, got list"]),
        ("just text", ["expected a mapping of keys, got str"]),
        (b"\x00\xff\xfe", ["not valid YAML"]),
        ("epohcs: 3\n", ["unknown key 'epohcs'", "(in "]),
        ("epochs: many\n", ["epochs: expected a whole number >= 0, got 'many'"]),
        ("!!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
    ],
)
def test_bad_config_files(content, told, run, tmp_path, output_dir):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["--model=MF", "--dataset=toy", f"--output_dir={output_dir}", f"--config_files={path}"]
    named = [] if content == "epochs: many\n" else ["mine.yaml"]
    check_refused(run(*words, bare=True), output_dir, *told, *named)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name: x\n", ["datasets: expected a list"]),
        ("- 1\n", ["expected a mapping with the fields"]),
        ("a: [\n", ["not valid YAML"]),
        ("name: x\nsedes: [1]\n", ["grid: expected the fields", "'sedes'"]),
        ("name: x\ndatasets: [toy]\nmethods: [{model: MF}]\nseeds: [-1]\n", ["seeds: expected"]),
        (f"name: x\ndatasets: [toy]\nmethods: [{{model: MF}}]\nseeds: [{10**30}]\n", ["seeds: expected at most 42"]),
        ("name: ../x\ndatasets: [toy]\nmethods: [{model: MF}]\nseeds: [0]\n", ["name: expected", "'../x'"]),
    ],
)
def test_bad_grids(content, told, run, tmp_path, output_dir):
    path = tmp_path / "grid.yaml"
    path.write_text(content)
    check_refused(run("benchmark", str(path), f"--output_dir={output_dir}", bare=True), output_dir, *told)


def test_a_grid_with_failed_cells_exits_with_1(run, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("name: x\ndatasets: [toy]\nmethods: [{model: MFF}]\nseeds: [0]\n")
    words = ["benchmark", str(path), f"--output_dir={tmp_path / 'out'}"]
    assert (nothing := run(*words, "--only=5", bare=True)).code == 2 and "only: expected <axis>=" in nothing.err
    ran = run(*words, bare=True)
    assert ran.code == 1 and "benchmark: 1 of 1 cells failed" in ran.err and "Traceback" not in ran.err
    assert ran.out.startswith("report: ")


def test_an_output_dir_that_is_a_file(run, tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    ran = run(f"--output_dir={path}/below")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: output_dir: expected a folder to write to") and "is a file" in ran.err
    assert path.read_text() == "mine"


# --- poison cards and held-out rows -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def card(tmp_path_factory, bad_data) -> PoisonCard:
    """A good card: two fakes on toy."""
    folder = tmp_path_factory.mktemp("card")
    words = [f"--data_path={bad_data}", f"--output_dir={folder}", *QUICK, "--epochs=1", "--compare_clean=false"]
    assert main(["--model=MF", "--dataset=toy", *words, AVERAGE, "--n_fake_users=2", "--n_fillers=3"]) == 0
    (path,) = (folder / "cards").glob("*")
    return PoisonCard.load(path)


def test_a_good_card_is_replayed(run, card, tmp_path):
    card.save(tmp_path / "card")
    ran = run(f"--poison={tmp_path / 'card'}")
    assert ran.code == 0
    assert "Average: 2 fake users x 3 fillers" in ran.out


def tampered(card: PoisonCard, path: Path, **changes) -> None:
    card.save(path)
    file = path / "poison.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edited(card: PoisonCard, path: Path, old: str, new: str) -> None:
    card.save(path)
    file = path / "toy.inter"
    file.write_text(file.read_text().replace(old, new, 1))


BAD_CARDS: dict[str, tuple[Callable[[Path, PoisonCard], object], str]] = {
    "missing": (lambda path, card: None, "No such file"),
    "a folder": (lambda path, card: path.mkdir(), "poison.json: No such file"),
    "a file": (lambda path, card: path.write_text("hi"), "expected a poison card, which is a folder"),
    "other targets": (lambda path, card: tampered(card, path, target_items=["i7"]), "expected contents of hash"),
    "other ratings": (lambda path, card: edited(card, path, "\t5\n", "\t1\n"), "expected contents of hash"),
    "NaN": (lambda path, card: edited(card, path, "\t5\n", "\tnan\n"), "expected a finite number, got 'nan'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CARDS)
def test_bad_cards(what, run, card, tmp_path, output_dir):
    path = tmp_path / "card"
    write, told = BAD_CARDS[what]
    write(path, card)
    check_refused(run(f"--poison={path}"), output_dir, "poison: ", told)


def test_a_card_of_another_data_set(run, card, tmp_path, output_dir):
    dataclasses.replace(card, item_tokens=["x", *card.item_tokens[1:]]).save(tmp_path / "card")
    ran = run(f"--poison={tmp_path / 'card'}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: poison: expected items of toy, got unknown x\n"
    assert not [name for name in files_below(output_dir) if name.endswith((".json", ".tmp"))]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "expected an .inter file"),
        (bytes(range(256)), "expected an .inter file"),
        (b"user:token\titem_id:token\nu1\ti1\n", "expected a column user_id:token"),
        (b"user_id:token\titem_id:token\n", "expected rows below the header, got none"),
        (b"user_id:token\titem_id:token\nu1\tnope\n", "1 rows are not in toy (first: user u1, item nope)"),
        (b"user_id:token\titem_id:token\nnobody\ti1\n", "1 rows are not in toy (first: user nobody, item i1)"),
        (None, "expected to leave rows of toy to train on, got all"),
    ],
)
def test_bad_heldout_files(content, told, run, tmp_path, bad_data, output_dir):
    path = tmp_path / "heldout.inter"
    path.write_bytes((bad_data / "toy" / "toy.inter").read_bytes() if content is None else content)
    check_refused(run(f"--heldout_file={path}"), output_dir, "heldout_file: ", "heldout.inter", told)


# --- offline ----------------------------------------------------------------------------------------------------------


class Tried:
    """Stands for ``socket.create_connection`` on a machine that is offline."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.addresses: list[tuple[str, int]] = []
        self.timeouts: list[float | None] = []

    def __call__(self, address, timeout=None, **options):
        self.addresses.append(address)
        self.timeouts.append(timeout)
        if self.error:
            raise self.error
        return socket.socket()


def test_offline(run, output_dir, bad_data, monkeypatch):
    tried = Tried(OSError("Network is unreachable"))
    monkeypatch.setattr(socket, "create_connection", tried)
    monkeypatch.setattr(attacked_dataset, "getproxies", dict)
    started = time.perf_counter()
    ran = run("--dataset=ml-1m")
    assert time.perf_counter() - started < 5
    told = ["dataset: 'ml-1m' is not in", "amazonaws.com", "Network is unreachable", f"put ml-1m.inter into {bad_data}"]
    check_refused(ran, output_dir, *told)
    assert len(tried.addresses) == 1 and tried.timeouts == [attacked_dataset.DOWNLOAD_TIMEOUT]
    assert not (bad_data / "ml-1m").exists()


def test_a_proxy_is_asked_instead_of_the_host(monkeypatch):
    tried = Tried()
    monkeypatch.setattr(socket, "create_connection", tried)
    monkeypatch.setattr(attacked_dataset, "proxy_bypass", lambda host: host == "near")
    monkeypatch.setattr(attacked_dataset, "getproxies", lambda: {"https": "http://proxy:3128"})
    for url in ("https://far/x.zip", "https://near/x.zip"):
        attacked_dataset._reach(url)
    assert tried.addresses == [("proxy", 3128), ("near", 443)]


def test_half_a_download_is_removed(run, output_dir, bad_data, monkeypatch):
    def fails(url, folder):
        (bad_data / "ml-1m" / "ml-1m.zip").write_bytes(b"half")
        raise URLError("connection reset")

    monkeypatch.setattr(socket, "create_connection", Tried())
    monkeypatch.setattr(recbole_dataset, "decide_download", lambda url: True)
    monkeypatch.setattr(recbole_dataset, "download_url", fails)
    check_refused(run("--dataset=ml-1m"), output_dir, "dataset: 'ml-1m'", "connection reset", "put ml-1m.inter into")
    assert not (bad_data / "ml-1m").exists()


# --- whose fault ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model=SimpleX", "--aggregator=median"], "aggregator must be "),
        (["--model=SASRec", "--n_heads=7", "--train_neg_sample_args=~"], "The hidden size (64) is not a multiple of"),
        (["--model=BPR", "--transform=foo"], "transform"),
    ],
)
def test_what_recbole_refuses_on_purpose_is_one_line_too(words, told, run, output_dir):
    check_refused(run(*words), output_dir, "error: RecBole: ", told)


def test_a_complaint_is_raised_by_recbole_itself(toy_config):
    with pytest.raises(TypeError) as caught:
        toy_config()[5] = 1
    assert complaint_of_recbole(caught.value) == "index must be a str."
    with pytest.raises(TypeError) as caught:
        init_seed("text", True)  # happens below RecBole
    assert complaint_of_recbole(caught.value) is None
    with pytest.raises(ValueError) as caught:
        raise ValueError("ours")
    assert complaint_of_recbole(caught.value) is None
    assert complaint_of_recbole(ValueError("never raised")) is None


def _raised_in(call) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


def test_what_recbole_runs_into_is_laid_to_the_keys_that_nothing_has_checked():
    def in_recbole():
        init_seed("text", True)  # numpy raises below RecBole

    def ours():
        raise KeyError("ours")

    def full():
        raise OSError(28, "full")

    def under(keys, call):
        with blaming(lambda: keys):
            call()

    def no_memory():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def theirs(call):  # as if RecBole had called it
        code = compile("def run(call): call()", utils.__file__, "exec")
        exec(code, names := {})
        return lambda: names["run"](call)

    error = _raised_in(lambda: under({"a": 2.5, "b": "x"}, in_recbole))
    assert type(error) is SuspectedKeys and isinstance(error.__cause__, TypeError)
    assert str(error).startswith("a, b: expected what RecBole can work with, got 2.5, 'x', as it seems (TypeError in ")
    assert "utils.py:" in str(error)
    assert type(_raised_in(lambda: under({"a": 1}, theirs(ours)))) is KeyError  # somebody's model, called by RecBole
    assert type(_raised_in(lambda: under({"a": 1}, theirs(no_memory)))) is RuntimeError
    assert type(_raised_in(lambda: under({}, in_recbole))) is TypeError  # no key: a bug
    assert type(_raised_in(lambda: under({"a": 1}, ours))) is KeyError
    assert type(_raised_in(lambda: under({"a": 1}, full))) is OSError


def test_the_keys_that_nothing_has_checked(toy_config):
    config = toy_config(model="LightGCN", n_layers=2, reg_weight=0.1, seed=3, attack="Average")
    assert config.unchecked_keys() == {"n_layers": 2, "reg_weight": 0.1}
    assert toy_config(model="BPR", n_layers=2).unchecked_keys() == {}  # ignored
    assert toy_config(model="PurifyAugMF", fuse="mlp", loss_type="MSE").unchecked_keys() == {}  # the model looks at it


def test_our_own_bug_propagates(run, monkeypatch):
    def broken(**arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(quick_start, "run_recbole_robust", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run()


def test_ctrl_c(run, monkeypatch):
    def stopped(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(quick_start, "run_recbole_robust", stopped)
    assert run() == Ran(130, "", "stopped\n")


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["--model=MFF", "--dataset=toy"], 2)])
def test_the_script_exits_with_the_code(words, code, monkeypatch, capsys):
    script = Path(cli.__file__).parents[1] / "run_recbole_robust.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == code
