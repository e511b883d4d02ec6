"""Self-checks on the toy data: what published toolkits get wrong, tried on ours. docs/seven_ways.md tells the stories.

Each check yields what was expected and what came; one that yields nothing has passed. They use the very functions that
a run uses (split, injection, loaders, metrics, attacks), not copies of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_robust.attacks import aush_networks
from recbole_robust.attacks.gradient import Audience, GradientAttack
from recbole_robust.audit.bench import TARGETS, VICTIMS, Bench, K, pairs_trained_on, rows_of
from recbole_robust.audit.finding import Finding, run_check
from recbole_robust.audit.many_results import no_trivial_ranking_wins
from recbole_robust.data.card import PoisonCard
from recbole_robust.data.load import clean_train_split
from recbole_robust.data.views import attacker_view, defender_view, genuine_item_counts
from recbole_robust.defenses.pca import PCA
from recbole_robust.registry import ATTACKS
from recbole_robust.results import split_hash
from recbole_robust.types import DefenderView, UserError


def test_rows_are_never_trained_on(bench: Bench) -> Iterator[str]:
    for model in VICTIMS:
        config = bench.config(model)
        for name, poison in (("clean", None), ("poisoned", bench.card(config))):
            made = bench.made(config, poison)
            trained = pairs_trained_on(made.loaders[0])
            held_out = [rows_of(split) for split in made.splits[1:]]
            if not held_out[1]:
                yield f"{model}, {name}: expected test rows, got none"
            leaked = len(trained & (held_out[0] | held_out[1]))
            if leaked:
                yield f"{model}, {name}: expected no held-out row in the training batches, got {leaked}"


def injected_rows_are_trained_on(bench: Bench) -> Iterator[str]:
    """VAT, PamaCF and LoRec split the fakes 70/10/20 like everybody: 30 % of their clicks are never trained on."""
    for model in VICTIMS:
        config = bench.config(model)
        poison = bench.card(config)
        made = bench.made(config, poison)
        train = made.splits[0]
        first = train.user_num - poison.profiles.n_users
        profiles = poison.to_ids(train)
        injected = set(zip((profiles.user_ids + first).tolist(), (profiles.item_ids + 1).tolist(), strict=True))
        trained = {pair for pair in pairs_trained_on(made.loaders[0]) if pair[0] >= first}
        if trained != injected:
            found, more = len(injected & trained), len(trained - injected)
            others = f" and {more} others" if more else ""
            yield f"{model}: expected all {len(injected)} injected rows in the training batches, got {found}{others}"


def genuine_rows_are_those_of_the_clean_run(bench: Bench) -> Iterator[str]:
    for model in VICTIMS:
        config = bench.config(model)
        clean, poisoned = bench.splits(config), bench.splits(config, bench.card(config))
        n_rows = len(clean[0].inter_feat)
        for name, left, right in zip(("train", "valid", "test"), clean, poisoned, strict=True):
            for column in left.inter_feat.columns if len(left.inter_feat) else ():
                ours, theirs = left.inter_feat[column], right.inter_feat[column]
                if name != "train" and len(theirs) != len(ours):
                    yield f"{model}: expected {len(ours)} {name} rows under poison, got {len(theirs)}"
                elif not torch.equal(ours, theirs[:n_rows] if name == "train" else theirs):
                    yield f"{model}: expected the {name} rows of the clean run under poison, got others ({column})"


def ids_are_stable(bench: Bench) -> Iterator[str]:
    config = bench.config()
    clean, poisoned = bench.splits(config)[0], bench.splits(config, bench.card(config))[0]
    for field, name in ((clean.iid_field, "item"), (clean.uid_field, "user")):
        ours, theirs = clean.field2id_token[field], poisoned.field2id_token[field]
        grown = 0 if name == "item" else poisoned.n_fake_users
        if len(theirs) != len(ours) + grown:
            yield f"expected {len(ours) + grown} {name} ids under poison, got {len(theirs)}"
        moved = [str(a) for a, b in zip(ours, theirs, strict=False) if a != b]
        if moved:
            yield f"expected the {name} ids of the clean data under poison, got another for {' '.join(moved[:3])}"


def oracles_are_scored_as_such(bench: Bench) -> Iterator[str]:
    """recad overwrites the lists of all targets but the last: its hit ratio is deflated by the number of targets."""
    for model in VICTIMS:
        made = bench.made(bench.config(model))
        train, test = made.splits[0], made.splits[2]
        table = torch.zeros(train.user_num, train.item_num)
        for user, item in rows_of(test):
            table[user, item] = 1.0
        for name, sign, expected in (("oracle", 1.0, 1.0), ("anti-oracle", -1.0, 0.0)):
            metrics, _ = bench.measured(made, sign * table)
            for metric in (f"hit@{K}", f"ndcg@{K}", f"recall@{K}"):
                if abs(metrics[metric] - expected) > 1e-6:
                    yield f"{model}: expected {metric} {expected:g} of an {name}, got {metrics[metric]:g}"
        targets = torch.tensor([train.token2id(train.iid_field, token) for token in TARGETS])
        for name, value, expected in (("target oracle", 1.0, 1.0), ("constant ranking", 0.0, 0.0)):
            table = torch.zeros(train.user_num, train.item_num)
            table[:, targets] = value
            got = bench.measured(made, table)[0][f"targethr_eligible@{K}"]
            if got != expected:
                yield f"{model}: expected targethr_eligible@{K} {expected:g} of a {name}, got {got:g}"


def fakes_are_in_no_average(bench: Bench) -> Iterator[str]:
    """Scores by which every fake is hit and nobody else."""
    for model in ("MF", "BPR"):
        config = bench.config(model)
        poison = bench.card(config)
        made = bench.made(config, poison)
        train = made.splits[0]
        n_genuine, n_fakes = len(bench.splits(config)[0].field2id_token[train.uid_field]) - 1, poison.profiles.n_users
        targets = torch.tensor([train.token2id(train.iid_field, token) for token in TARGETS])
        table = torch.ones(train.user_num, train.item_num)
        table[:, targets] = 0.0
        table[n_genuine + 1 :, targets] = 2.0
        metrics, found = bench.measured(made, table)
        if len(found.ranks) != n_genuine:
            yield f"{model}: expected averages over {n_genuine} genuine users, got {len(found.ranks)} ({n_fakes} fakes)"
        name = f"targethr_all@{K}"
        if metrics[name] > 0:
            yield f"{model}: expected {name} 0 where only fake users are hit, got {metrics[name]:g}"
        asked = {user for user, _ in rows_of(made.splits[2])}
        if max(asked) > n_genuine:
            yield f"{model}: expected no fake user in the test rows, got {sum(user > n_genuine for user in asked)}"


def generator_learns(bench: Bench) -> Iterator[str]:
    """recad detaches what its generator's losses see, so that no gradient ever reaches it: the weights never move."""
    view = attacker_view(clean_train_split(bench.config()))
    rng = np.random.default_rng(0)
    selected, targets = np.array([1, 5, 9]), np.array([3, 40])
    users = np.flatnonzero(np.diff(view.ratings.indptr) >= 16)
    generator = aush_networks.make_generator(view.n_items, len(selected), 16, rng)
    discriminator = aush_networks.make_discriminator(view.n_items, len(selected), 16, rng)
    templates = aush_networks.Templates.of(view, users, selected, targets, 6)
    before = generator.dense.clone()
    weights = (0.0, 1.0, 0.0)  # the shilling loss alone: all selected ratings must rise to the highest
    losses = aush_networks.train(
        generator, discriminator, templates, rng, epochs=60, loss_weights=weights, zr_ratio=0.5
    )[:, 1]
    moved = float((generator.dense - before).abs().max())
    if not moved > 0:
        yield f"AUSH: expected weights of the generator that move in training, got a largest change of {moved:g}"
    if not losses[-1] < 0.5 * losses[0]:
        yield f"AUSH: expected a shilling loss that falls by half, got {losses[0]:.3g}, then {losses[-1]:.3g}"


def generated_ratings_are_pushed_up(bench: Bench) -> Iterator[str]:
    """Leg-UP and recad add 5 to the selected ratings, not the target's, in training: their generator ends at 1."""
    selected = ["i1", "i5", "i9"]
    arguments = {"adversarial_weight": 0.0, "reconstruction_weight": 0.0, "selected_items": selected, "epochs": 60}
    card = bench.card(bench.config(), "AUSH", attack_args=arguments)
    named = np.array([card.item_tokens[item] for item in card.profiles.item_ids])
    chosen = card.profiles.ratings[np.isin(named, selected)]
    low, high = card.settings["rating_range"]
    if not chosen.mean() > (low + high) / 2:
        yield (f"AUSH: expected selected ratings in the upper half of {low:g} to {high:g} under the shilling loss "
               f"alone, got a mean of {chosen.mean():.3g}")  # fmt: skip


def attacks_push_their_targets(bench: Bench) -> Iterator[str]:
    """The one public code of DADA minimises what it should maximise, and so buries its targets."""
    view = attacker_view(clean_train_split(bench.config()))
    rng = np.random.default_rng(0)
    targets = torch.tensor([3, 40])
    seen = view.ratings.toarray() > 0
    scores = torch.from_numpy(np.where(seen, -np.inf, rng.normal(size=seen.shape))).requires_grad_()
    eligible = torch.from_numpy(~seen[:, targets.numpy()])
    before = scores.detach()[:, targets].nan_to_num(neginf=0.0) - torch.from_numpy(rng.random((view.n_users, 2)))
    users, items = (torch.from_numpy(index) for index in np.nonzero(seen))
    audience = Audience(torch.zeros(view.n_users, 1), targets, eligible, before, (users, items))
    for name, attack_class in ATTACKS.items():
        if isinstance(attack_class, type) and issubclass(attack_class, GradientAttack):
            value = attack_class(top_k=K).objective(scores, audience, audience.everybody)
            (gradient,) = torch.autograd.grad(value, scores)
            pull = gradient[:, targets][eligible]
            slope = float(pull.sum())
            if not (slope > 0 and pull.min() >= -1e-12):
                yield f"{name}: expected an objective that rises with the targets' scores, got a slope of {slope:.3g}"


def detectors_do_not_depend_on_signs(bench: Bench) -> Iterator[str]:
    """SDLib and RecAD sum eigenvectors without a square: their sign, which is arbitrary, turns an AUC of a into 1 - a.

    Another order of the items gives the same users the same scores, but the solver other signs.
    """
    config = bench.config()
    ratings = defender_view(bench.splits(config, bench.card(config))[0]).ratings
    rng = np.random.default_rng(0)
    for variant in ("mehta", "sdlib"):
        scores = []
        for items in (np.arange(ratings.shape[1]), *(rng.permutation(ratings.shape[1]) for _ in range(6))):
            view = DefenderView(ratings[:, items].tocsr(), 1.0, 5.0, 1.0)
            scores.append(PCA(variant=variant)(view, rng=np.random.default_rng(0)).scores)
        alike = min(np.corrcoef(scores[0], other)[0, 1] for other in scores[1:])
        if not alike > 0.999:
            yield f"PCA ({variant}): expected the same scores in any order of the items, got correlation {alike:.3f}"


def no_trivial_ranking_wins_on_toy(bench: Bench) -> Iterator[str]:
    """A ranking by popularity has the best robustness and often a good hit ratio: more must be reported than these."""
    made = bench.made(bench.config())
    train, test = made.splits[0], made.splits[2]
    rng = torch.Generator().manual_seed(1)
    noise = torch.rand(train.user_num, train.item_num, generator=rng)
    model = noise.clone()
    for user, item in rows_of(test):
        model[user, item] += 1.0 if user % 5 < 2 else 0.0  # a model that is right for two users in five
    popular = torch.from_numpy(genuine_item_counts(train)).float().expand(train.user_num, -1)
    tables = {"Random": torch.rand(train.user_num, train.item_num, generator=rng), "Pop": popular, "a model": model}
    told = [
        {"model": name, "dataset": "toy", "seed": 0, "attacked": bench.measured(made, table)[0]}
        for name, table in tables.items()
    ]
    yield from no_trivial_ranking_wins(told)


def split_is_that_of_the_seed(bench: Bench) -> Iterator[str]:
    hashes = [split_hash(bench.splits(bench.config(seed=seed))) for seed in (1, 1, 2)]
    if hashes[0] != hashes[1]:
        yield f"expected one split of seed 1, got {hashes[0]} and {hashes[1]}"
    if hashes[0] == hashes[2]:
        yield f"expected another split of another seed, got {hashes[0]} of both"


def changed_cards_are_refused(bench: Bench) -> Iterator[str]:
    folder = bench.folder / "card"
    card = bench.card(bench.config())
    card.save(folder)
    if PoisonCard.load(folder).digest() != card.digest():
        yield f"expected a card of hash {card.digest()} back, got {PoisonCard.load(folder).digest()}"
    rows = folder / "toy.inter"
    lines = rows.read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")
    try:
        PoisonCard.load(folder)
        yield "expected a card without its last row to be refused, got it read"
    except UserError:
        pass


def a_run_passes_its_own_audit(bench: Bench) -> Iterator[str]:
    """Split, cards, lifts and denominators of a whole run, from the file that it leaves."""
    from recbole_robust.audit import audit_files  # which offers these checks
    from recbole_robust.quick_start import run_recbole_robust

    keys = bench.keys(attack="Average", n_fake_users=8, n_fillers=6, epochs=1)
    path = Path(run_recbole_robust("MF", "toy", config_dict=keys)["path"])
    for finding in audit_files(path, str(bench.data_path)):
        yield from (f"{finding.check}: {failure}" for failure in finding.failures)


CHECKS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "test rows are in no training batch": test_rows_are_never_trained_on,
    "all injected rows are in the training batches": injected_rows_are_trained_on,
    "genuine rows are those of the clean run": genuine_rows_are_those_of_the_clean_run,
    "ids are those of the clean run": ids_are_stable,
    "oracles score 1, anti-oracles 0": oracles_are_scored_as_such,
    "fake users are in no average": fakes_are_in_no_average,
    "a generator's weights move": generator_learns,
    "generated ratings are pushed up": generated_ratings_are_pushed_up,
    "objectives push the targets up": attacks_push_their_targets,
    "detectors do not depend on signs": detectors_do_not_depend_on_signs,
    "no trivial ranking wins on all metrics": no_trivial_ranking_wins_on_toy,
    "the split is that of the seed": split_is_that_of_the_seed,
    "a changed poison card is refused": changed_cards_are_refused,
    "a run passes its own audit": a_run_passes_its_own_audit,
}


def self_checks(data_path: str | Path | None = None, only: str | None = None) -> Iterator[Finding]:
    """Run the self-checks, one after the other; what they write is gone afterwards.

    Args:
        data_path: the folder that holds the toy data; None: ``dataset/`` of the source tree.
        only: one name of ``CHECKS``.

    Raises:
        UserError: no toy data there.
    """
    for check, found in CHECKS.items():
        if only in (None, check):
            yield _checked(check, found, data_path)


def _checked(check: str, found: Callable[[Bench], Iterator[str]], data_path: Any) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.of(data_path, folder)
        return run_check(check, lambda: found(bench))
