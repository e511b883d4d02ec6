"""The undefended model that stands beside a method."""

from __future__ import annotations

from recbole_robust import registry
from recbole_robust.config import Config, known_keys

BASELINES = {"PurifyAugMF": "MF", "PCMF": "MF", "RGCF": "LightGCN"}


def baseline_config(config: Config, files, config_dict, command_line) -> Config | None:
    """The configuration of the undefended model beside the method, or None.

    It has the user's keys, less those that only the method's model has, under the same protocol.
    """
    name = config["baseline"]
    if name in (None, "none", "None"):
        return None
    if name == "auto":
        same = config["model"] if config["defense"] else None
        base = getattr(config.model_class, "base_class", None) if config["base_model"] else None
        name = BASELINES.get(config["model"]) or (same if base is None else base.__name__)
        if name is None:
            return None
    models = registry.yaml_names(registry.get_model(name))
    _, by_model = known_keys()
    foreign = {key for key, owners in by_model.items() if owners.isdisjoint(models)}
    given = {k: v for k, v in config.external_config_dict.items() if k not in foreign}
    if config["train_stage"] and "train_stage" not in foreign:  # S3Rec: the stages that the method goes through
        given.setdefault("train_stage", config["train_stage"])
    not_its = ("model", "base_model", "dataset", "preset", "defense", "defense_args")
    given = {k: v for k, v in given.items() if k not in not_its}
    given.update(protocol=config["protocol"], baseline="none")
    dotted = {".".join(path): value for path, value in config._dotted.items() if path[0] != "defense_args"}
    return Config(name, config["dataset"], None, given, dotted)
