import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from models.sre_clip import ClassGraph, SREClip, SREConfig, TokensAdapter, estimated_prior, soft_labels

SEEN = torch.tensor([True, True, True, True, False, False])
SMALL = dict(heads=2, slots=3, attention_width=4, token_dim=4, gcn_width=5, batch_size=4)
VARIANTS = [
    dict(),
    dict(adapter="tokens"),
    dict(adapter="none"),
    dict(gcn_layers=0),
    dict(gcn_layers=2),
    dict(gcn_layers=3, adjacency="symmetric"),
    dict(adjacency="identity"),
]


def build(graph: ClassGraph, *configs: SREConfig, seeds: list[int] | None = None) -> SREClip:
    return SREClip(configs, seeds=seeds or [0] * len(configs), seen_KC=SEEN.expand(len(configs), -1), graph=graph)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def scrambled(module: SREClip) -> SREClip:
    """Away from the zero initialisation, the same way in every lane."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 * torch.randn(p.shape[1:], generator=g)
    return module


@pytest.mark.parametrize("static", VARIANTS, ids=str)
@pytest.mark.parametrize("residual_scale", [0.5, 1.0])
def test_an_untrained_adapter_is_exactly_zero_shot_clip(graph: ClassGraph, static: dict, residual_scale: float) -> None:
    module = build(graph, SREConfig(**{**SMALL, **static}, residual_scale=residual_scale))
    x = images(5)
    torch.testing.assert_close(module.logits(x)[0], 20.0 * x @ graph.name_features_CD.T)


def test_class_text_says_whose_prototypes_it_starts_from(graph: ClassGraph) -> None:
    lemmas = graph.node_features_ND[:6]
    for text, expected in {
        "name": graph.name_features_CD,
        "lemmas": lemmas,
        "both": F.normalize(graph.name_features_CD + lemmas, dim=-1),
    }.items():
        torch.testing.assert_close(build(graph, SREConfig(**SMALL, class_text=text)).prototypes()[0], expected)


def test_no_residual_leaves_the_graph_network_alone(graph: ClassGraph) -> None:
    module = build(graph, SREConfig(**SMALL, residual=False))
    assert module.residual_KDD is None
    torch.testing.assert_close(module.prototypes(), F.normalize(module.gcn(), dim=-1))
    # it starts as texts averaged over graph neighbours: class 0 with its parent, node 6
    smoothed = (graph.name_features_CD[0] + graph.node_features_ND[6]) / 2
    torch.testing.assert_close(module.prototypes()[0, 0], F.normalize(smoothed, dim=-1))


def test_losses_at_initialisation_by_hand(graph: ClassGraph) -> None:
    """Every loss computed a second time in plain numbers, from CLIP's own logits."""
    module = build(graph, SREConfig(**SMALL, relation_temperature=0.2, pseudo_label_threshold=0.6, unseen_prior=0.9))
    source, target, labels = images(1, 4), images(1, 7, seed=1), torch.tensor([[0, 3, 1, 2]])
    losses = {k: float(v.detach()) for k, v in module.losses(source, labels, target).items()}
    text = graph.name_features_CD
    p = torch.softmax(20 * target[0] @ text.T, -1)

    logits = 20 * source[0] @ text.T
    expected_cls = -sum(float(logits[i, :4].log_softmax(0)[y]) for i, y in enumerate([0, 3, 1, 2])) / 4
    relations = torch.softmax(text @ text.T / 0.2, -1)

    def kl(x: torch.Tensor, y: int) -> float:
        q, log_p = relations[y], torch.log_softmax(x @ text.T / 0.2, -1)
        return float((q * (q.log() - log_p)).sum())

    trusted = [i for i in range(7) if p[i].max() >= 0.6]
    assert 0 < len(trusted) < 7
    expected_srs = sum(kl(source[0, i], y) for i, y in enumerate([0, 3, 1, 2])) / 4
    expected_srs += sum(kl(target[0, i], int(p[i].argmax())) for i in trusted) / len(trusted)
    mean = p.mean(0)
    prior, mass = 0.9 * 2 / 6, float(mean[4:].sum())
    expected = {
        "cls": expected_cls,
        "srs": expected_srs,
        "align": float(F.cross_entropy(20 * text @ text.T, torch.arange(6))),
        "ent": float(-(p * p.log()).sum(-1).mean()),
        "div": math.log(6) + float((mean * mean.log()).sum()),
        "bal": prior * math.log(prior / mass) + (1 - prior) * math.log((1 - prior) / (1 - mass)),
    }
    assert losses == pytest.approx(expected, abs=1e-5)


def test_an_estimated_prior_takes_the_place_of_equal_shares(graph: ClassGraph) -> None:
    config, target = SREConfig(**SMALL, class_prior="estimated", unseen_prior=0.9), images(1, 7, seed=1)
    few = images(1, 40, seed=3)[0]
    module = SREClip([config], seeds=[0], seen_KC=SEEN[None], graph=graph, target_features_TD=few)
    losses = module.losses(images(1, 4), torch.tensor([[0, 3, 1, 2]]), target)
    shares = estimated_prior(few, graph.name_features_CD, 20.0)
    mean = torch.softmax(20 * target[0] @ graph.name_features_CD.T, -1).mean(0)
    assert losses["div"].item() == pytest.approx((mean * (mean / shares).log()).sum().item(), abs=1e-5)
    prior, mass = 0.9 * float(shares[4:].sum()), float(mean[4:].sum())
    expected = prior * math.log(prior / mass) + (1 - prior) * math.log((1 - prior) / (1 - mass))
    assert losses["bal"].item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="target_features_TD must be given with class_prior=estimated"):
        SREClip([config], seeds=[0], seen_KC=SEEN[None], graph=graph)


def test_shares_are_estimated_without_labels() -> None:
    g = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(5, 64, generator=g), dim=-1)
    counts = torch.tensor([400, 200, 100, 20, 0])
    labels = torch.arange(5).repeat_interleave(counts)
    images_TD = F.normalize(texts[labels] + 0.15 * torch.randn(720, 64, generator=g), dim=-1)
    shares = estimated_prior(images_TD, texts, 10.0)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    assert shares.tolist() == pytest.approx(((counts + 1) / 725).tolist(), abs=0.01)
    soft = (5 * images_TD @ texts.T).softmax(-1).mean(0)  # of unsure predictions the plain mean is too even
    true = counts / 720
    assert (estimated_prior(images_TD, texts, 5.0) - true).abs().sum() < 0.7 * (soft - true).abs().sum()
    assert estimated_prior(images_TD[:0], texts, 10.0).tolist() == pytest.approx([0.2] * 5)


def test_alignment_by_cosine_acts_where_the_cross_entropy_does_not(graph: ClassGraph) -> None:
    """Away from the start it is 1 - cosine of each class text, adapted, and its own prototype."""
    module = scrambled(build(graph, SREConfig(**SMALL, align="cosine", relation_temperature=0.2)))
    loss = module.losses(images(1, 4), torch.tensor([[0, 1, 2, 3]]), images(1, 4))["align"]
    texts, prototypes = module.adapt(graph.name_features_CD[None])[0].detach(), module.prototypes()[0].detach()
    expected = sum(1 - float(texts[c] @ prototypes[c]) for c in range(6)) / 6
    assert float(loss) == pytest.approx(expected, abs=1e-5) and expected > 0.01


def test_total_weighs_every_loss_once(graph: ClassGraph) -> None:
    module = build(graph, SREConfig(**SMALL, w_srs=2.0, w_align=3.0, w_ent=5.0, w_div=7.0, w_bal=11.0))
    ones = {name: torch.ones(1) for name in ("cls", "srs", "align", "ent", "div", "bal")}
    assert module.total(ones).tolist() == [1 + 2 + 3 + 5 + 7 + 11]


def test_classification_loss_leaves_unseen_prototypes_alone(graph: ClassGraph) -> None:
    """Identity adjacency and per-class texts: only seen rows of the prototypes may receive a gradient from L_cls."""
    module = build(graph, SREConfig(**SMALL))
    prototypes = module.prototypes()
    module.prototypes = lambda: prototypes  # type: ignore[method-assign]
    loss = module.losses(images(1, 4), torch.tensor([[0, 1, 2, 3]]), images(1, 4))["cls"]
    (grad,) = torch.autograd.grad(loss.sum(), prototypes)
    assert grad[0, :4].abs().sum() > 0
    assert grad[0, 4:].abs().sum() == 0


OTHER = dict(
    lr=1e-3, weight_decay=0.1, rho=0.4, residual_scale=0.6, w_srs=0.7, w_align=0.1, w_ent=0.2, w_div=0.5, w_bal=0.4,
    relation_temperature=0.2, pseudo_label_threshold=0.1, target_temperature=0.7, unseen_prior=0.8,
)  # fmt: skip


def test_the_lane_knobs_are_all_numeric_fields_listed() -> None:
    assert set(OTHER) == SREConfig.LANE_KNOBS
    assert SREConfig.LANE_KNOBS <= {f.name for f in dataclasses.fields(SREConfig)}


@pytest.mark.parametrize("static", VARIANTS, ids=str)
def test_a_lane_does_not_notice_its_neighbours(graph: ClassGraph, static: dict) -> None:
    base = SREConfig(**{**SMALL, **static})
    configs = [base] + [dataclasses.replace(base, **{k: v}) for k, v in OTHER.items()]
    together = scrambled(build(graph, *configs, seeds=list(range(len(configs)))))
    source, target, labels = images(len(configs), 4), images(len(configs), 5, seed=1), torch.tensor([[0, 1, 2, 3]])
    losses = together.losses(source, labels.expand(len(configs), -1), target)
    total = together.total(losses)
    logits = together.logits(images(3, seed=2))
    for k, config in enumerate(configs):
        alone = scrambled(build(graph, config, seeds=[k]))
        lone = alone.losses(source[k : k + 1], labels, target[k : k + 1])
        for name, value in lone.items():
            torch.testing.assert_close(losses[name][k : k + 1], value, msg=name)
        torch.testing.assert_close(total[k : k + 1], alone.total(lone))
        torch.testing.assert_close(logits[k : k + 1], alone.logits(images(3, seed=2)))


def test_keep_drops_lanes_and_leaves_the_rest_as_it_was(graph: ClassGraph) -> None:
    configs = [SREConfig(**SMALL, rho=r, gcn_layers=2) for r in (0.5, 1.0, 2.0)]
    module = scrambled(build(graph, *configs, seeds=[1, 2, 3]))
    before = module.logits(images(4)).detach()
    module.keep(torch.tensor([0, 2]))
    assert torch.equal(module.logits(images(4)), before[[0, 2]])
    assert all(p.shape[0] == 2 for p in module.parameters())


def test_lanes_that_differ_in_a_static_knob_are_refused(graph: ClassGraph) -> None:
    with pytest.raises(ValueError, match="gcn_layers is static.*'1', '2'"):
        build(graph, SREConfig(**SMALL), SREConfig(**SMALL, gcn_layers=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(lr=0.0), "lr must be finite and positive, got 0.0"),
        (dict(w_div=float("nan")), "w_div must be finite and not negative, got nan"),
        (dict(gcn_layers=4), "gcn_layers must be 0 to 3, got 4"),
        (dict(residual=False, gcn_layers=0), "residual must be True when gcn_layers is 0"),
        (dict(heads=3), "attention_width must be a multiple of heads=3, got 64"),
        (dict(pseudo_label_threshold=1.5), r"pseudo_label_threshold must lie in \[0, 1\], got 1.5"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SREConfig(**change)


@pytest.mark.parametrize("dim", [192, 512, 640, 768, 1024, 1152])  # of common checkpoints
def test_the_tokens_adapter_fits_every_usual_dimension(dim: int) -> None:
    adapter = TokensAdapter(SREConfig(adapter="tokens"), dim, [torch.Generator().manual_seed(0)])
    assert adapter.position_KTE.shape == (1, 4, dim // 4)
    assert adapter(torch.ones(1, 2, dim), torch.ones(1, 1, 1)).shape == (1, 2, dim)


def test_a_token_width_that_does_not_fit_the_feature_is_refused(graph: ClassGraph) -> None:
    with pytest.raises(ValueError, match="token_dim must divide the CLIP dimension 8"):
        build(graph, SREConfig(**{**SMALL, "token_dim": 6}, adapter="tokens"))


def test_soft_labels_of_the_batch_are_rows_of_the_table_of_all_classes() -> None:
    g = torch.Generator().manual_seed(0)
    prototypes_KCD = torch.nn.functional.normalize(torch.randn(2, 7, 5, generator=g), dim=-1)
    sharp_KCD = prototypes_KCD / torch.tensor([0.1, 0.5])[:, None, None]
    many_KB = torch.randint(7, (2, 9), generator=g)  # more labels than classes: by the table
    table_KBC, entropy_KB = soft_labels(prototypes_KCD, sharp_KCD, many_KB)
    few_KBC, few_KB = soft_labels(prototypes_KCD, sharp_KCD, many_KB[:, :4])  # fewer: row by row
    torch.testing.assert_close(few_KBC, table_KBC[:, :4])
    torch.testing.assert_close(few_KB, entropy_KB[:, :4])
    expected_KCC = (prototypes_KCD @ sharp_KCD.mT).softmax(-1)
    for k in range(2):
        torch.testing.assert_close(table_KBC[k], expected_KCC[k, many_KB[k]])
        logs = expected_KCC[k, many_KB[k]].log()
        torch.testing.assert_close(entropy_KB[k], (table_KBC[k] * logs).sum(-1))


@pytest.mark.parametrize("align", ["cross-entropy", "cosine"])
def test_some_class_texts_at_each_step_have_the_loss_of_all_as_their_mean(graph: ClassGraph, align: str) -> None:
    classes = 6
    all_of_them, some = (
        scrambled(build(graph, SREConfig(**SMALL, align=align, relation_temperature=0.2, align_texts=n)))  # type: ignore[arg-type]
        for n in (classes, 4)
    )
    some.set_lanes(all_of_them.lanes())
    found = []
    for label in range(classes):  # with one image the label decides where the run of classes begins
        labels = torch.tensor([[label]])
        (classes_N,) = some._align_classes(labels)
        assert len(set(classes_N.tolist())) == 4
        found.append(float(some.losses(images(1, 1), labels, images(1, 1))["align"]))
    expected = float(all_of_them.losses(images(1, 1), torch.tensor([[0]]), images(1, 1))["align"])
    assert len(set(found)) > 1 and sum(found) / classes == pytest.approx(expected, rel=1e-5)
