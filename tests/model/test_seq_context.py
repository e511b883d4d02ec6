"""Context-aware models that see the sequence: one more field, its vectors averaged (P19)."""

from __future__ import annotations

import pytest
import torch
from recbole.model.context_aware_recommender import DCN
from recbole.model.sequential_recommender import SASRec
from torch.testing import assert_close
from toy_splits import SMALL, average, make_run, split

from recbole_robust import UserError
from recbole_robust.initialisation import build_model
from recbole_robust.model import as_sequential
from recbole_robust.registry import get_model, yaml_names

FEATURES = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "age", "gender"],
                         "item": ["item_id", "year", "class"]}}  # fmt: skip
MODELS = ["AFM", "AutoInt", "DCN", "DCNV2", "DeepFM", "FM", "FNN", "LR", "NFM", "PNN", "WideDeep", "xDeepFM"]


@pytest.fixture
def config_of(toy_config):
    return lambda model, **keys: toy_config(model, **{**SMALL, "train_batch_size": 512, "epochs": 1, **keys})


def test_the_history_is_the_mean_of_its_items_vectors(config_of):
    """P19: over what is no padding, from a table of the items."""
    config = config_of("SeqDCN")
    train = split(config).train
    model = build_model(config, train, train)
    rows = train.inter_feat[:50]
    assert model.token_seq_field_names == ["item_id_list"] and model.token_seq_field_dims == [train.item_num]
    assert model.token_field_names == ["user_id", "item_id", "item_length"]
    found = model.embed_token_seq_fields([rows["item_id_list"]]).squeeze(1)
    table = model.token_seq_embedding_table[0].weight
    for row, length in enumerate(rows["item_length"].tolist()):
        history = rows["item_id_list"][row]
        assert (history[:length] > 0).all() and not history[length:].any()
        assert_close(found[row], table[history[:length]].mean(dim=0))


def test_the_vocabulary_of_the_lists_is_that_of_the_items(config_of):
    train = split(config_of("SeqDCN", **FEATURES)).train
    assert train.num("item_id_list") == train.item_num and train.num("item_length") == SMALL["MAX_ITEM_LIST_LENGTH"] + 1
    assert train.id2token("item_id_list", 3) == train.id2token("item_id", 3)
    assert train.token2id("item_length", "4") == 4


def test_another_history_is_another_score(config_of):
    config = config_of("SeqWideDeep")
    train = split(config).train
    model = build_model(config, train, train).eval()
    rows = train.inter_feat[:20]
    before = model.predict(rows)
    rows["item_id_list"][:, 0] = rows["item_id_list"][:, 0] % 59 + 1
    assert (model.predict(rows) != before).all()


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if m in ("DCN", "WideDeep", "FM") else pytest.mark.slow) for m in MODELS]
)
def test_every_context_aware_model_trains_with_the_sequence(config_of, model):
    run = make_run(config_of(f"Seq{model}", n_layers=1, attention_size=4, num_heads=1))
    run.fit(saved=False)
    assert all(loss == loss for loss in run.trainer.train_loss_dict.values())
    assert "item_id_list" in run.trainer.model.token_seq_field_names


def test_attacked_data_have_the_same_genuine_rows(config_of):
    config = config_of("SeqDCN", **FEATURES)
    clean, attacked = split(config), split(config, average())
    n = len(clean.train.inter_feat)
    for name in clean.train.inter_feat.columns:
        assert torch.equal(attacked.train.inter_feat[name][:n], clean.train.inter_feat[name])
        assert torch.equal(attacked.test.inter_feat[name], clean.test.inter_feat[name])
    assert len(attacked.train.inter_feat) > n
    run = make_run(config, average())
    run.fit(saved=False)


def test_its_settings_are_those_of_the_model_and_of_din(config_of, toy_config):
    config, din = toy_config("SeqDCN"), toy_config("DIN")
    for key in ("MODEL_TYPE", "eval_args", "metrics", "train_neg_sample_args", "repeatable"):
        assert config[key] == din[key], key
    assert config["cross_layer_num"] == 6 and config["reg_weight"] == 0.01, "RecBole's 2 outweighs all else"
    on_ml = toy_config("SeqDCN", dataset="ml-100k")["load_col"]
    assert on_ml == toy_config("DIN", dataset="ml-100k")["load_col"]


def test_names():
    assert get_model("SeqDCN") is as_sequential(DCN) and as_sequential(DCN).__name__ == "SeqDCN"
    assert yaml_names(get_model("ATJT", base="DCN")) == ["DCN", "SeqDCN", "ATJT"]
    assert get_model("ATJT", base="SeqDCN").base_class is as_sequential(DCN)
    assert not getattr(DCN, "sees_history", False), "the plain model stays what it is"
    for base in ("SASRec", "DSSM", "BPR"):
        with pytest.raises(UserError, match=f"expected a context-aware model .* got {base}"):
            get_model(f"Seq{base}")
    with pytest.raises(UserError, match="unknown model 'SeqDCNN'"):
        get_model("SeqDCNN")
    assert yaml_names(SASRec) == ["SASRec"]
