"""Files from somebody else run no code, and reach nothing outside their folder: each is refused in one clear line.

A file that would make a folder when it is unpickled, or a word that would when it is evaluated; the folder is never
there. Checkpoints of ours: tests/test_trainer.py; names in an HTML page: tests/test_report_html.py; who may connect to
Ray: tests/test_ray_grid.py.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import run_words

from recbole_robust.audit import audit_files
from recbole_robust.cli import main
from recbole_robust.data.card import CARD_FILE, PoisonCard, content_hash
from recbole_robust.foreign_files import read_as_data
from recbole_robust.types import FakeProfiles, UserError

MARK = "__import__('os').mkdir('mark')"
SOURCES = {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "class"]}
NO_CODE = "expected tensors and plain values, got others"
NO_CACHE = "RecBole's caches could run code"


class Exploit:
    """Unpickled by a loader that trusts its file, it leaves a mark in the working directory."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("mark",)


def crafted(path: Path) -> Path:
    """A file that both pickle and torch read, and that leaves a mark where they unpickle it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": Exploit()}, path)
    return path


@pytest.mark.parametrize(
    ("read", "write"),
    [
        (lambda path: torch.load(path), lambda path: torch.save({"state_dict": Exploit()}, path)),
        (lambda path: torch.load(path), lambda path: path.write_bytes(pickle.dumps(Exploit()))),
        (lambda path: torch.load(path, weights_only=False), lambda path: torch.save(Exploit(), path)),
        (lambda path: np.load(path, allow_pickle=True), lambda path: path.write_bytes(pickle.dumps(Exploit()))),
        (lambda path: np.load(path, None, True), lambda path: np.save(path, np.array([Exploit()], dtype=object))),
    ],
)
def test_what_a_model_reads_is_data(read, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, before = tmp_path / "x.npy", (torch.load, np.load)
    write(path)
    with pytest.raises(UserError, match=NO_CODE), read_as_data():
        read(path)
    assert not (tmp_path / "mark").exists()
    assert (torch.load, np.load) == before


def test_data_are_read_and_their_mistakes_told(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}}, path)
    with read_as_data():
        assert torch.load(path)["state_dict"]["w"].tolist() == [1, 1]
    with pytest.raises(UserError, match="expected what this model can start from, got KeyError"), read_as_data():
        torch.load(path)["weights"]
    with pytest.raises(KeyError), read_as_data():
        {}["ours"]  # nothing was read: our own bug
    with pytest.raises(UserError, match="expected a file to start from, got No such file"), read_as_data():
        torch.load(tmp_path / "none")


LOAD = f"--load_col={SOURCES}"
STARTS_FROM: dict[str, list[str]] = {
    "BPR, loaders": ["--model=BPR", "--dataloaders_save_path=x.pth"],
    "BPR, data set": ["--model=BPR", "--dataset_save_path=x.pth"],
    "BPR, saved data set": ["--model=BPR", "--save_dataset=true"],
    "BPR, saved loaders": ["--model=BPR", "--save_dataloaders=true"],
    "NeuMF": ["--model=NeuMF", "--use_pretrain=true", "--mf_pretrain_path=x.pth", "--mlp_pretrain_path=x.pth"],
    "NAIS": ["--model=NAIS", "--pretrain_path=x.pth"],
    "ConvNCF": ["--model=ConvNCF", "--train_method=after_pretrain", "--pre_model_path=x.pth"],
    "RaCT": ["--model=RaCT", "--train_stage=finetune", "--pre_model_path=x.pth"],
    "S3Rec": [
        "--model=S3Rec",
        "--train_stage=finetune",
        "--pre_model_path=x.pth",
        "--train_neg_sample_args=None",
        LOAD,
    ],
    "KD_DAGFM": ["--model=KD_DAGFM", "--phase=finetuning", "--warm_up=x.pth", LOAD, "--threshold={'rating': 4}"],
    "LDiffRec": ["--model=LDiffRec", "--n_cate=2", "--out_dims=[8]"],
}


@pytest.mark.parametrize("what", STARTS_FROM)
def test_a_model_starts_from_no_code(what, toy, refused, tmp_path):
    crafted(tmp_path / "x.pth")
    np.save(toy / "item_emb.npy", np.array([Exploit()], dtype=object), allow_pickle=True)
    refused(run_words(toy.parent, *STARTS_FROM[what]), NO_CACHE if what.startswith("BPR") else NO_CODE)


def test_a_cache_in_somebody_s_output_folder_is_not_read(data_path, tmp_path, monkeypatch):
    """RecBole unpickles <data set>-for-<model>-dataloader.pth where it is there, without being asked to."""
    monkeypatch.chdir(tmp_path)
    for name in ("toy-for-BPR-dataloader.pth", "toy-AttackedDataset.pth", "toy-Dataset.pth"):
        (crafted(tmp_path / "out" / "saved" / name)).write_bytes(pickle.dumps(Exploit()))
    assert main(run_words(data_path, "--model=BPR")) == 0
    assert not (tmp_path / "mark").exists()


# --- words and YAML ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["embedding_size", "learning_rate", "topk", "eval_args", "load_col", "metrics", "seed", "gpu_id", "threshold",
     "val_interval", "attack", "defense", "target_items", "teacher", "x", "rating_range", "user_inter_num_interval"],
)  # fmt: skip
def test_words_are_parsed_and_not_evaluated(key, toy, refused):
    model = "KD_DAGFM" if key == "teacher" else "MF"
    refused(run_words(toy.parent, f"--model={model}", f"--{key}={MARK}"), key.removesuffix("s"))


@pytest.mark.parametrize("words", [["--model=MF", "--dataset=toy", "--config_files=x.yaml"], ["benchmark", "x.yaml"],
                                   ["sweep", "x.yaml"]])  # fmt: skip
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [mark]", "!!python/name:os.mkdir", "!x {a: b}"])
def test_yaml_makes_no_objects(words, tag, refused, tmp_path):
    (tmp_path / "x.yaml").write_text(f"name: {tag}\n")
    refused(words, "x.yaml: not valid YAML: could not determine a constructor")


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", "..", ".hidden", "a\0b"])
def test_a_grid_s_name_leaves_no_folder(name, refused, tmp_path):
    (tmp_path / "x.yaml").write_text(json.dumps({"name": name, "datasets": ["toy"], "methods": ["MF"], "seeds": [0]}))
    refused(["benchmark", "x.yaml"], "name: expected a folder name")


# --- cards ------------------------------------------------------------------------------------------------------------


def card_folder_of(folder: Path) -> Path:
    PoisonCard("toy", ["i3"], ["i3"], FakeProfiles(np.array([0, 1]), np.array([0]), np.array([5.0]))).save(folder)
    return folder


@pytest.mark.parametrize("dataset", ["../toy", "/etc/passwd", "x/../../toy", "a\0b"])
def test_a_card_names_no_file_outside_its_folder(dataset, tmp_path):
    folder = card_folder_of(tmp_path / "cards" / "card")
    shutil.copy(folder / "toy.inter", folder.parent / "toy.inter")
    content = json.loads((folder / CARD_FILE).read_text())
    content = {**content, "dataset": dataset}
    content["content_hash"] = content_hash({k: v for k, v in content.items() if k != "content_hash"})
    (folder / CARD_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^poison: [^\n]+$"):
        PoisonCard.load(folder)


@pytest.mark.parametrize("name", ["toy.inter", CARD_FILE])
def test_a_card_links_to_no_file_outside_its_folder(name, tmp_path):
    folder = card_folder_of(tmp_path / "card")
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="expected a file of the card, got a link out of its folder"):
        PoisonCard.load(folder)


def test_a_link_to_a_card_is_one(tmp_path):
    (tmp_path / "link").symlink_to(card_folder_of(tmp_path / "card"))
    assert PoisonCard.load(tmp_path / "link").target_items == ["i3"]


# --- results ----------------------------------------------------------------------------------------------------------


COMMANDS = [
    "--dataset_save_path=x.pth", "--dataloaders_save_path=x.pth", "--save_dataset=true --checkpoint_dir={}",
    "--save_dataloaders=true --checkpoint_dir={}", "--model=KD_DAGFM --teacher=__import__", "'", "--output_dir",
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_an_audit_runs_nothing_of_a_result_s_command(words, data_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    crafted(tmp_path / "x.pth").write_bytes(pickle.dumps(Exploit()))
    command = f"python run_recbole_robust.py --model=BPR --dataset=toy {words.format(tmp_path / 'mark')}"
    result = {"schema_version": 1, "command": command, "model": "BPR", "dataset": "toy", "seed": 1, "split_hash": "x"}
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "result.json").write_text(json.dumps(result))
    before = sorted(tmp_path.rglob("*"))
    *_, splits = audit_files(tmp_path / "r", str(data_path))
    assert "0 splits made again, 1 not: " in splits.line and "\n" not in splits.line
    assert sorted(tmp_path.rglob("*")) == before


HOSTILE = "<script>x</script><img src=x onerror=y>\"' | `a` \\input{/etc/passwd} \\write18{ls} $x$ %"


def everywhere(value: Any) -> Any:
    """A result in which every text is hostile."""
    if isinstance(value, dict):
        return {key: everywhere(entry) for key, entry in value.items()}
    return HOSTILE if isinstance(value, str) else value


@pytest.fixture
def hostile_results(tmp_path) -> Callable[[], Path]:
    def make() -> Path:
        numbers = {"targethr@5": 0.1, "hit@5": 0.2, HOSTILE: 0.5}
        cell = {"grid": "g", "dataset": "d", "attack": "a", "method": "m", "target_set": "t"}
        for seed, method in ((0, "m"), (1, "m"), (0, "n")):
            one = everywhere({"command": "c", "model": "x", "dataset": "x", "protocol": "p", "versions": {HOSTILE: "1"},
                              "config": {HOSTILE: "x"}, "cell": {**cell, "method": method}})  # fmt: skip
            one["cell"] |= {"seed": seed, "method": f"{HOSTILE}{method}"}
            one |= {"schema_version": 1, "clean": numbers, "attacked": numbers, "lift": numbers, "seed": seed}
            (tmp_path / f"{method}{seed}.json").write_text(json.dumps(one))
        (tmp_path / "bad.json").write_text(json.dumps({**one, "error": HOSTILE, "traceback": HOSTILE}))
        return tmp_path

    return make


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_a_page_runs_nothing_of_a_result(form, hostile_results, capsys):
    folder = hostile_results()
    assert main(["report", str(folder), f"--format={form}", *(["--pictures"] if form == "markdown" else [])]) == 0
    pages = [path for path in folder.iterdir() if path.suffix in (".md", ".tex", ".html", ".svg")]
    assert pages
    for path in pages:
        text = path.read_text()
        if path.suffix == ".tex":
            assert "\\input{/etc" not in text and "\\write18" not in text
            continue
        if path.suffix == ".md":  # inside a block of code everything is text
            text = re.sub(r"^```bash\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"(?<!\\)<(img|script>x)", text), path.name
